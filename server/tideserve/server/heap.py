"""The C library's heap, told to keep what it has while requests come."""

import ctypes
import sys
from collections.abc import Mapping
from typing import Any, Final

# mallopt(3). 32 MiB is the most that glibc takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_BYTES: Final = 32 * 1024 * 1024
_KEEP_BYTES: Final = 256 * 1024 * 1024
_OWN_SETTINGS: Final = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")
IDLE_S: Final = 10.0


def keep_freed_memory(environment: Mapping[str, str]) -> None:
    """Lets freed memory stay with the process, in place of giving large requests' and answers'
    pages back with each one and faulting them in anew with the next: of 600 KB requests' CPU
    that is a quarter (docs/performance.md).

    It is no bound: what was in use at a time may stay until `IdleHeap` gives it back. Where the
    C library is not glibc, or the user has settings of its own for it, nothing changes.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None and not any(name in environment for name in _OWN_SETTINGS):
        mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


class IdleHeap:
    """Gives freed memory back to the system, once, when no request came for `IDLE_S`: that takes
    tens of milliseconds after a burst of hundreds of megabytes."""

    def __init__(self) -> None:
        self._trim = _of_glibc("malloc_trim")
        self._requests = 0
        self._last_s = 0.0
        self._is_trimmed = True

    def tend(self, requests: int, now_s: float) -> bool:
        """`requests` that came so far. True: the heap was trimmed now."""
        if requests != self._requests:
            self._requests = requests
            self._last_s = now_s
            self._is_trimmed = False
        elif not self._is_trimmed and now_s - self._last_s >= IDLE_S:
            self._is_trimmed = True
            if self._trim is not None:
                self._trim(0)
            return True
        return False


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
