"""The compute thread: the only one that touches the model."""

import logging
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Final

_LOG: Final = logging.getLogger(__name__)


class ComputeThread:
    """Runs jobs one after the other. A model that hangs keeps no process alive: the thread
    is a daemon."""

    def __init__(self, on_crash: Callable[[], None]) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._on_crash = on_crash
        self._thread = Thread(target=self._run, name="compute", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Callable[[], None]) -> None:
        """Runs `job` after those before it."""
        self._jobs.put(job)

    def close(self, timeout_s: float) -> bool:
        """Ends the thread after its jobs; False if it did not end in time."""
        self._jobs.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (job := self._jobs.get()) is not None:
                job()
        except BaseException:
            _LOG.exception("the compute thread failed")
            self._on_crash()
            raise
