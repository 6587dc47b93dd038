"""Who has which bytes of an arena."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.v1.arena import ALIGNMENT_BYTES, Extents, aligned

BEGIN, END = 128, 128 + 4096


def test_the_first_room_that_fits_is_taken() -> None:
    extents = Extents(BEGIN, END)
    first, second, third = (extents.take(100) for _ in range(3))
    assert (first, second, third) == (128, 256, 384)
    extents.free(256)
    assert extents.take(129) == 512
    assert extents.take(128) == 256
    assert extents.used_bytes == 4 * 128 + 64


def test_no_more_is_given_than_there_is() -> None:
    extents = Extents(BEGIN, END)
    assert extents.take(4097) is None
    assert extents.take(4096) == BEGIN
    assert extents.take(1) is None


def test_what_was_not_given_cannot_be_freed() -> None:
    extents = Extents(BEGIN, END)
    extents.take(100)
    with pytest.raises(KeyError, match="192"):
        extents.free(192)


@given(st.lists(st.one_of(st.integers(1, 1500), st.just(None)), max_size=60), st.data())
def test_no_byte_is_given_twice_and_no_room_is_overlooked(
    steps: list[int | None], data: st.DataObject
) -> None:
    extents = Extents(BEGIN, END)
    taken: dict[int, int] = {}
    for step in steps:
        if step is None:
            if taken:
                freed = data.draw(st.sampled_from(sorted(taken)))
                extents.free(freed)
                del taken[freed]
            continue
        offset = extents.take(step)
        edges = [(BEGIN, BEGIN), *((at, at + size) for at, size in sorted(taken.items())), (END, 0)]
        room = max(after[0] - before[1] for before, after in pairwise(edges))
        assert (offset is not None) == (aligned(step) <= room)
        if offset is not None:
            assert offset % ALIGNMENT_BYTES == 0
            taken[offset] = aligned(step)
        spans = sorted((at, at + size) for at, size in taken.items())
        edges = [(0, BEGIN), *spans, (END, 0)]
        assert all(before[1] <= after[0] for before, after in pairwise(edges))
        assert extents.used_bytes == sum(taken.values())
