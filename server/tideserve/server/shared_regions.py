"""Regions of shared memory that clients registered: tensors that do not travel.

A client may shrink its segment at any time, and touching a mapping beyond the end of its file
kills the process that touches it. Segments are therefore read and written through their file,
never mapped: what is missing is a short read (docs/decisions/0011).

A client that holds a lock (flock) on its segment as it registers it is one whose death is noticed:
the kernel drops the lock with the process. Tideserve's own client does; a region of a client that
holds none, as Triton's, stays until it is unregistered.
"""

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tideserve.server.errors import (
    AlreadyExistsError,
    InvalidRequestError,
    MessageTooLargeError,
    NotFoundError,
    RegionLimitError,
)
from tideserve.server.placement import Place
from tideserve.server.wire import Buffer
from tideserve.v1.segments import (
    FOLDER,
    MIN_OUTPUT_BYTES,
    PREFIX,
    aligned,
    remove_orphans,
)

# Each is an open file; many systems allow a process 1,024 of them, connections included.
MAX_REGIONS: Final = 512
MAX_NAME_BYTES: Final = 256
# Of a file's name on Linux.
MAX_KEY_BYTES: Final = 255
# Names in a sentence.
SHOWN_NAMES: Final = 8
# Non-blocking: opening a file that its owner holds a lease on would wait up to 45 s for it.
_OPEN: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


@dataclass(slots=True, eq=False)
class SharedRegion:
    """A stretch of a segment. Its file stays open for as long as anything refers to it: a request
    that was admitted can be answered into a region that was unregistered since."""

    name: str
    key: str
    offset: int
    byte_size: int
    file: int
    is_locked: bool = False
    """Whether its client locked it: it goes when the lock does."""

    def __del__(self) -> None:
        os.close(self.file)


@dataclass(frozen=True, slots=True)
class RegionSlice:
    """A tensor's place in a region, within its bounds."""

    region: SharedRegion
    place: Place

    def __len__(self) -> int:
        """Bytes."""
        return self.place.byte_size

    @property
    def _begin(self) -> int:
        return self.region.offset + self.place.offset

    def check(self) -> None:
        """Raises `InvalidRequestError` where the segment has become too short."""
        end = self._begin + self.place.byte_size
        if os.fstat(self.region.file).st_size < end:
            raise _truncated(self.region, end)

    def read(self) -> bytes:
        """A copy. Raises `InvalidRequestError` where the segment has become too short."""
        try:
            data = os.pread(self.region.file, self.place.byte_size, self._begin)
        except OSError as error:
            raise _unusable(self.region, "read", error) from error
        if len(data) != self.place.byte_size:
            raise _truncated(self.region, self._begin + self.place.byte_size)
        return data

    def read_into(self, target: memoryview) -> None:
        """A copy, in as much room. Raises as `read`."""
        try:
            size_bytes = os.preadv(self.region.file, (target,), self._begin)
        except OSError as error:
            raise _unusable(self.region, "read", error) from error
        if size_bytes != self.place.byte_size:
            raise _truncated(self.region, self._begin + self.place.byte_size)

    def write(self, data: Buffer) -> None:
        """Raises `InvalidRequestError` where the segment has become too short, or memory is out."""
        at = self._begin
        try:
            # A write beyond the end would make it longer again.
            if os.fstat(self.region.file).st_size < at + len(data):
                raise _truncated(self.region, at + len(data))
            written = os.pwrite(self.region.file, data, at)
        except OSError as error:
            raise _unusable(self.region, "written", error) from error
        if written != len(data):
            raise InvalidRequestError(
                f"shared memory region '{self.region.name}': expected to write {len(data)} bytes, "
                f"got {written} written: is the segment's memory used up?"
            )


class SpareRoom:
    """Owns which bytes of a place are taken: those of one answer, from the beginning."""

    def __init__(self, whole: RegionSlice) -> None:
        self._whole = whole
        self._taken_bytes = 0

    def take(self, byte_size: int) -> RegionSlice | None:
        """Of so many bytes. None: there is no such room, or they are not worth it."""
        whole = self._whole.place
        if not MIN_OUTPUT_BYTES <= byte_size <= whole.byte_size - self._taken_bytes:
            return None
        place = Place(whole.region, whole.offset + self._taken_bytes, byte_size)
        self._taken_bytes += aligned(byte_size)
        return RegionSlice(self._whole.region, place)


@dataclass(slots=True)
class SharedRegions:
    """Owns the registered regions, by name. `max_request_bytes`: what one request may read."""

    max_request_bytes: int
    folder: Path = FOLDER
    _regions: dict[str, SharedRegion] = field(default_factory=dict)

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Raises `AlreadyExistsError` for a name that is taken, `NotFoundError` for a segment
        that is not there, `RegionLimitError`, `InvalidRequestError`."""
        if not name or len(name.encode()) > MAX_NAME_BYTES:
            raise InvalidRequestError(
                f"shared memory region: expected a name of 1 to {MAX_NAME_BYTES} bytes, "
                f"got {len(name.encode())}"
            )
        if name in self._regions:
            raise AlreadyExistsError(
                f"shared memory region '{name}' is registered already: unregister it first, or "
                "choose another name"
            )
        if len(self._regions) >= MAX_REGIONS:
            raise RegionLimitError(
                f"expected at most {MAX_REGIONS} shared memory regions: unregister some first"
            )
        if byte_size == 0:
            raise InvalidRequestError(
                f"shared memory region '{name}': expected a byte_size of 1 or more, got 0"
            )
        file = self._open(name, key)
        region = SharedRegion(name, key, offset, byte_size, file)
        held = os.fstat(file)
        if not stat.S_ISREG(held.st_mode):
            raise InvalidRequestError(
                f"shared memory region '{name}': expected a POSIX shared memory segment, got a "
                f"file of another kind at key '{key}'"
            )
        if offset + byte_size > held.st_size:
            raise InvalidRequestError(
                f"shared memory region '{name}': expected offset + byte_size within the "
                f"{held.st_size} bytes of '{key}', got {offset} + {byte_size}"
            )
        # Of a client of ours that was killed before this call came the lock is gone already.
        region.is_locked = _is_locked(file) or _file_name(key).startswith(PREFIX)
        self._regions[name] = region

    def unregister(self, name: str) -> None:
        """That region, or all of them for ''. One that is not there is no mistake, as in Triton."""
        if name:
            self._regions.pop(name, None)
        else:
            self._regions.clear()

    def status(self, name: str) -> list[SharedRegion]:
        """That region, or all of them for ''. Raises `NotFoundError`."""
        if not name:
            return list(self._regions.values())
        region = self._regions.get(name)
        if region is None:
            raise NotFoundError(self._unknown(name))
        return [region]

    def slice(self, place: Place, where: str) -> RegionSlice:
        """Raises `InvalidRequestError` for a region that is not there, or is too small. `where`
        names the tensor in a sentence."""
        region = self._regions.get(place.region)
        if region is None:
            raise InvalidRequestError(f"{where}: {self._unknown(place.region)}")
        if place.offset + place.byte_size > region.byte_size:
            raise InvalidRequestError(
                f"{where}: expected a place within the {region.byte_size} bytes of shared memory "
                f"region '{region.name}', got {place.byte_size} bytes at offset {place.offset}"
            )
        return RegionSlice(region, place)

    def check_size(self, given_bytes: int, where: str) -> None:
        """Raises `MessageTooLargeError` for more than a replica could be sent."""
        if given_bytes > self.max_request_bytes:
            raise MessageTooLargeError(
                f"{where}: expected inputs of at most {self.max_request_bytes} bytes in shared "
                f"memory (--max-message-bytes), got {given_bytes}"
            )

    def sweep(self) -> list[str]:
        """Unregisters those whose client locked them and is gone; their names. Removes segments
        whose client was killed before they were registered."""
        remove_orphans(self.folder)
        gone = [
            region.name
            for region in self._regions.values()
            if region.is_locked and not _is_locked(region.file)
        ]
        for name in gone:
            del self._regions[name]
        return gone

    def close(self) -> None:
        """Forgets them all. Idempotent."""
        self._regions.clear()

    # --- inside ---------------------------------------------------------------------------

    def _open(self, name: str, key: str) -> int:
        what = f"shared memory region '{name}'"
        file_name = _file_name(key)
        if (
            file_name in ("", ".", "..")
            or "/" in file_name
            or "\0" in file_name
            or len(file_name.encode()) > MAX_KEY_BYTES
        ):
            raise InvalidRequestError(
                f"{what}: expected the key of a POSIX shared memory segment, such as '/input', "
                f"got '{key}'"
            )
        try:
            return os.open(self.folder / file_name, _OPEN)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"{what}: there is no segment '{key}' on the server's machine: create it before "
                "it is registered; a server in a container needs the client's /dev/shm"
            ) from error
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise RegionLimitError(f"{what}: the server has no file left to open") from error
            raise InvalidRequestError(
                f"{what}: expected a segment that the server may read and write at '{key}', got: "
                f"{error.strerror}"
            ) from error

    def _unknown(self, name: str) -> str:
        names = ", ".join(self._shown()) or "none"
        return f"shared memory region '{name}' is not registered, registered are: {names}"

    def _shown(self) -> Iterator[str]:
        for count, name in enumerate(self._regions):
            if count == SHOWN_NAMES:
                yield f"and {len(self._regions) - SHOWN_NAMES} more"
                return
            yield f"'{name}'"


def _file_name(key: str) -> str:
    """In the folder of segments: a key may begin with a slash, as in shm_open(3)."""
    return key.removeprefix("/")


def _is_locked(file: int) -> bool:
    """Whether somebody else holds a lock on it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    fcntl.flock(file, fcntl.LOCK_UN)
    return False


def _truncated(region: SharedRegion, end: int) -> InvalidRequestError:
    return InvalidRequestError(
        f"shared memory region '{region.name}': expected its segment '{region.key}' to keep at "
        f"least {end} bytes, got fewer: it was cut short after it was registered"
    )


def _unusable(region: SharedRegion, what: str, error: OSError) -> InvalidRequestError:
    return InvalidRequestError(
        f"shared memory region '{region.name}': its segment '{region.key}' cannot be {what}: "
        f"{error.strerror}"
    )
