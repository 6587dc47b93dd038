"""What both ends know of the segments that Tideserve's own client makes in /dev/shm.

Such a segment has its name only until the server has opened it, and its client holds a lock (flock)
on it from before it gets the name. One with a name and without a lock was left by a client that
was killed in between: nobody will ever ask for it.
"""

import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

PREFIX: Final = "tideserve-client-"
# POSIX shared memory on Linux (https://man7.org/linux/man-pages/man7/shm_overview.7.html).
FOLDER: Final = Path("/dev/shm")  # noqa: S108 - where segments are, no temporary file of ours

# Parameters of a request: a place for outputs. Those that are large enough to be worth it are put
# there one after the other, as far as they fit, and say so as Triton's do; the others travel in
# the answer. So a caller needs to know neither their names nor their sizes beforehand.
OUTPUTS_REGION: Final = "tideserve_outputs_region"
OUTPUTS_BYTE_SIZE: Final = "tideserve_outputs_byte_size"
OUTPUTS_OFFSET: Final = "tideserve_outputs_offset"
# Smaller ones cost less in the answer.
MIN_OUTPUT_BYTES: Final = 131_072
# Where a tensor may begin: a cache line.
ALIGNMENT_BYTES: Final = 64


def aligned(byte_size: int) -> int:
    """The next multiple of ALIGNMENT_BYTES."""
    return -(-byte_size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def remove_orphans(folder: Path) -> int:
    """Removes this user's segments whose client is gone; how many. Those of others stay."""
    if sys.platform != "linux":
        return 0
    import fcntl

    removed = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for name in [entry.name for entry in entries if entry.name.startswith(PREFIX)]:
            path = folder / name
            with suppress(OSError):  # another user's, or gone meanwhile
                file = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                    removed += 1
                finally:
                    os.close(file)
    return removed
