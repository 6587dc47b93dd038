"""Calls, as the h2 library makes them and cancels them."""

import gzip

import pytest

from tests.server.front.native.caller import (
    BIDI,
    FIRST_ID,
    FULL,
    LIMIT_BYTES,
    PATHS,
    PEER,
    STREAM,
    UNARY,
    Caller,
    assert_nothing_is_left,
    packed,
)
from tideserve.server.errors import Code
from tideserve.server.front import Call, Cancel, HalfClose, StreamMessage
from tideserve.v1 import http2
from tideserve.v1.http2 import MESSAGE_PREFIX


@pytest.fixture
def caller() -> Caller:
    return Caller()


def call(number: int, path: str, payload: bytes = b"", left_s: float | None = None) -> Call:
    return Call(FIRST_ID + number, path, payload, (), PEER, left_s)


def test_a_unary_call(caller: Caller) -> None:
    stream = caller.request(UNARY, packed(b"question"), ("key", "value"), ("blob-bin", "AAE"))
    (event,) = caller.talk()
    assert event == Call(
        FIRST_ID + 1, UNARY, b"question", (("key", "value"), ("blob-bin", b"\0\1")), PEER, None
    )
    assert caller.calls.open == [stream]
    assert caller.server.respond(stream, b"answer")
    assert not caller.server.respond(stream, b"again")
    assert caller.talk() == []
    answer = caller.answers[stream]
    assert (answer.headers[":status"], answer.headers["content-type"]) == (
        "200",
        "application/grpc",
    )
    assert (answer.messages, answer.status, answer.ended) == ([b"answer"], 0, True)
    assert answer.reset is None
    assert_nothing_is_left(caller)


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_request_in_parts(caller: Caller, path: str) -> None:
    body = packed(b"question")
    stream = caller.request(path, None, ends=False)
    for at in range(len(body)):
        caller.h2.send_data(stream, body[at : at + 1])
        assert caller.talk() == []
    caller.h2.end_stream(stream)
    assert caller.talk() == [call(stream, path, b"question")]
    assert caller.shared.held_bytes == 0


def test_a_bidirectional_call(caller: Caller) -> None:
    stream = caller.request(BIDI, None, ends=False)
    number = FIRST_ID + stream
    assert caller.talk() == [call(stream, BIDI)]
    caller.h2.send_data(stream, packed(b"one") + packed(b"two")[:4])
    assert caller.talk() == [StreamMessage(number, b"one")]
    assert caller.server.send(stream, b"1")
    caller.h2.send_data(stream, packed(b"two")[4:], end_stream=True)
    assert caller.talk() == [StreamMessage(number, b"two"), HalfClose(number)]
    assert caller.answers[stream].messages == [b"1"]
    caller.server.end(stream)
    caller.talk()
    assert caller.answers[stream].status == 0
    assert_nothing_is_left(caller)


@pytest.mark.parametrize("path", PATHS)
def test_trailers_of_the_caller_end_its_requests(caller: Caller, path: str) -> None:
    stream = caller.request(path, packed(b"question"), ends=False)
    caller.talk()
    caller.h2.send_headers(stream, [("checksum", "1")], end_stream=True)
    expected = HalfClose(FIRST_ID + stream) if path == BIDI else call(stream, path, b"question")
    assert caller.talk() == [expected]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("waits", [False, True])
def test_a_cancelled_call(path: str, waits: bool) -> None:
    caller = Caller(s4=10)
    stream = caller.request(path, packed(b""), ("grpc-timeout", "1S"))
    caller.talk(100.0)
    assert caller.shared.deadlines[FIRST_ID + stream] == 101.0
    if waits and path != UNARY:
        caller.reads = False
        assert caller.server.send(stream, bytes(1000))
    caller.h2.reset_stream(stream, http2.CANCEL)
    assert caller.talk() == [Cancel(FIRST_ID + stream)]
    assert not caller.server.respond(stream, b"late")
    assert not caller.server.send(stream, b"late")
    assert not caller.server.fail(stream, FULL)
    assert_nothing_is_left(caller)


def test_a_reset_of_a_call_that_is_answered_is_no_event() -> None:
    caller = Caller(s4=10)
    caller.reads = False
    waiting, gone = (caller.request(UNARY, packed(b"")) for _ in range(2))
    caller.talk()
    assert caller.server.respond(waiting, bytes(1000))
    assert caller.server.respond(gone, b"")
    caller.h2.reset_stream(waiting)
    caller.h2.reset_stream(gone)
    assert caller.talk() == []
    assert_nothing_is_left(caller)


def test_streams_over_the_bound_are_refused_and_may_come_again() -> None:
    caller = Caller(max_concurrent_streams=2)
    first, second, third = (caller.request(UNARY, packed(b"")) for _ in range(3))
    assert len(caller.talk()) == 2
    assert caller.answers[third].reset == http2.REFUSED_STREAM
    for stream in (first, second):
        assert caller.server.respond(stream, b"")
    caller.talk()
    again = caller.request(UNARY, packed(b""))
    assert caller.talk() == [call(again, UNARY)]


def test_a_method_that_we_have_not(caller: Caller) -> None:
    stream = caller.request("/test.Echo/No", packed(b""))
    assert caller.talk() == []
    assert caller.answers[stream].status == Code.UNIMPLEMENTED
    assert caller.answers[stream].message == "there is no method /test.Echo/No"
    assert_nothing_is_left(caller)


def test_what_is_no_grpc_call(caller: Caller) -> None:
    stream = caller.request(UNARY, packed(b""), ("content-type", "text/plain"))
    assert caller.talk() == []
    assert caller.answers[stream].headers == {":status": "415"}
    assert caller.answers[stream].ended
    assert_nothing_is_left(caller)


@pytest.mark.parametrize("path", [UNARY, STREAM])
@pytest.mark.parametrize("body", [None, b"", packed(b"one") + packed(b"two")])
def test_not_one_request_message(caller: Caller, path: str, body: bytes | None) -> None:
    stream = caller.request(path, body)
    assert caller.talk() == []
    assert caller.answers[stream].status == Code.INVALID_ARGUMENT
    assert "expected one request message" in caller.answers[stream].message
    assert_nothing_is_left(caller)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("cut", [3, 5, 8])
def test_a_request_that_ends_within_a_message(caller: Caller, path: str, cut: int) -> None:
    stream = caller.request(path, packed(b"question")[:cut])
    told = [call(stream, path), Cancel(FIRST_ID + stream)] if path == BIDI else []
    assert caller.talk() == told
    assert caller.answers[stream].status == Code.INVALID_ARGUMENT
    assert "ends within a message" in caller.answers[stream].message
    assert_nothing_is_left(caller)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("ends", [False, True])
def test_a_message_over_the_limit_is_refused_at_its_prefix(
    caller: Caller, path: str, ends: bool
) -> None:
    stream = caller.request(path, MESSAGE_PREFIX.pack(0, LIMIT_BYTES + 1) + b"...", ends=ends)
    told = [call(stream, path), Cancel(FIRST_ID + stream)] if path == BIDI else []
    assert caller.talk() == told
    assert caller.answers[stream].status == Code.RESOURCE_EXHAUSTED
    assert caller.answers[stream].reset == (None if ends else http2.NO_ERROR)
    assert_nothing_is_left(caller)


def test_compressed_requests(caller: Caller) -> None:
    packed_ = gzip.compress(b"question")
    body = MESSAGE_PREFIX.pack(1, len(packed_)) + packed_
    stream = caller.request(UNARY, body, ("grpc-encoding", "gzip"))
    assert caller.talk() == [call(stream, UNARY, b"question")]


@pytest.mark.parametrize("path", PATHS)
def test_a_large_frame_with_padding(caller: Caller, path: str) -> None:
    """One of more than 64 KB ended the connection."""
    caller.talk()  # the client learns how large a frame may be
    stream = caller.request(path, None, ends=False)
    caller.h2.send_data(stream, packed(bytes(200_000)), end_stream=True, pad_length=255)
    *_, event = [event for event in caller.talk() if not isinstance(event, HalfClose)]
    assert isinstance(event, Call | StreamMessage)
    assert (event.whole() if isinstance(event, Call) else event.payload) == bytes(200_000)


@pytest.mark.interpreted
def test_padding_uses_up_no_window(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client could send no more after 8 million padded frames of one message a stream."""
    monkeypatch.setattr("tideserve.server.front.native.calls.WINDOW_STEP", 1000)
    monkeypatch.setattr("tideserve.server.front.native.connection.WINDOW_STEP", 1000)
    caller.talk()
    stream = caller.request(BIDI, None, ends=False)
    caller.talk()
    before = caller.h2.local_flow_control_window(stream)
    for _ in range(100):
        caller.h2.send_data(stream, b"", pad_length=255)
        caller.talk()
    assert before - caller.h2.local_flow_control_window(stream) <= 1000
    caller.h2.send_data(stream, packed(b"still here"), end_stream=True, pad_length=1)
    assert caller.talk()[0] == StreamMessage(FIRST_ID + stream, b"still here")


def compressed(message: bytes) -> bytes:
    packed_ = gzip.compress(message)
    return MESSAGE_PREFIX.pack(1, len(packed_)) + packed_


def test_what_comes_behind_a_compressed_message_waits_for_it(caller: Caller) -> None:
    stream = caller.request(BIDI, None, ("grpc-encoding", "gzip"), ends=False)
    caller.talk()
    large = bytes(LIMIT_BYTES)
    caller.h2.send_data(stream, compressed(large) + packed(b"two"))
    caller.h2.send_data(stream, compressed(b"three") + packed(b"four"), end_stream=True)
    assert caller.connection.receive(caller.h2.data_to_send(), 0.0) == []
    assert list(caller.shared.at_work) == [FIRST_ID + stream]
    assert caller.talk() == [
        *(StreamMessage(FIRST_ID + stream, told) for told in (large, b"two", b"three", b"four")),
        HalfClose(FIRST_ID + stream),
    ]
    caller.server.end(stream)
    caller.talk()
    assert_nothing_is_left(caller)


@pytest.mark.parametrize("path", PATHS)
def test_a_call_may_end_while_its_request_is_inflated(caller: Caller, path: str) -> None:
    body = compressed(bytes(LIMIT_BYTES))
    caller.talk()
    streams = [caller.request(path, body, ("grpc-encoding", "gzip"), ends=False) for _ in range(2)]
    begun = caller.connection.receive(caller.h2.data_to_send(), 0.0)
    assert len(begun) == (2 if path == BIDI else 0)
    for _ in range(3):
        caller.connection.work(streams[0], 0.0)
    assert caller.shared.held_bytes > LIMIT_BYTES // 2
    caller.h2.reset_stream(streams[0])
    assert caller.server.fail(streams[1], FULL)
    reset = caller.connection.receive(caller.h2.data_to_send(), 0.0)
    assert reset == ([Cancel(FIRST_ID + streams[0])] if path == BIDI else [])
    assert caller.talk() == []
    assert caller.answers[streams[1]].status == 8
    assert_nothing_is_left(caller)


def test_what_is_inflated_counts_as_held(caller: Caller) -> None:
    body = compressed(bytes(LIMIT_BYTES))
    streams = [caller.request(UNARY, body, ("grpc-encoding", "gzip"), ends=False) for _ in range(6)]
    assert caller.talk() == []
    refused = [stream for stream in streams if caller.answers[stream].status == 8]
    assert 2 <= len(refused) < 6
    assert caller.shared.held_bytes == (6 - len(refused)) * LIMIT_BYTES
    for stream in set(streams) - set(refused):
        caller.h2.reset_stream(stream)
    caller.talk()
    assert_nothing_is_left(caller)


def test_a_compressed_message_over_the_limit_is_refused(caller: Caller) -> None:
    stream = caller.request(UNARY, compressed(bytes(LIMIT_BYTES + 1)), ("grpc-encoding", "gzip"))
    assert caller.talk() == []
    assert caller.answers[stream].status == Code.RESOURCE_EXHAUSTED
    assert_nothing_is_left(caller)


@pytest.mark.parametrize("size", [LIMIT_BYTES, LIMIT_BYTES - 1])
def test_messages_on_their_way_in_have_a_bound_together(caller: Caller, size: int) -> None:
    """Whole or not, until their calls have begun."""
    body = packed(bytes(LIMIT_BYTES))[: size + MESSAGE_PREFIX.size]
    streams = [caller.request(UNARY, None, ends=False) for _ in range(5)]
    caller.talk()
    for stream in streams:
        for at in range(0, len(body), 16_000):
            if not caller.answers[stream].ended:
                caller.h2.send_data(stream, body[at : at + 16_000])
            assert caller.talk() == []
            assert caller.shared.held_bytes <= caller.shared.max_held_bytes
    assert caller.shared.held_bytes == 4 * size
    answer = caller.answers[streams[4]]
    assert answer.status == Code.RESOURCE_EXHAUSTED
    assert "try again later" in answer.message
    caller.h2.send_data(streams[0], bytes(LIMIT_BYTES - size), end_stream=True)
    (event,) = caller.talk()
    assert isinstance(event, Call)
    assert event.whole() == bytes(LIMIT_BYTES)
    assert caller.shared.held_bytes == 3 * size
    for stream in streams[:4]:
        caller.h2.reset_stream(stream)
    caller.talk()
    assert_nothing_is_left(caller)


def test_a_lost_client_cancels_what_has_begun(caller: Caller) -> None:
    streams = [caller.request(path, packed(b"x"), ends=False) for path in PATHS]
    caller.request(UNARY, packed(b""))
    caller.talk()
    caller.calls.on_lost()
    assert set(caller.connection.take_events()) == {
        Cancel(FIRST_ID + streams[2]),
        Cancel(FIRST_ID + 7),
    }
    assert_nothing_is_left(caller)
