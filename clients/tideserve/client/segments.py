"""Segments of shared memory that large tensors are written to, in place of the message.

A segment is a file in /dev/shm that has no name any more once the server has opened it: nothing is
left of it when both have closed it. The client holds a lock on it, by which the server notices
that the client is gone.
"""

import mmap
import os
import secrets
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Final

from tideserve.v1 import segments

FOLDER: Final = segments.FOLDER
MAX_SEGMENTS: Final = 8
MAX_BYTES: Final = 256 * 1024 * 1024
# Requests of about one size share segments.
MIN_SEGMENT_BYTES: Final = 1024 * 1024
# A server that was restarted knows none of them, once. One that does not know those that it was
# told of since either (two servers behind one address, perhaps) is left in peace.
MAX_FORGOTTEN: Final = 2


@dataclass(slots=True, eq=False)
class Segment:
    """`memory` is its content. One request at a time has it."""

    name: str
    byte_size: int
    memory: mmap.mmap
    is_taken: bool = True
    is_stale: bool = False
    """The server does not know it any more."""

    def read(self, offset: int, byte_size: int) -> bytes:
        """A copy of what the server put there. Raises `ValueError` for a place beyond its end."""
        if not 0 <= offset <= offset + byte_size <= self.byte_size:
            raise ValueError(
                f"expected a place within the {self.byte_size} bytes of the segment, got "
                f"{byte_size} bytes at {offset}"
            )
        return self.memory[offset : offset + byte_size]

    def unlink(self) -> None:
        """Takes its name away, which only the server's opening needs. Idempotent."""
        (FOLDER / self.name).unlink(missing_ok=True)


@dataclass(slots=True, eq=False)
class SegmentPool:
    """Owns a client's segments. Any thread may call. `is_on` False: the server takes none."""

    is_on: bool
    _segments: list[Segment] = field(default_factory=list)
    _abandoned: list[str] = field(default_factory=list)
    _forgotten: int = 0
    """How often in a row the server has not known what it was told of."""
    _lock: Lock = field(default_factory=Lock)

    def take(self, byte_size: int) -> Segment | None:
        """The smallest free one that is large enough."""
        with self._lock:
            free = [it for it in self._segments if not it.is_taken and it.byte_size >= byte_size]
            if not self.is_on or not free:
                return None
            segment = min(free, key=lambda it: it.byte_size)
            segment.is_taken = True
            return segment

    def make(self, byte_size: int) -> tuple[Segment | None, list[str]]:
        """A new one, taken and not registered yet, and the names of those that made room for it or
        were abandoned. None: there is no room, or no memory."""
        with self._lock:
            dropped, self._abandoned = self._abandoned, []
            if not self.is_on:
                return None, dropped
            byte_size = max(MIN_SEGMENT_BYTES, 1 << (byte_size - 1).bit_length())
            while not self._has_room(byte_size):
                free = [it for it in self._segments if not it.is_taken]
                if not free or byte_size > MAX_BYTES:
                    return None, dropped
                smallest = min(free, key=lambda it: it.byte_size)
                dropped.append(smallest.name)
                self._drop(smallest)
            segment = _create(byte_size)
            if segment is not None:
                self._segments.append(segment)
            return segment, dropped

    def give_back(self, segment: Segment) -> None:
        """Its request was answered: the server has read what it wanted, and writes no more. Or it
        was never sent."""
        with self._lock:
            segment.is_taken = False
            if segment.is_stale:
                self._drop(segment)
            else:
                self._forgotten = 0

    def abandon(self, segment: Segment) -> None:
        """Its request has ended here, but perhaps not at the server, which may still write outputs
        into it: nobody reads them."""
        with self._lock:
            if not segment.is_stale and self.is_on:
                self._abandoned.append(segment.name)
        self.discard(segment)

    def discard(self, segment: Segment) -> None:
        """Takes back one that the server does not know."""
        segment.is_stale = True
        self.give_back(segment)

    def forget(self, segment: Segment) -> None:
        """The server was told of this one and does not know it: it has none of those that there
        are. It is still to be given back."""
        with self._lock:
            if segment.is_stale:
                return
            # But those that it was told of later it may have: they are to be unregistered.
            later = self._segments[self._segments.index(segment) + 1 :]
            self._abandoned += [it.name for it in later if not it.is_stale]
            self._forget_all()
            self._forgotten += 1
            self.is_on = self.is_on and self._forgotten < MAX_FORGOTTEN

    def switch_off(self) -> None:
        """The server takes no segments: makes no more, and drops these."""
        with self._lock:
            self.is_on = False
            self._forget_all()

    def close(self) -> list[str]:
        """Drops them all, those in use as they are given back, and makes no more; the names of those
        to unregister."""
        with self._lock:
            names = [it.name for it in self._segments if not it.is_stale]
            names += self._abandoned
            self._abandoned.clear()
        self.switch_off()
        return names

    # --- inside ---------------------------------------------------------------------------

    def _has_room(self, byte_size: int) -> bool:
        held_bytes = sum(it.byte_size for it in self._segments)
        return len(self._segments) < MAX_SEGMENTS and held_bytes + byte_size <= MAX_BYTES

    def _forget_all(self) -> None:
        for segment in list(self._segments):
            segment.is_stale = True
            if not segment.is_taken:
                self._drop(segment)

    def _drop(self, segment: Segment) -> None:
        self._segments.remove(segment)
        # Whoever was interrupted while copying may still refer to it: then it goes with that.
        with suppress(BufferError):
            segment.memory.close()


def is_available() -> bool:
    """Whether this system has such segments."""
    return sys.platform == "linux" and FOLDER.is_dir()


def _create(byte_size: int) -> Segment | None:
    """Its pages are there from the start: writing to one that cannot be got kills the process.

    It gets its name when it is whole and locked. What bears such a name without a lock was left by
    a client that was killed before the server opened it, and goes.
    """
    if sys.platform != "linux":
        return None
    import fcntl

    name = f"{segments.PREFIX}{secrets.token_hex(16)}"
    try:
        segments.remove_orphans(FOLDER)
        room = os.statvfs(FOLDER)
        if byte_size > room.f_bavail * room.f_frsize // 2:
            return None
        file = os.open(FOLDER, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH)
        os.posix_fallocate(file, 0, byte_size)
        memory = mmap.mmap(file, byte_size)
        folder = os.open(FOLDER, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # With a folder given, a link in /proc is followed (linkat(2), AT_SYMLINK_FOLLOW).
            os.link(f"/proc/self/fd/{file}", name, dst_dir_fd=folder)
        finally:
            os.close(folder)
    except OSError:
        return None
    finally:
        # The mapping has a descriptor of its own, and with it the lock.
        os.close(file)
    return Segment(name, byte_size, memory)
