"""The memory that this replica shares with the frontend for one life (`replica.proto`, Arena)."""

import logging
import mmap
import os
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tideserve.replica.errors import ArenaError, WireError
from tideserve.v1 import replica_pb2
from tideserve.v1.arena import MIN_BYTES, Extents, aligned

Data = bytes | npt.NDArray[Any]
#: Room for a tensor: its offset in the arena, None: it is not there, and its memory.
Reserved = tuple[int | None, memoryview]
_LOG: Final = logging.getLogger(__name__)


class Arena:
    """Owns the mapping, and which bytes of its second part outcomes take. Any thread."""

    def __init__(
        self, memory: mmap.mmap, outcome_begin: int, end: int, *, keeps_pages: bool = False
    ) -> None:
        self._view = memoryview(memory)
        self.keeps_pages = keeps_pages
        self._outcome_begin = outcome_begin
        self._lock = Lock()
        self._outcomes = Extents(outcome_begin, end)

    @property
    def used_bytes(self) -> int:
        """Of outcomes that the frontend may still read."""
        with self._lock:
            return self._outcomes.used_bytes

    @property
    def address(self) -> int:
        """Where this process has it mapped."""
        return int(np.frombuffer(self._view, np.uint8).ctypes.data)

    @property
    def size_bytes(self) -> int:
        """Of all of it."""
        return len(self._view)

    def tensor(self, offset: int, size_bytes: int) -> memoryview:
        """An input of a lease. Raises `WireError` for another place."""
        if not 0 <= offset <= offset + size_bytes <= self._outcome_begin:
            raise WireError(
                f"expected an input in the arena's first {self._outcome_begin} bytes, got "
                f"{size_bytes} bytes at {offset}"
            )
        return self._view[offset : offset + size_bytes].toreadonly()

    def room(self, offset: int, size_bytes: int) -> memoryview:
        """Of what `take` gave, to be written."""
        return self._view[offset : offset + size_bytes]

    def take(self, size_bytes: int) -> int | None:
        """The offset of room for an outcome's tensors. None: there is none."""
        with self._lock:
            return self._outcomes.take(size_bytes)

    def free(self, offset: int) -> None:
        """The Exchange that carried this outcome was answered."""
        with self._lock:
            self._outcomes.free(offset)

    def write(self, at: int, data: Data) -> None:
        """Copies a tensor into what `take` gave."""
        target = self._view[at : at + size_of(data)]
        if isinstance(data, bytes):
            target[:] = data
        elif data.nbytes:
            np.frombuffer(target, data.dtype).reshape(data.shape)[...] = data


class Outbox:
    """Where one lease's outputs may be put. `extent`: what they took, None: nothing."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self.extent: int | None = None

    def reserve(self, sizes: Sequence[int]) -> list[Reserved] | None:
        """Room for tensors of these bytes, for a model to write them there; None as in `put`."""
        offsets = self._take(sizes)
        if offsets is None:
            return None
        arena = self._arena
        return [
            (at, arena.room(at, size_bytes)) for at, size_bytes in zip(offsets, sizes, strict=True)
        ]

    def put(self, tensors: Sequence[Data]) -> list[int] | None:
        """Copies them; the offset of each. None where they are too small for it or there is no
        room. What was reserved is given back."""
        sizes = [size_of(data) for data in tensors]
        if self.extent is not None:
            self._arena.free(self.extent)
            self.extent = None
        offsets = self._take(sizes)
        if offsets is not None:
            for at, data in zip(offsets, tensors, strict=True):
                self._arena.write(at, data)
        return offsets

    def _take(self, sizes: Sequence[int]) -> list[int] | None:
        if sum(sizes) < MIN_BYTES:
            return None
        at = self.extent = self._arena.take(sum(map(aligned, sizes)))
        return None if at is None else _offsets(at, sizes)


def size_of(data: Data) -> int:
    """Bytes."""
    return len(data) if isinstance(data, bytes) else data.nbytes


def _offsets(at: int, sizes: Sequence[int]) -> list[int]:
    """Of tensors, the first of which lies at `at`."""
    offsets = []
    for size_bytes in sizes:
        offsets.append(at)
        at += aligned(size_bytes)
    return offsets


def open_arena(message: replica_pb2.Arena, file: int | None = None) -> Arena | None:
    """Maps it, from the file that the frontend passed where it did so; closes that. None where
    this process cannot: another machine, or a container or user without a unix socket."""
    try:
        file = _open(message) if file is None else file
        try:
            return Arena(
                _map(message, file),
                message.outcome_begin,
                message.end,
                keeps_pages=message.keeps_pages,
            )
        finally:
            os.close(file)
    except (OSError, ValueError, ArenaError) as error:
        _LOG.info("tensors travel in messages, for the frontend's memory is not shared: %s", error)
        return None


def _open(message: replica_pb2.Arena) -> int:
    path = message.path
    if message.file_sent:
        raise ArenaError("expected the memory's file beside the Welcome, got none")
    # In another container the same path may be anything: nothing but a plain file is opened.
    if not Path(path).is_file():
        raise ArenaError(f"expected memory at {path}, got something else")
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)


def _map(message: replica_pb2.Arena, file: int) -> mmap.mmap:
    size_bytes = os.fstat(file).st_size
    if size_bytes != message.end:
        raise ArenaError(f"expected {message.end} bytes of memory, got {size_bytes}")
    memory = mmap.mmap(file, size_bytes)
    if memory[: len(message.key)] != message.key:
        memory.close()
        raise ArenaError("expected memory that begins with the frontend's key, got another")
    return memory
