"""The autoscaler as a child process: started, started again when it dies, stopped.

The frontend serves on without it; only starting and replacing replicas waits.
"""

import logging
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Final

logger = logging.getLogger(__name__)

MIN_BACKOFF_S: Final = 0.2
MAX_BACKOFF_S: Final = 10.0
# One that lived this long had no trouble starting.
STEADY_S: Final = 30.0


class AutoscalerChild:
    """Owns one process. `environment` carries the token, which never stands on a command
    line. An empty command starts nothing: the autoscaler is somebody else's."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        clock: Callable[[], float],
    ) -> None:
        self._command = command
        self._environment = environment
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0
        self._backoff_s = MIN_BACKOFF_S
        self._restart_at_s: float | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that runs."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Starts it."""
        self._started_s = self._clock()
        self._restart_at_s = None
        if not self._command:
            return
        self._process = subprocess.Popen(  # noqa: S603 - our own command
            list(self._command), env=dict(self._environment), stdin=subprocess.DEVNULL
        )

    def check(self) -> None:
        """Starts it again, after a pause, when it died."""
        now_s = self._clock()
        if self._restart_at_s is not None:
            if now_s >= self._restart_at_s:
                self._start_again(now_s)
            return
        if self._process is None or self._process.poll() is None:
            return
        if now_s - self._started_s > STEADY_S:
            self._backoff_s = MIN_BACKOFF_S
        self._pause(now_s, f"ended with code {self._process.returncode}")
        self._process = None

    def ask_to_stop(self) -> None:
        """It drains its replicas and ends."""
        self._restart_at_s = None
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)

    def has_ended(self) -> bool:
        """Nothing runs."""
        return self._process is None or self._process.poll() is not None

    def kill(self) -> None:
        """Ends it at once, if it still runs, and reaps it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    # --- inside ---------------------------------------------------------------------------

    def _start_again(self, now_s: float) -> None:
        try:
            self.start()
        except OSError as error:
            # A machine without a process or memory to spare: what serves goes on.
            self._pause(now_s, f"cannot be started: {error}")

    def _pause(self, now_s: float, what: str) -> None:
        logger.error(
            "the autoscaler %s; it is started again in %.1f s, what serves goes on",
            what,
            self._backoff_s,
        )
        self._restart_at_s = now_s + self._backoff_s
        self._backoff_s = min(MAX_BACKOFF_S, 2 * self._backoff_s)
