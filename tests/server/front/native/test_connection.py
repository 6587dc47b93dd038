"""A connection against a client of the h2 library: no socket between."""

from collections.abc import Sequence
from urllib.parse import unquote

import h2.connection
import h2.events
import pytest
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st

from tideserve.server.front import (
    Call,
    Cancel,
    Event,
    HalfClose,
    Status,
    StreamMessage,
)
from tideserve.server.front.native.calls import Shared
from tideserve.server.front.native.connection import Connection
from tideserve.server.front.native.errors import ProtocolError
from tideserve.v1 import http2
from tideserve.v1.http2 import MESSAGE_PREFIX
from tideserve.v1.methods import Kind

UNARY, STREAM, BIDI = "/t.T/Unary", "/t.T/Stream", "/t.T/Bidi"
METHODS = {UNARY: Kind.UNARY, STREAM: Kind.SERVER_STREAM, BIDI: Kind.BIDI}
MAX_STREAMS = 5
FIRST_ID = 7 << 31


def framed(message: bytes) -> bytes:
    return MESSAGE_PREFIX.pack(0, len(message)) + message


class Pair:
    """A connection and its client, whose bytes change hands in `exchange`."""

    def __init__(self) -> None:
        self.shared = Shared(METHODS, 100_000, 400_000, 400_000, MAX_STREAMS)
        self.server = Connection(self.shared, FIRST_ID, "ipv4:127.0.0.1:1")
        self.client = h2.connection.H2Connection()
        self.events: list[Event] = []
        self.answers: dict[int, bytes] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.resets: dict[int, int] = {}
        self.server.open()
        self.client.initiate_connection()
        self.exchange()

    def exchange(self) -> None:
        """Until neither has anything to say."""
        while True:
            said = self.client.data_to_send()
            if said:
                self.events += self.server.receive(said, 0.0)
            outbox = self.server.calls.outbox
            heard = b"".join(map(bytes, outbox.take(1000)))
            outbox.on_sent(len(heard))
            self.server.calls.forget_ended()
            if not said and not heard:
                return
            for event in self.client.receive_data(heard):
                self._hear(event)

    def _hear(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                number, data = event.stream_id, event.data
                assert number is not None
                assert data is not None
                self.answers[number] = self.answers.get(number, b"") + data
                self.client.acknowledge_received_data(event.flow_controlled_length or 0, number)
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                assert event.stream_id is not None
                self.trailers.setdefault(event.stream_id, {}).update(
                    (name.decode(), value.decode()) for name, value in event.headers or []
                )
            case h2.events.StreamReset():
                assert event.stream_id is not None
                self.resets[event.stream_id] = int(event.error_code or 0)

    def begin(
        self,
        path: str,
        *messages: bytes,
        end: bool = True,
        more: Sequence[tuple[str, str]] = (),
    ) -> int:
        number = self.client.get_next_available_stream_id()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "t"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
            *more,
        ]
        self.client.send_headers(number, headers, end_stream=end and not messages)
        for at, message in enumerate(messages):
            self.client.send_data(
                number, framed(message), end_stream=end and at == len(messages) - 1
            )
        self.exchange()
        return number

    def take(self) -> list[Event]:
        events, self.events = self.events, []
        return events

    def status(self, number: int) -> int:
        return int(self.trailers[number]["grpc-status"])

    def assert_empty(self) -> None:
        assert self.server.calls.open == []
        assert self.shared.held_bytes == 0
        assert self.shared.unsent.bytes == 0
        assert self.shared.deadlines_s == {}


@pytest.fixture
def pair() -> Pair:
    return Pair()


def test_a_unary_call_and_its_answer(pair: Pair) -> None:
    number = pair.begin(UNARY, b"ask", more=[("grpc-timeout", "3S"), ("key", "value")])
    (call,) = pair.take()
    assert call == Call(
        FIRST_ID + number, UNARY, b"ask", (("key", "value"),), "ipv4:127.0.0.1:1", 3.0
    )
    assert pair.shared.deadlines_s == {call.call_id: 3.0}
    assert pair.server.calls.open == [number]
    assert pair.server.calls.respond(number, b"answer")
    pair.exchange()
    assert pair.answers[number] == framed(b"answer")
    assert pair.status(number) == 0
    assert not pair.server.calls.respond(number, b"again")
    assert pair.resets == {}
    pair.assert_empty()


def test_a_deadline_counts_from_the_headers(pair: Pair) -> None:
    number = pair.begin(UNARY, end=False, more=[("grpc-timeout", "3S")])
    pair.client.send_data(number, framed(b"ask"), end_stream=True)
    (call,) = pair.server.receive(pair.client.data_to_send(), 1.0)
    assert isinstance(call, Call)
    assert call.time_left_s == 2.0
    assert pair.shared.deadlines_s == {call.call_id: 3.0}
    late = pair.begin(UNARY, end=False, more=[("grpc-timeout", "3S")])
    pair.client.send_data(late, framed(b"ask"), end_stream=True)
    (call,) = pair.server.receive(pair.client.data_to_send(), 9.0)
    assert isinstance(call, Call)
    assert call.time_left_s == 0.0


def test_a_large_request_and_answer_pass_both_windows(pair: Pair) -> None:
    number = pair.client.get_next_available_stream_id()
    message = bytes(range(256)) * 390
    pair.begin(UNARY, end=False)
    data = framed(message)
    for at in range(0, len(data), 16_000):
        pair.client.send_data(number, data[at : at + 16_000])
        pair.exchange()
        assert pair.take() == []
    assert pair.shared.held_bytes == len(message)
    pair.client.end_stream(number)
    pair.exchange()
    (call,) = pair.take()
    assert isinstance(call, Call)
    assert call.payload == message
    assert pair.server.calls.respond(number, message)
    pair.exchange()
    assert pair.answers[number] == data
    pair.assert_empty()


def test_a_stream_of_answers_and_its_end(pair: Pair) -> None:
    number = pair.begin(STREAM, b"go")
    assert [type(event) for event in pair.take()] == [Call]
    for at in range(5):
        assert pair.server.calls.send(number, b"%d" % at * 30_000)
    pair.server.calls.end(number)
    assert not pair.server.calls.send(number, b"late")
    pair.exchange()
    assert pair.answers[number] == b"".join(framed(b"%d" % at * 30_000) for at in range(5))
    assert pair.status(number) == 0
    pair.assert_empty()


def test_both_sides_stream_and_the_caller_ends_first(pair: Pair) -> None:
    number = pair.begin(BIDI, b"one", b"two", end=False)
    id_ = FIRST_ID + number
    call, *messages = pair.take()
    assert isinstance(call, Call)
    assert messages == [StreamMessage(id_, b"one"), StreamMessage(id_, b"two")]
    pair.server.calls.send(number, b"1")
    pair.client.end_stream(number)
    pair.exchange()
    assert pair.take() == [HalfClose(id_)]
    assert pair.server.calls.fail(number, Status(9, "enough"))
    pair.exchange()
    assert pair.answers[number] == framed(b"1")
    assert (pair.status(number), pair.trailers[number]["grpc-message"]) == (9, "enough")
    pair.assert_empty()


def test_a_caller_that_still_sends_is_told_to_stop(pair: Pair) -> None:
    number = pair.begin(BIDI, b"one", end=False)
    pair.take()
    pair.server.calls.end(number)
    pair.exchange()
    assert pair.resets == {number: http2.NO_ERROR}
    # What was on its way when it was told is not an error of the connection.
    late = http2.frame(http2.DATA, 0, number, framed(b"late"))
    assert pair.server.receive(late, 0.0) == []
    pair.assert_empty()


def test_trailers_of_a_caller_end_its_side(pair: Pair) -> None:
    number = pair.begin(BIDI, end=False)
    pair.take()
    pair.client.send_headers(number, [("x-checksum", "1")], end_stream=True)
    pair.exchange()
    assert pair.take() == [HalfClose(FIRST_ID + number)]


@pytest.mark.parametrize("path", [UNARY, STREAM])
@pytest.mark.parametrize("messages", [(), (b"one", b"two")], ids=["none", "two"])
def test_one_message_is_expected(pair: Pair, path: str, messages: tuple[bytes, ...]) -> None:
    number = pair.begin(path, *messages)
    assert pair.take() == []
    assert pair.status(number) == 3
    assert "one request" in unquote(pair.trailers[number]["grpc-message"])
    pair.assert_empty()


def test_a_request_that_ends_within_a_message_is_refused(pair: Pair) -> None:
    number = pair.begin(UNARY, end=False)
    pair.client.send_data(number, framed(b"whole")[:-1], end_stream=True)
    pair.exchange()
    assert pair.status(number) == 3
    pair.assert_empty()


def test_more_streams_than_are_allowed_are_refused(pair: Pair) -> None:
    for _ in range(MAX_STREAMS):
        pair.begin(UNARY, b"")
    # The library keeps to the limit, so the frame is written by hand.
    number = pair.client.get_next_available_stream_id()
    frame = http2.frame(
        http2.HEADERS, http2.END_HEADERS, number, b"\x83\x86\x00\x05:path\x01/\x00\x01a\x01b"
    )
    pair.server.receive(frame, 0.0)
    sent = b"".join(map(bytes, pair.server.calls.outbox.take(10)))
    assert sent.endswith(http2.frame(http2.RST_STREAM, 0, number, b"\0\0\0\7"))
    assert len(pair.take()) == MAX_STREAMS


def test_what_is_no_grpc_gets_a_status_of_http(pair: Pair) -> None:
    number = pair.client.get_next_available_stream_id()
    pair.client.send_headers(
        number,
        [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "t")],
        end_stream=True,
    )
    pair.exchange()
    assert pair.trailers[number][":status"] == "415"
    pair.assert_empty()


def test_a_window_may_shrink_while_an_answer_goes(pair: Pair) -> None:
    number = pair.begin(STREAM, b"")
    pair.server.calls.send(number, bytes(60_000))
    pair.exchange()
    pair.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
    pair.exchange()
    pair.server.calls.send(number, b"x" * 60_000)
    pair.server.calls.end(number)
    pair.exchange()
    pair.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 1_000_000})
    pair.exchange()
    assert pair.answers[number] == framed(bytes(60_000)) + framed(b"x" * 60_000)
    pair.assert_empty()


def test_answers_that_nobody_reads_are_bounded_for_all() -> None:
    pair = Pair()
    numbers = [pair.begin(UNARY, b"") for _ in range(MAX_STREAMS)]
    pair.client.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    pair.exchange()
    for number in numbers:
        assert pair.server.calls.respond(number, bytes(150_000))
    pair.exchange()
    assert pair.shared.unsent.bytes == 450_000
    assert [pair.status(number) for number in numbers[3:]] == [8, 8]
    assert "do not read" in unquote(pair.trailers[numbers[3]]["grpc-message"])
    for number in numbers[:3]:
        pair.client.reset_stream(number)
    pair.exchange()
    pair.assert_empty()


def test_a_connection_may_begin_with_the_refusal_of_an_answer() -> None:
    """The client's table is smaller than ours, so the first headers must say that none is used."""
    pair = Pair()
    pair.client.update_settings({SettingCodes.HEADER_TABLE_SIZE: 0})
    number = pair.begin(UNARY, b"")
    pair.shared.unsent.bytes = pair.shared.max_unsent_bytes + 1
    assert pair.server.calls.respond(number, bytes(100_000))
    pair.exchange()
    assert pair.status(number) == 8


def test_a_ping_is_answered_and_asked(pair: Pair) -> None:
    pair.server.ping()
    pair.client.ping(b"12345678")
    pair.exchange()  # the library raises for an answer that it did not expect


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
def test_a_breach_ends_the_connection_and_its_calls(pair: Pair, said: bytes) -> None:
    number = pair.begin(BIDI, b"whole", end=False, more=[("grpc-timeout", "9S")])
    pair.take()
    with pytest.raises(ProtocolError) as caught:
        pair.server.receive(said, 0.0)
    pair.server.leave(caught.value.code, str(caught.value))
    pair.server.calls.on_lost()
    assert pair.server.take_events() == [Cancel(FIRST_ID + number)]
    sent = b"".join(map(bytes, pair.server.calls.outbox.take(10)))
    (event,) = [
        event
        for event in pair.client.receive_data(sent)
        if isinstance(event, h2.events.ConnectionTerminated)
    ]
    assert event.error_code == caught.value.code != http2.NO_ERROR
    pair.assert_empty()


def test_headers_may_go_on_in_further_frames(pair: Pair) -> None:
    block = pair.client.encoder.encode(
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
    said += http2.frame(http2.DATA, http2.END_STREAM, 1, framed(b"ask"))
    (call,) = pair.server.receive(said, 0.0)
    assert isinstance(call, Call)
    assert call.metadata == (("long", "x" * 20_000),)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("unary", "stream", "bidi", "answer", "send", "fail", "end", "reset", "half")
        ),
        st.integers(0, 3),
        st.sampled_from((0, 10, 70_000)),
    ),
    max_size=25,
)


def ends(pair: Pair, step: str, number: int, kind: str, size: int) -> bool:
    """Does one step of a call, if it is one of its kind; whether the call is over then."""
    calls = pair.server.calls
    match step:
        case "answer" if kind == "unary":
            assert calls.respond(number, bytes(size))
        case "end" if kind != "unary":
            calls.end(number)
        case "fail":
            assert calls.fail(number, Status(5, "no"))
        case "reset":
            pair.client.reset_stream(number)
        case "send" if kind != "unary":
            assert calls.send(number, bytes(size))
            return False
        case _:
            return False
    pair.exchange()
    assert number not in calls.open
    return True


@settings(max_examples=60)
@given(steps=STEPS)
def test_nothing_is_left_of_calls_in_any_order(steps: list[tuple[str, int, int]]) -> None:
    pair = Pair()
    paths = {"unary": UNARY, "stream": STREAM, "bidi": BIDI}
    going: dict[int, str] = {}
    sending: set[int] = set()
    begun = 0
    for step, at, size in steps:
        if step in paths and len(going) < MAX_STREAMS - 1:
            timeout = [("grpc-timeout", "9S")] if at else []
            number = pair.begin(paths[step], b"x", end=step != "bidi", more=timeout)
            begun += 1
            going[number] = step
            sending |= {number} if step == "bidi" else set()
        elif going:
            number = sorted(going)[at % len(going)]
            if step == "half" and number in sending:
                sending.discard(number)
                pair.client.end_stream(number)
                pair.exchange()
            elif ends(pair, step, number, going[number], size):
                del going[number]
    assert sorted(pair.server.calls.open) == sorted(going)
    for number in going:
        pair.client.reset_stream(number)
    pair.exchange()
    assert sum(isinstance(event, Call) for event in pair.take()) == begun
    pair.assert_empty()
    assert pair.server.calls._streams == {}
