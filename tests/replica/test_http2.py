"""The sans-IO client against the h2 library as its server."""

from collections.abc import Callable, Sequence
from contextlib import suppress

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset
from hypothesis import given, settings
from hypothesis import strategies as st

from tideserve.replica.errors import Http2Error
from tideserve.replica.http2 import Reply, UnaryConnection, request_block

BLOCK = request_block("/a.Service/Method", "localhost:1", 20, [("token", "t" * 200)])
ANSWER_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
OK = [("grpc-status", "0")]


class Server:
    """The other end: what it was sent, and a way to answer."""

    def __init__(self, **settings_: int) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        if settings_:
            self.h2.update_settings({int(key[1:]): value for key, value in settings_.items()})
        self.requests: list[dict[str, str]] = []
        self.bodies: dict[int, bytes] = {}
        self.ended: list[int] = []
        self.reset: list[int] = []
        self.reads = True

    def take(self, data: bytes) -> None:
        for event in self.h2.receive_data(data) if data else []:
            self._on(event)

    def _on(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self.requests.append({str(k): str(v) for k, v in event.headers})
                self.bodies[event.stream_id] = b""
            case DataReceived():
                self.bodies[event.stream_id] += event.data
                if event.flow_controlled_length and self.reads:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case StreamEnded():
                self.ended.append(event.stream_id)
            case StreamReset():
                self.reset.append(event.stream_id)

    def answer(self, stream: int, message: bytes, trailers: list[tuple[str, str]] = OK) -> None:
        self.h2.send_headers(stream, ANSWER_HEADERS)
        body = b"\0" + len(message).to_bytes(4) + message
        frame = self.h2.max_outbound_frame_size
        for at in range(0, len(body), frame):
            self.h2.send_data(stream, body[at : at + frame])
        self.h2.send_headers(stream, trailers, end_stream=True)


Cut = Callable[[bytes], Sequence[bytes]]


def whole(data: bytes) -> Sequence[bytes]:
    return [data]


def talk(client: UnaryConnection, server: Server, cut: Cut = whole) -> None:
    """Both sides say all that they have to say."""
    while True:
        sent = client.take_outgoing()
        server.take(sent)
        back = server.h2.data_to_send()
        for part in cut(back):
            client.receive(part)
        if not sent and not back:
            return


def connected(**settings_: int) -> tuple[UnaryConnection, Server]:
    client, server = UnaryConnection(BLOCK), Server(**settings_)
    client.open()
    talk(client, server)
    assert client.ready
    return client, server


def exchange(client: UnaryConnection, server: Server, message: bytes, answer: bytes) -> Reply:
    client.begin(message)
    talk(client, server)
    stream = server.ended[-1]
    assert server.bodies[stream] == b"\0" + len(message).to_bytes(4) + message
    server.answer(stream, answer)
    talk(client, server)
    assert client.reply is not None
    return client.reply


def test_calls_follow_each_other_on_one_connection_with_the_same_bytes_of_headers() -> None:
    client, server = connected()
    for number in range(5):
        message = f"question {number}".encode()
        assert exchange(client, server, message, message.upper()) == (0, "", message.upper())
    assert server.requests == [server.requests[0]] * 5
    assert server.requests[0][":path"] == "/a.Service/Method"
    assert server.requests[0]["token"] == "t" * 200
    assert server.requests[0]["grpc-timeout"] == "20S"


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 300_000),
    st.integers(0, 300_000),
    st.lists(st.integers(1, 70_000), min_size=1, max_size=8),
)
def test_messages_of_any_size_pass_the_windows_and_come_in_any_pieces(
    message_bytes: int, answer_bytes: int, cuts: list[int]
) -> None:
    client, server = connected()

    def cut(data: bytes) -> Sequence[bytes]:
        parts, at, turn = [], 0, 0
        while at < len(data):
            size = cuts[turn % len(cuts)]
            parts.append(data[at : at + size])
            at, turn = at + size, turn + 1
        return parts

    message, answer = b"m" * message_bytes, bytes(range(256)) * (answer_bytes // 256)
    client.begin(message)
    talk(client, server, cut)
    assert server.bodies[1][5:] == message
    server.answer(1, answer)
    talk(client, server, cut)
    assert client.reply == (0, "", answer)


def test_every_byte_may_come_alone() -> None:
    client, server = connected()
    client.begin(b"x")
    talk(client, server)
    server.answer(1, b"answer", [("grpc-status", "5"), ("grpc-message", "no%20such%20thing")])
    talk(client, server, lambda data: [data[at : at + 1] for at in range(len(data))])
    assert client.reply == (5, "no such thing", b"")


def test_an_error_may_come_without_a_message() -> None:
    client, server = connected()
    client.begin(b"x")
    talk(client, server)
    server.h2.send_headers(1, [*ANSWER_HEADERS, ("grpc-status", "9")], end_stream=True)
    talk(client, server)
    assert client.reply == (9, "", b"")


def test_an_answer_before_the_question_is_whole_ends_it_and_leaves_the_connection_usable() -> None:
    client, server = connected()
    server.reads = False
    client.begin(b"m" * 500_000)
    talk(client, server)
    assert server.ended == []
    server.h2.send_headers(1, [*ANSWER_HEADERS, ("grpc-status", "8")], end_stream=True)
    talk(client, server)
    assert client.reply == (8, "", b"")
    assert server.reset == [1]
    assert client.reusable


def test_smaller_windows_of_the_server_are_kept() -> None:
    client, server = connected(s4=1000)
    assert exchange(client, server, b"m" * 50_000, b"").status == 0


def test_a_window_that_shrinks_below_what_is_on_the_way_is_paid_back_first() -> None:
    client, server = connected()
    server.reads = False
    client.begin(b"m" * 200_000)
    talk(client, server)
    sent = len(server.bodies[1])
    assert sent == 65_535
    server.h2.update_settings({4: 1000})
    talk(client, server)
    server.h2.increment_flow_control_window(100_000)
    server.h2.increment_flow_control_window(40_000, 1)
    talk(client, server)
    # 65,535 - 1,000 of the 40,000 are debt: nothing may be sent. h2 refuses what is too much.
    assert len(server.bodies[1]) == sent
    server.h2.increment_flow_control_window(60_000, 1)
    talk(client, server)
    assert len(server.bodies[1]) == sent + 100_000 - 64_535


def test_pings_are_answered_and_a_server_that_leaves_finishes_the_call() -> None:
    client, server = connected()
    client.begin(b"x")
    talk(client, server)
    server.h2.ping(b"12345678")
    talk(client, server)
    server.answer(1, b"y")
    data = server.h2.data_to_send()
    goaway = b"\0\0\x08\x07\0\0\0\0\0" + (1).to_bytes(4) + bytes(4)
    client.receive(goaway + data)
    assert client.reply == (0, "", b"y")
    assert not client.reusable


def test_a_server_that_leaves_before_the_call_breaks_it() -> None:
    client, _ = connected()
    client.begin(b"x")
    with pytest.raises(Http2Error, match="leaves"):
        client.receive(b"\0\0\x08\x07\0\0\0\0\0" + bytes(8))


def test_a_reset_breaks_the_call() -> None:
    client, server = connected()
    client.begin(b"x")
    talk(client, server)
    server.h2.reset_stream(1, 7)
    with pytest.raises(Http2Error, match="error 7"):
        talk(client, server)


@pytest.mark.parametrize(
    ("body", "trailers", "what"),
    [
        (b"\1\0\0\0\1x", OK, "uncompressed"),
        (b"\0\0\0\0\2x", OK, "one uncompressed message"),
        (b"", OK, "one uncompressed message"),
        (b"\0\0\0\0\1x", [("other", "1")], "no grpc-status"),
        (b"\0\0\0\0\1x", [("grpc-status", "OK")], "no grpc-status"),
    ],
)
def test_what_is_no_grpc_answer_is_refused(
    body: bytes, trailers: list[tuple[str, str]], what: str
) -> None:
    client, server = connected()
    client.begin(b"x")
    talk(client, server)
    server.h2.send_headers(1, ANSWER_HEADERS)
    server.h2.send_data(1, body)
    server.h2.send_headers(1, trailers, end_stream=True)
    with pytest.raises(Http2Error, match=what):
        talk(client, server)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused_with_one_kind_of_error(data: bytes) -> None:
    client, _ = connected()
    client.begin(b"x")
    with suppress(Http2Error):
        client.receive(data)
