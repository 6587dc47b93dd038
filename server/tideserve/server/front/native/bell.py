"""What ends a wait for sockets from another thread."""

import os
import threading


class Bell:
    """Owns an eventfd. `ring` from any thread, before `open` and after `close` too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rung = False
        self.fd = -1

    def open(self) -> int:
        """The file to wait for."""
        with self._lock:
            self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            if self._rung:
                os.eventfd_write(self.fd, 1)
        return self.fd

    def ring(self) -> None:
        """Makes the file readable."""
        with self._lock:
            if not self._rung:
                self._rung = True
                if self.fd >= 0:
                    os.eventfd_write(self.fd, 1)

    def quiet(self) -> None:
        """Whoever waited has heard it."""
        with self._lock:
            self._rung = False
            os.eventfd_read(self.fd)

    def close(self) -> None:
        with self._lock:
            os.close(self.fd)
            self.fd = -1
