"""Messages in parts, for tests."""

from itertools import pairwise

from tideserve.server.parts import Parts
from tideserve.server.wire import Buffer


def parts_of(payload: bytes, cuts: list[int], *, views: bool = True) -> Parts:
    """The message in pieces that end there."""
    places = sorted({cut % (len(payload) + 1) for cut in cuts} | {0, len(payload)})
    whole = memoryview(payload) if views else payload
    pieces: list[Buffer] = [whole[begin:end] for begin, end in pairwise(places)]
    return Parts(pieces, len(payload))
