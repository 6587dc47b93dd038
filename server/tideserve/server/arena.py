"""Memory that a replica on this machine shares with the frontend, so that a batch is one copy.

The frontend joins callers' bytes where the replica's backend reads them, and cuts answers
from where the replica put its outputs. It is a memfd: it has no name in any file system, so
nothing of it outlives the processes that have it mapped, however they end, and Docker's limit
on /dev/shm does not concern it. Sealed, so that no replica can shrink it under the frontend
(a read beyond a file's end is SIGBUS). Decision 0012 says why each is so.
"""

import fcntl
import logging
import mmap
import os
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from tideserve.server.wire import Absent, Buffer
from tideserve.v1 import replica_pb2
from tideserve.v1.arena import Extents, aligned

logger = logging.getLogger(__name__)

# Pages that a quiet replica's arena keeps for so long cost no page faults when calls come again
# (600 KB into new pages take ten times as long as into known ones: 485 against 50 us).
TRIM_AFTER_S: Final = 10.0
_KEY_BYTES: Final = 16
_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Arena:
    """One life's memory: `capacity_bytes` for leases, and as much again for outcomes. That is
    address space: a page is used from the first write to it until it is given back."""

    def __init__(self, capacity_bytes: int, *, keeps_pages: bool = False) -> None:
        """Raises OSError where the kernel gives none. `keeps_pages`: none is given back, for a
        device may have their addresses."""
        self._keeps_pages = keeps_pages
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._lease_begin = aligned(_KEY_BYTES)
        self._outcome_begin = self._lease_begin + aligned(capacity_bytes)
        self._end = self._outcome_begin + aligned(capacity_bytes)
        self._leases = Extents(self._lease_begin, self._outcome_begin)
        self._places: dict[int, list[int]] = {}
        # Pages are in use up to these two, and leases needed them, of late, up to the third.
        self._leases_end = self._needed_end = self._lease_begin
        self._touched_end = self._outcome_begin
        self._used_s = self._trimmed_s = 0.0
        self._file = os.memfd_create("tideserve-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self._file, self._end)
            fcntl.fcntl(self._file, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(self._file, self._end)
        except BaseException:
            os.close(self._file)
            raise
        self._memory[:_KEY_BYTES] = self._key
        self._view = memoryview(self._memory)
        self.is_mapped = False

    @property
    def used_bytes(self) -> int:
        """Of leases, as of the last `place` or `tend`."""
        return self._leases.used_bytes

    def on_mapped(self) -> None:
        """The replica says that it has it, and needs no path to it any more."""
        if not self.is_mapped:
            self.is_mapped = True
            os.close(self._file)

    @property
    def file(self) -> int:
        """The open memfd, for whoever is to map it."""
        assert not self.is_mapped, "the file is closed"
        return self._file

    def message(self, *, file_sent: bool = False) -> replica_pb2.Arena:
        """For Welcome. The path is one that this user's processes on this machine can open;
        `file_sent`: the replica has the file already."""
        return replica_pb2.Arena(
            path=f"/proc/{os.getpid()}/fd/{self.file}",
            key=self._key,
            lease_begin=self._lease_begin,
            outcome_begin=self._outcome_begin,
            end=self._end,
            file_sent=file_sent,
            keeps_pages=self._keeps_pages,
        )

    def tend(self, held: Mapping[int, object], now_s: float) -> None:
        """Frees the places of all leases but those that the replica still holds, and gives back
        pages that nothing needed for a while."""
        for lease_id in [lease_id for lease_id in self._places if lease_id not in held]:
            self._leases.free(self._places.pop(lease_id)[0])
        if held:
            self._used_s = now_s
        elif self._touched_end > self._outcome_begin and now_s - self._used_s >= TRIM_AFTER_S:
            # No outcome is on its way: those of leases not held are dropped.
            self._remove(self._outcome_begin, self._touched_end)
            self._touched_end = self._outcome_begin
        if now_s - self._trimmed_s >= TRIM_AFTER_S:
            self._trimmed_s = now_s
            self._remove(self._needed_end, self._leases_end)
            self._leases_end, self._needed_end = self._needed_end, self._leases.end

    def place(
        self, lease_id: int, tensors: Sequence[Sequence[Buffer | Absent]]
    ) -> list[int] | None:
        """Writes a lease's tensors, each the join of its pieces; their offsets, or None where
        there is no room. One that is placed already (its answer was lost) stays as it is: the
        replica may be reading it."""
        placed = self._places.get(lease_id)
        if placed is not None:
            return placed
        sizes = [sum(map(len, pieces)) for pieces in tensors]
        at = self._leases.take(sum(map(aligned, sizes)))
        if at is None:
            return None
        offsets = []
        for pieces, size_bytes in zip(tensors, sizes, strict=True):
            offsets.append(at)
            self._write(at, pieces)
            at += aligned(size_bytes)
        self._places[lease_id] = offsets
        self._needed_end = max(self._needed_end, at)
        self._leases_end = max(self._leases_end, at)
        return offsets

    def output(self, offset: int, size_bytes: int) -> memoryview:
        """Where an outcome says that a tensor lies. Raises `ValueError` for other places."""
        if not self._outcome_begin <= offset <= offset + size_bytes <= self._end:
            raise ValueError(
                f"expected an output between {self._outcome_begin} and {self._end} of the arena, "
                f"got {size_bytes} bytes at {offset}"
            )
        self._touched_end = max(self._touched_end, offset + size_bytes)
        return self._view[offset : offset + size_bytes].toreadonly()

    def copy_of(self, offset: int, size_bytes: int) -> memoryview:
        """As `output`, for what is read later than the replica keeps it."""
        return memoryview(bytes(self.output(offset, size_bytes)))

    def close(self) -> None:
        """The memory goes with the last view of it."""
        if not self.is_mapped:
            os.close(self._file)

    def _remove(self, begin: int, end: int) -> None:
        """Gives whole pages back to the system; what is read there from now on is 0."""
        begin = -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE
        if end > begin and not self._keeps_pages:
            # gVisor knows no MADV_REMOVE: there the pages stay.
            with suppress(OSError):
                self._memory.madvise(mmap.MADV_REMOVE, begin, end - begin)

    def _write(self, at: int, pieces: Sequence[Buffer | Absent]) -> None:
        memory = self._memory
        memory.seek(at)
        write = memory.write
        for piece in pieces:
            if isinstance(piece, Absent):
                at = memory.tell()
                end = at + len(piece)
                piece.write_to(self._view[at:end])
                memory.seek(end)
            else:
                # A slice of the view for each takes twice as long, and a large request has dozens.
                write(piece)


class Arenas:
    """Owns the arena of each joined replica, by replica id. `capacity_bytes` 0: none."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity_bytes = capacity_bytes
        self._arenas: dict[str, Arena] = {}

    def open(self, replica_id: str, *, keeps_pages: bool = False) -> Arena | None:
        """A new life's arena; without one, tensors travel in the messages."""
        self.close(replica_id)
        if not self._capacity_bytes:
            return None
        try:
            arena = Arena(self._capacity_bytes, keeps_pages=keeps_pages)
        except OSError as error:
            logger.warning("replica %s gets no shared memory: %s", replica_id, error)
            return None
        self._arenas[replica_id] = arena
        return arena

    def of(self, replica_id: str) -> Arena | None:
        """What its leases may lie in: None until it says that it has mapped it."""
        arena = self._arenas.get(replica_id)
        return arena if arena is not None and arena.is_mapped else None

    def on_mapped(self, replica_id: str) -> None:
        """The replica says so."""
        arena = self._arenas.get(replica_id)
        if arena is not None:
            arena.on_mapped()

    @property
    def mapped(self) -> int:
        """Replicas that share memory. Any thread."""
        return sum(arena.is_mapped for arena in list(self._arenas.values()))

    @property
    def used_bytes(self) -> int:
        """What leases take of it. Any thread."""
        return sum(arena.used_bytes for arena in list(self._arenas.values()))

    def close(self, replica_id: str) -> None:
        """This life is over."""
        arena = self._arenas.pop(replica_id, None)
        if arena is not None:
            arena.close()

    def close_all(self) -> None:
        """The server stops."""
        for replica_id in list(self._arenas):
            self.close(replica_id)
