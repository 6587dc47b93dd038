"""Streams on their own: order, end, bounds."""

import pytest

from tests.server.fake_front import FakeFront
from tideserve.server.core.request import Request
from tideserve.server.errors import QueueFullError
from tideserve.server.service.streams import (
    MAX_STREAM_KEPT_BYTES,
    MAX_STREAM_REQUESTS,
    Stream,
    Streams,
)

CALL = 7


def opened() -> tuple[FakeFront, Streams, Stream]:
    front = FakeFront()
    streams = Streams(front)
    streams.begin(CALL, 5.0)
    stream = streams.of(CALL)
    assert stream is not None
    return front, streams, stream


def test_answers_leave_in_the_order_of_their_places_and_then_keep_nothing() -> None:
    front, streams, stream = opened()
    first, second, third = (stream.place() for _ in range(3))
    streams.fill(CALL, third, b"3")
    streams.fill(CALL, second, b"22")
    assert (front.sent[CALL], stream.kept_bytes, streams.waiting) == ([], 3, 1)
    streams.fill(CALL, first, b"1")
    assert front.sent[CALL] == [b"1", b"22", b"3"]
    assert (stream.kept_bytes, streams.waiting) == (0, 0)
    assert front.ended == []


def test_a_half_closed_stream_ends_with_its_last_answer_or_at_once() -> None:
    front, streams, stream = opened()
    slot = stream.place()
    streams.half_close(CALL)
    assert front.ended == []
    streams.fill(CALL, slot, b"1")
    assert front.ended == [CALL]
    assert streams.of(CALL) is None
    streams.begin(CALL + 1, 5.0)
    streams.half_close(CALL + 1)
    assert front.ended == [CALL, CALL + 1]


def test_a_dropped_stream_gives_its_requests_without_an_answer_and_takes_no_more() -> None:
    front, streams, stream = opened()
    waiting, answered = stream.place(), stream.place()
    request = Request(request_id=1, rows=1, payload_bytes=0, signature=None, arrived_s=0.0)
    waiting.request = request
    answered.request = Request(request_id=2, rows=1, payload_bytes=0, signature=None, arrived_s=0.0)
    streams.fill(CALL, answered, b"2")
    assert streams.drop(CALL) == [request]
    # What refers to each other waits for a collection, with the segment that it holds.
    assert [slot.request for slot in (waiting, answered)] == [None, None]
    assert streams.drop(CALL) == []
    streams.fill(CALL, waiting, b"1")
    streams.half_close(CALL)
    assert (dict(front.sent), front.ended) == ({}, [])


def test_places_and_kept_bytes_are_bounded() -> None:
    _, streams, stream = opened()
    slots = [stream.place() for _ in range(MAX_STREAM_REQUESTS)]
    with pytest.raises(QueueFullError, match="unanswered requests in a stream"):
        stream.place()
    stream.check_kept()
    streams.fill(CALL, slots[1], b"x")
    stream.kept_bytes += MAX_STREAM_KEPT_BYTES
    with pytest.raises(QueueFullError, match="wait for one before them"):
        stream.check_kept()
