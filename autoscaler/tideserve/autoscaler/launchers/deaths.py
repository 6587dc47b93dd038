"""Tells at once when a process ends: one thread over pidfds."""

import os
import select
import threading
from collections.abc import Callable
from typing import Final

_EVENTS: Final = select.EPOLLIN | select.EPOLLONESHOT


class DeathWatch:
    """Calls `on_death` from its thread, once for each watched pidfd that becomes readable."""

    def __init__(self, on_death: Callable[[], None]) -> None:
        self._on_death = on_death
        self._epoll = select.epoll()
        self._stop_fd = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, name="death-watch", daemon=True)

    def start(self) -> None:
        self._epoll.register(self._stop_fd, select.EPOLLIN)
        self._thread.start()

    def watch(self, pidfd: int) -> None:
        """The descriptor stays the caller's; closing it ends the watch."""
        self._epoll.register(pidfd, _EVENTS)

    def close(self) -> None:
        """Ends the thread; watched processes are left as they are. May be repeated."""
        if self._epoll.closed:
            return
        os.eventfd_write(self._stop_fd, 1)
        if self._thread.is_alive():
            self._thread.join()
        self._epoll.close()
        os.close(self._stop_fd)

    def _run(self) -> None:
        while True:
            for fd, _ in self._epoll.poll():
                if fd == self._stop_fd:
                    return
                self._on_death()
