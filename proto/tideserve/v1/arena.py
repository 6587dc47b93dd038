"""How both ends of the replica plane lay out the memory they share (`replica.proto`, Arena)."""

from typing import Final

# Tensors begin at multiples of this: a cache line, and what vector instructions want.
ALIGNMENT_BYTES: Final = 64
# Batches with fewer bytes travel in the message, where they cost nothing of their own.
MIN_BYTES: Final = 16_384


def aligned(size_bytes: int) -> int:
    """The next multiple of ALIGNMENT_BYTES."""
    return -size_bytes % ALIGNMENT_BYTES + size_bytes


class Extents:
    """Owns which bytes from `begin` to `end` are taken. First fit from the beginning, so that a
    few pages serve all of a quiet time: at most a handful are taken at a time."""

    def __init__(self, begin: int, end: int) -> None:
        self._begin = begin
        self._end = end
        self._taken: list[tuple[int, int]] = []

    @property
    def used_bytes(self) -> int:
        """Of all that is taken."""
        return sum(stop - start for start, stop in list(self._taken))

    @property
    def end(self) -> int:
        """Of the last that is taken."""
        return self._taken[-1][1] if self._taken else self._begin

    def take(self, size_bytes: int) -> int | None:
        """The offset of so many free bytes, aligned; None: there is no such room."""
        size_bytes = aligned(size_bytes)
        start = self._begin
        for at, (taken, stop) in enumerate(self._taken):
            if taken - start >= size_bytes:
                self._taken.insert(at, (start, start + size_bytes))
                return start
            start = stop
        if self._end - start < size_bytes:
            return None
        self._taken.append((start, start + size_bytes))
        return start

    def free(self, offset: int) -> None:
        """Gives back what `take` gave at this offset; raises KeyError for anything else."""
        for at, (start, _) in enumerate(self._taken):
            if start == offset:
                del self._taken[at]
                return
        raise KeyError(offset)
