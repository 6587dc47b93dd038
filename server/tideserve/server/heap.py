"""The C library's heap, told to keep what it has."""

import ctypes
import logging
import sys
from typing import Final

logger = logging.getLogger(__name__)

# mallopt(3). 32 MiB is the most that glibc takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_BYTES: Final = 32 * 1024 * 1024
KEEP_BYTES: Final = 256 * 1024 * 1024


def keep_freed_memory() -> None:
    """Lets up to `KEEP_BYTES` of freed memory stay with the process, in place of giving large
    requests' and answers' pages back with each one and faulting them in anew with the next:
    of 600 KB requests' CPU that is a quarter to a third (docs/performance.md). Where the C
    library is not glibc, nothing changes."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        logger.debug("this C library has no mallopt: large messages cost page faults")
        return
    mallopt(_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES)
    mallopt(_M_TRIM_THRESHOLD, KEEP_BYTES)
