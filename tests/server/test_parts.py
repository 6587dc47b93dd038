"""Messages in parts: what is read of them, and what they keep."""

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.server.pieces import parts_of
from tideserve.server.parts import let_go, own
from tideserve.server.wire import Buffer


@given(
    payload=st.binary(min_size=1, max_size=200),
    cuts=st.lists(st.integers(0, 200), max_size=20),
    views=st.booleans(),
    ranges=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 210)), min_size=1, max_size=8),
)
def test_any_part_of_it_is_that_of_the_whole(
    payload: bytes, cuts: list[int], views: bool, ranges: list[tuple[int, int]]
) -> None:
    parts = parts_of(payload, cuts, views=views)
    assert len(parts) == len(payload)
    assert parts.to_bytes() == payload
    for begin, size in ranges:
        begin = min(begin, len(payload))
        expected = payload[begin : begin + size]
        assert parts.read(begin, begin + size) == expected
        assert b"".join(parts.cut(begin, begin + size)) == expected


@pytest.mark.parametrize(("kept_bytes", "is_copied"), [(500, False), (499, True)])
def test_less_than_half_of_what_was_read_is_copied(kept_bytes: int, is_copied: bool) -> None:
    whole, other = bytes(range(250)) * 4, bytes(1000)
    view = memoryview(whole)
    first: list[Buffer] = [memoryview(other)[:10], b"own", view[:300]]
    second: list[Buffer] = [view[400 : 400 + kept_bytes - 300]]
    before = [bytes(piece) for piece in first + second]
    let_go(whole, [first, second], 2)
    assert [bytes(piece) for piece in first + second] == before
    assert isinstance(first[0], memoryview)  # of another read
    assert [isinstance(piece, bytes) for piece in (first[2], second[0])] == [is_copied] * 2


@given(
    payload=st.binary(min_size=1, max_size=200),
    cuts=st.lists(st.integers(0, 200), max_size=9),
    beside_bytes=st.integers(0, 300),
)
def test_what_is_less_than_half_of_what_was_read_becomes_its_own(
    payload: bytes, cuts: list[int], beside_bytes: int
) -> None:
    whole = payload + bytes(beside_bytes)
    parts = parts_of(payload, cuts)
    for at, piece in enumerate(parts.pieces):
        begin = sum(map(len, parts.pieces[:at]))
        parts.pieces[at] = memoryview(whole)[begin : begin + len(piece)]
    copied_bytes = parts.own()
    is_little = len(payload) < beside_bytes
    assert copied_bytes == (len(payload) if is_little else 0)
    assert all(isinstance(piece, bytes) == is_little for piece in parts.pieces)
    assert parts.to_bytes() == payload


def test_a_deque_is_as_good() -> None:
    view = memoryview(bytes(range(100)))
    pieces = deque([view[:10], b"own", view[20:30]])
    assert own(pieces) == 20
    assert list(pieces) == [bytes(range(10)), b"own", bytes(range(20, 30))]
    assert not any(isinstance(piece, memoryview) for piece in pieces)
