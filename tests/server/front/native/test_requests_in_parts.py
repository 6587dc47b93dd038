"""Large requests that stay in the parts they came in: what comes of them, and what they hold."""

import tracemalloc
from collections.abc import Iterator
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.front.native.test_hostile_clients import (
    BIDI,
    FIRST_ID,
    connected,
    data,
    headers,
    message,
    shared,
)
from tideserve.server.front import Call, Event, StreamMessage
from tideserve.server.front.native.connection import Connection
from tideserve.server.front.native.messages import PARTS_BYTES
from tideserve.server.parts import OWN_AFTER_S, OWN_BYTES
from tideserve.v1 import http2

READ_BYTES = 256 * 1024
FRAME_BYTES = 16 * 1024
#: What anything that is held may take, while nobody ends a call, and whatever becomes of others.
SHARE, WORST_SHARE = 2, 20
SLACK_BYTES = 256 * 1024
UNKNOWN = 77

sizes = st.sampled_from([0, 10, 5_000, PARTS_BYTES - 1, PARTS_BYTES, 150_000, 300_000])


@settings(max_examples=100, deadline=None)
@given(
    requests=st.lists(st.tuples(sizes, st.booleans(), st.booleans()), min_size=1, max_size=4),
    frames=st.lists(st.sampled_from([1, 9, 4_096, FRAME_BYTES, 70_000]), min_size=1, max_size=6),
    turns=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    cuts=st.lists(st.integers(0, 10**6), max_size=8),
)
def test_any_frames_and_reads_give_the_same_requests(
    requests: list[tuple[int, bool, bool]], frames: list[int], turns: list[int], cuts: list[int]
) -> None:
    of = shared()
    connection = connected(of)
    sent: dict[int, bytes] = {}
    left: dict[int, bytes] = {}
    wire = bytearray()
    for number, (size, is_stream, _) in enumerate(requests):
        stream = 2 * number + 1
        sent[stream] = bytes((number + 1,)) * (size // 2) + bytes(size - size // 2)
        left[stream] = message(sent[stream])
        wire += headers(stream, BIDI) if is_stream else headers(stream)
    step = 0
    while left:
        stream = list(left)[turns[step % len(turns)] % len(left)]
        size = frames[step % len(frames)]
        # Some hundred frames of one byte, and the rest at once.
        part = left[stream][: size if step < 200 else None]
        rest = left.pop(stream)[len(part) :]
        ends_apart = requests[stream // 2][2]
        wire += data(stream, part, ends=not rest and not ends_apart)
        if rest:
            left[stream] = rest
        elif ends_apart:
            wire += data(stream, b"", ends=True)
        step += 1
    places = sorted({cut % (len(wire) + 1) for cut in cuts} | {0, len(wire)})
    got: dict[int, bytes] = {}
    for begin, end in pairwise(places):
        for event in connection.receive(bytes(wire[begin:end]), 0.0):
            if isinstance(event, Call) and event.path != BIDI:
                got[event.call_id - FIRST_ID] = event.whole()
                assert event.parts is None or not event.payload
            elif isinstance(event, StreamMessage):
                got[event.call_id - FIRST_ID] = event.payload
    assert got == sent
    assert of.held_bytes == 0


def test_only_a_large_unary_request_comes_in_parts() -> None:
    connection = connected()
    for stream, size, in_parts in ((1, PARTS_BYTES, True), (3, PARTS_BYTES - 1, False)):
        sent = message(bytes(size))
        begin = headers(stream) + data(stream, sent[:50_000])
        (call,) = connection.receive(begin + data(stream, sent[50_000:], ends=True), 0.0)
        assert isinstance(call, Call)
        assert (call.parts is not None) is in_parts
        assert call.whole() == bytes(size)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def taken_bytes() -> int:
    return tracemalloc.get_traced_memory()[0]


def opened(connection: Connection, streams: range) -> None:
    """Each of these begins a message of 4 MB."""
    for stream in streams:
        prefix = http2.MESSAGE_PREFIX.pack(0, 4_000_000)
        connection.receive(headers(stream) + data(stream, prefix), 0.0)


def left_alone(connection: Connection, frame_bytes: int) -> tuple[int, int]:
    """One stream has so much of each read, and the other that had the rest is cancelled: bytes
    taken before, and bytes of the one."""
    opened(connection, range(1, 5, 2))
    before_bytes = taken_bytes()
    rest = data(3, bytes(FRAME_BYTES))
    for _ in range(15):
        read = data(1, bytes(frame_bytes)) + rest * ((READ_BYTES - frame_bytes) // len(rest))
        assert connection.receive(read, 0.0) == []
    connection.receive(http2.frame(http2.RST_STREAM, 0, 3, bytes(4)), 0.0)
    return before_bytes, 15 * frame_bytes


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("frame_bytes", [4_500, FRAME_BYTES, READ_BYTES // 3])
def test_a_little_of_each_read_holds_no_more_than_that(frame_bytes: int) -> None:
    """The rest of what was read was garbage, and was kept with it."""
    of = shared()
    connection = connected(of)
    opened(connection, range(1, 3, 2))
    filler = http2.frame(UNKNOWN, 0, 0, bytes(60_000))
    before_bytes = taken_bytes()
    for _ in range(40):
        read = data(1, bytes(frame_bytes))
        while len(read) < READ_BYTES:
            read += filler
        assert connection.receive(read, 0.0) == []
    assert of.held_bytes == 40 * frame_bytes
    assert taken_bytes() - before_bytes < SHARE * of.held_bytes + SLACK_BYTES


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("path", ["unary", "whole"])
def test_the_end_of_a_request_keeps_little_of_what_came_behind_it(path: str) -> None:
    of = shared()
    connection = connected(of)
    filler = http2.frame(UNKNOWN, 0, 0, bytes(60_000)) * 4
    calls: list[Event] = []
    before_bytes = taken_bytes()
    for stream in range(1, 41, 2):
        sent = message(bytes(PARTS_BYTES))
        cut = 50_000 if path == "unary" else 0
        if cut:
            connection.receive(headers(stream) + data(stream, sent[:cut]), 0.0)
        head = b"" if cut else headers(stream)
        calls += connection.receive(head + data(stream, sent[cut:], ends=True) + filler, 0.0)
    assert all(isinstance(call, Call) and call.parts is not None for call in calls)
    assert len(calls) == 20
    assert taken_bytes() - before_bytes < SHARE * len(calls) * PARTS_BYTES + SLACK_BYTES


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("frame_bytes", [4_500, 13_000, FRAME_BYTES])
def test_what_is_left_when_others_end_holds_a_bounded_multiple(frame_bytes: int) -> None:
    """One stream's part of each read, after all others that shared them were cancelled."""
    of = shared()
    connection = connected(of)
    before_bytes, held_bytes = left_alone(connection, frame_bytes)
    assert of.held_bytes == held_bytes
    assert taken_bytes() - before_bytes < WORST_SHARE * held_bytes + SLACK_BYTES


@pytest.mark.usefixtures("traced")
def test_a_request_that_takes_long_holds_what_came_of_it_and_no_more() -> None:
    of = shared()
    connection = connected(of)
    before_bytes, held_bytes = left_alone(connection, FRAME_BYTES)
    assert connection.calls.let_go_of_old(OWN_AFTER_S / 2, OWN_BYTES) == 0
    assert taken_bytes() - before_bytes > 3 * held_bytes, "for a second they may"
    assert connection.calls.let_go_of_old(OWN_AFTER_S, OWN_BYTES) == held_bytes
    assert of.held_bytes == held_bytes
    assert taken_bytes() - before_bytes < 2 * held_bytes + SLACK_BYTES


def test_no_more_is_copied_at_a_time_than_it_may() -> None:
    of = shared()
    connection = connected(of)
    opened(connection, range(1, 7, 2))
    for _ in range(3):
        connection.receive(b"".join(data(stream, bytes(20_000)) for stream in (1, 3, 5)), 0.0)
    assert connection.calls.let_go_of_old(OWN_AFTER_S, 0) == 0
    assert connection.calls.let_go_of_old(OWN_AFTER_S, 1) == 60_000
    assert connection.calls.let_go_of_old(OWN_AFTER_S, 60_001) == 120_000
    assert connection.calls.let_go_of_old(OWN_AFTER_S, 1) == 0
