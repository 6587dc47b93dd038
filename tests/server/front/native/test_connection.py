"""What a connection is besides its calls: settings, windows, pings, breaches."""

from urllib.parse import unquote

import pytest

from tests.server.front.native.caller import BIDI, FIRST_ID, STREAM, UNARY, Caller, packed
from tideserve.server.front import Call, Cancel
from tideserve.server.front.native.errors import ProtocolError
from tideserve.v1 import http2


@pytest.fixture
def caller() -> Caller:
    caller = Caller()
    caller.talk()
    return caller


def assert_empty(caller: Caller) -> None:
    assert caller.calls.open == []
    shared = caller.shared
    assert (shared.held_bytes, shared.unsent.bytes, len(shared.deadlines)) == (0, 0, 0)


def begin(caller: Caller, path: str = UNARY, *headers: tuple[str, str], ends: bool = True) -> int:
    """A call whose event is taken."""
    stream = caller.request(path, packed(b""), *headers, ends=ends)
    caller.talk()
    return stream


def test_a_deadline_counts_from_the_headers(caller: Caller) -> None:
    for ends_s, left_s in ((1.0, 2.0), (9.0, 0.0)):
        stream = caller.request(UNARY, None, ("grpc-timeout", "3S"), ends=False)
        assert caller.talk(0.0) == []
        caller.h2.send_data(stream, packed(b"ask"), end_stream=True)
        (call,) = caller.talk(ends_s)
        assert isinstance(call, Call)
        assert call.time_left_s == left_s
        assert caller.shared.deadlines[call.call_id] == max(3.0, ends_s)


def test_data_that_was_on_its_way_when_its_call_ended_is_no_breach(caller: Caller) -> None:
    stream = begin(caller, BIDI, ends=False)
    caller.server.end(stream)
    caller.talk()
    late = http2.frame(http2.DATA, 0, stream, packed(b"late"))
    assert caller.connection.receive(late, 0.0) == []
    assert_empty(caller)


def test_a_window_may_shrink_while_an_answer_goes(caller: Caller) -> None:
    stream = begin(caller, STREAM)
    caller.server.send(stream, bytes(60_000))
    caller.talk()
    caller.set(s4=100)
    caller.talk()
    caller.server.send(stream, b"x" * 60_000)
    caller.server.end(stream)
    caller.talk()
    caller.set(s4=1_000_000)
    caller.talk()
    assert caller.answers[stream].messages == [bytes(60_000), b"x" * 60_000]
    assert_empty(caller)


def test_answers_that_nobody_reads_are_bounded_for_all(caller: Caller) -> None:
    caller.shared.max_unsent_bytes = 400_000
    streams = [begin(caller) for _ in range(5)]
    caller.set(s4=0)
    caller.talk()
    for stream in streams:
        assert caller.server.respond(stream, bytes(150_000))
    caller.talk()
    assert caller.shared.unsent.bytes == 450_000
    assert [caller.answers[stream].status for stream in streams] == [None] * 3 + [8, 8]
    assert "do not read" in unquote(caller.answers[streams[3]].message)
    for stream in streams[:3]:
        caller.h2.reset_stream(stream)
    caller.talk()
    assert_empty(caller)


def test_a_connection_may_begin_with_the_refusal_of_an_answer(caller: Caller) -> None:
    """The client's table is smaller than ours, so the first headers must say that none is used."""
    caller.set(s1=0)
    stream = begin(caller)
    caller.shared.unsent.bytes = caller.shared.max_unsent_bytes + 1
    assert caller.server.respond(stream, bytes(100_000))
    caller.talk()
    assert caller.answers[stream].status == 8


def test_a_ping_is_answered_and_asked(caller: Caller) -> None:
    caller.connection.ping()
    asked = caller.take()
    assert asked == http2.frame(http2.PING, 0, 0, bytes(8))
    caller.h2.receive_data(asked)
    caller.h2.ping(b"12345678")
    assert caller.connection.receive(caller.h2.data_to_send(), 0.0) == []
    assert caller.take() == http2.frame(http2.PING, http2.ACK, 0, b"12345678")


BREACHES = {
    "data of no stream": http2.frame(http2.DATA, 0, 99, b""),
    "headers of an even stream": http2.frame(http2.HEADERS, http2.END_HEADERS, 2, b""),
    "reset of no stream": http2.frame(http2.RST_STREAM, 0, 99, bytes(4)),
    "reset of three bytes": http2.frame(http2.RST_STREAM, 0, 1, bytes(3)),
    "push": http2.frame(http2.PUSH_PROMISE, 0, 1, bytes(4)),
    "ping of seven bytes": http2.frame(http2.PING, 0, 0, bytes(7)),
    "settings of five bytes": http2.frame(http2.SETTINGS, 0, 0, bytes(5)),
    "a window too large": http2.settings({http2.INITIAL_WINDOW_SIZE: 2**31}),
    "frames too small": http2.settings({http2.MAX_FRAME_SIZE: 100}),
    "a window that grows by nothing": http2.window_update(0, 0),
    "a window that grows too far": http2.window_update(0, http2.MAX_WINDOW),
    "an update of three bytes": http2.frame(http2.WINDOW_UPDATE, 0, 0, bytes(3)),
    "continuation of nothing": http2.frame(http2.CONTINUATION, 0, 1, b""),
    "headers that another frame interrupts": (
        http2.frame(http2.HEADERS, 0, 1, b"") + http2.frame(http2.PING, 0, 0, bytes(8))
    ),
    "headers without end": http2.frame(http2.HEADERS, 0, 1, bytes(60_000))
    + http2.frame(http2.CONTINUATION, 0, 1, bytes(60_000)),
    "headers that are none": http2.frame(http2.HEADERS, http2.END_HEADERS, 1, b"\xff" * 9),
}


@pytest.mark.parametrize("said", BREACHES.values(), ids=BREACHES.keys())
def test_a_breach_ends_the_connection_and_its_calls(caller: Caller, said: bytes) -> None:
    stream = begin(caller, BIDI, ("grpc-timeout", "9S"), ends=False)
    with pytest.raises(ProtocolError) as caught:
        caller.connection.receive(said, 0.0)
    caller.connection.leave(caught.value.code, str(caught.value))
    caller.calls.on_lost()
    assert caller.connection.take_events() == [Cancel(FIRST_ID + stream)]
    caller.talk()
    assert caller.goaway is not None
    assert caller.goaway.error_code == caught.value.code != http2.NO_ERROR
    assert_empty(caller)


def test_headers_may_go_on_in_further_frames(caller: Caller) -> None:
    block = caller.h2.encoder.encode(
        [
            (":method", "POST"),
            (":path", UNARY),
            ("content-type", "application/grpc"),
            ("long", "x" * 20_000),
        ]
    )
    said = http2.frame(http2.HEADERS, 0, 1, block[:10])
    said += http2.frame(http2.CONTINUATION, 0, 1, block[10:5000])
    said += http2.frame(http2.CONTINUATION, http2.END_HEADERS, 1, block[5000:])
    said += http2.frame(http2.DATA, http2.END_STREAM, 1, packed(b"ask"))
    (call,) = caller.connection.receive(said, 0.0)
    assert isinstance(call, Call)
    assert call.metadata == (("long", "x" * 20_000),)
