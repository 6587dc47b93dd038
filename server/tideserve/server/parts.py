"""A large message in the parts that it came in, so that the only copy of its tensors is the one into
their batch."""

from bisect import bisect_right
from collections.abc import MutableSequence, Sequence
from itertools import accumulate
from typing import Any, Final

from tideserve.server.wire import Buffer

#: A request that has waited for so long lets go of what was read with it: most have left by then, and
#: a copy of the others costs little beside their wait.
OWN_AFTER_S: Final = 1.0
#: Copied so at a time, within 10 ms; it is looked for again soon.
OWN_BYTES: Final = 64 * 1024 * 1024


class Parts:
    """Owns `pieces`, in order, `size_bytes` of them in all; each is bytes of its own or a view of
    what was read with it."""

    __slots__ = ("_ends", "pieces", "size_bytes")

    def __init__(self, pieces: list[Buffer], size_bytes: int) -> None:
        self.pieces = pieces
        self.size_bytes = size_bytes  # known to whoever has them; to look at each takes 2 us
        self._ends: list[int] | None = None  # of each piece, once asked for

    def __len__(self) -> int:
        return self.size_bytes

    def to_bytes(self) -> bytes:
        """All of it, for whoever needs it in one piece."""
        return b"".join(self.pieces)

    def own(self) -> int:
        """As the function, of its pieces."""
        return own(self.pieces)

    def cut(self, begin: int, end: int) -> list[Buffer]:
        """What lies there, without a copy; no more than there is."""
        first = self.pieces[0]
        if begin < len(first):
            if end <= len(first):
                return [memoryview(first)[begin:end]]
            if end == self.size_bytes:  # as where a request has one tensor
                return [memoryview(first)[begin:], *self.pieces[1:]]
        ends = self._ends
        if ends is None:
            ends = self._ends = list(accumulate([len(piece) for piece in self.pieces]))
        found: list[Buffer] = []
        number = bisect_right(ends, begin)
        at = ends[number - 1] if number else 0
        while at < end and number < len(ends):
            piece, stop = self.pieces[number], ends[number]
            if at >= begin and stop <= end:
                found.append(piece)
            else:
                found.append(memoryview(piece)[max(begin - at, 0) : end - at])
            at = stop
            number += 1
        return found

    def read(self, begin: int, end: int) -> bytes:
        """A copy of what lies there, as `cut`."""
        return b"".join(self.cut(begin, end))


def let_go(whole: bytes, kept: Sequence[MutableSequence[Any]], most: int) -> None:
    """Copies what is kept of `whole`, all that was read at a time, where that is less than half of
    it, for each view keeps all of it. Views of it are among the last `most` of each list."""
    places: list[tuple[MutableSequence[Any], int]] = []
    kept_bytes = 0
    for pieces in kept:
        for at in range(max(0, len(pieces) - most), len(pieces)):
            piece = pieces[at]
            if isinstance(piece, memoryview) and piece.obj is whole:
                places.append((pieces, at))
                kept_bytes += len(piece)
    if 2 * kept_bytes >= len(whole):
        return
    for pieces, at in places:
        pieces[at] = bytes(pieces[at])


def own(pieces: MutableSequence[Any]) -> int:
    """Views that have less than half of what was read with them become bytes of their own; how many
    bytes were copied."""
    held: dict[int, int] = {}  # bytes by what was read with them
    for piece in pieces:
        if isinstance(piece, memoryview):
            whole = id(piece.obj)
            held[whole] = held.get(whole, 0) + len(piece)
    copied_bytes = 0
    owned: list[Any] = []
    for piece in pieces:
        if isinstance(piece, memoryview) and 2 * held[id(piece.obj)] < len(piece.obj):  # type: ignore[arg-type]
            copied_bytes += len(piece)
            owned.append(bytes(piece))
        else:
            owned.append(piece)
    if copied_bytes:
        # Not one by one: in the middle of a deque that is a walk each time.
        pieces.clear()
        pieces.extend(owned)
    return copied_bytes
