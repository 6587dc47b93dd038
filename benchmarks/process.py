"""A server process from start to end: its environment, log, readiness, CPU time and memory."""

import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from benchmarks.cpu import MARK_VARIABLE, cpu_seconds, family
from benchmarks.errors import ServerFailedError
from benchmarks.pss import pss_bytes

_READY_TIMEOUT_S: Final = 60.0
_STOP_TIMEOUT_S: Final = 20.0
_POLL_S: Final = 0.05
_LOG_LINES_SHOWN: Final = 15


class ServerProcess:
    """Owns one server process and all that it starts. Output goes to `log`."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._arguments = list(arguments)
        self._mark = uuid.uuid4().hex
        self._environment = {**os.environ, **environment, MARK_VARIABLE: self._mark}
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, is_ready: Callable[[str], bool]) -> None:
        """Starts it and waits until `is_ready`, asked with what was printed so far, says so.

        Raises ServerFailedError with the log's last lines when it ends or takes too long.
        """
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._arguments,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        give_up_s = time.monotonic() + _READY_TIMEOUT_S
        while not is_ready(self._log.read_text(errors="replace")):
            if self._process.poll() is not None:
                code = self._process.returncode
                self.stop()
                raise ServerFailedError(self._complaint(f"ended with {code} before it was ready"))
            if time.monotonic() > give_up_s:
                self.stop()
                raise ServerFailedError(self._complaint(f"was not ready in {_READY_TIMEOUT_S} s"))
            time.sleep(_POLL_S)

    @property
    def pid(self) -> int:
        """Of the process that was started."""
        assert self._process is not None, "start it first"
        return self._process.pid

    def cpu_seconds(self) -> float:
        """CPU seconds of all its processes so far. Raises ServerFailedError when it is gone."""
        if self._process is None or self._process.poll() is not None:
            raise ServerFailedError(self._complaint("ended while it was measured"))
        return cpu_seconds(self._process.pid, self._mark)

    def pss_bytes(self) -> int:
        """Memory of all its processes now. Raises ServerFailedError when it is gone."""
        if self._process is None or self._process.poll() is not None:
            raise ServerFailedError(self._complaint("ended while it was measured"))
        return pss_bytes(family(self._process.pid, self._mark))

    def stop(self) -> None:
        """Asks it to end, then ends whatever of it is left. May be called twice."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._end_what_is_left(self._process.pid)
        self._process = None

    def _end_what_is_left(self, root: int) -> None:
        """Kills those that did not leave with the server, and waits until they are gone."""
        give_up_s = time.monotonic() + _STOP_TIMEOUT_S
        while left := family(root, self._mark):
            if time.monotonic() > give_up_s:
                raise ServerFailedError(self._complaint(f"left processes behind: {sorted(left)}"))
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue  # left by itself in the meantime
            time.sleep(_POLL_S)

    def _complaint(self, what: str) -> str:
        printed = self._log.read_text(errors="replace") if self._log.exists() else ""
        lines = printed.splitlines()[-_LOG_LINES_SHOWN:]
        return f"{self._arguments[0]} {what}; the end of {self._log}:\n" + "\n".join(lines)


def free_port() -> int:
    """A port of the loopback address that nothing listens on now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
