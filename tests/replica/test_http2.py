"""The sans-IO client against the h2 library as its server."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replica.h2_server import ANSWER_HEADERS, Server, in_pieces, talk
from tideserve.replica.errors import Http2Error
from tideserve.replica.http2 import CallConnection, request_block
from tideserve.replica.messages import MessageReader, Reply, reply_of
from tideserve.v1 import http2

BLOCK = request_block("/a.Service/Method", "localhost:1", 20, [("token", "t" * 200)])


def connected(**settings_: int) -> tuple[CallConnection, Server]:
    client, server = CallConnection(BLOCK), Server(**settings_)
    client.open()
    talk(client, server)
    assert client.ready
    return client, server


def reply(client: CallConnection) -> Reply:
    assert client.ending is not None
    return reply_of(client.ending, client.take_body())


def exchange(client: CallConnection, server: Server, message: bytes, answer: bytes) -> Reply:
    client.begin(message)
    talk(client, server)
    stream = server.ended[-1]
    assert server.bodies[stream] == b"\0" + len(message).to_bytes(4) + message
    server.answer(stream, answer)
    talk(client, server)
    return reply(client)


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

    message, answer = b"m" * message_bytes, bytes(range(256)) * (answer_bytes // 256)
    client.begin(message)
    talk(client, server, in_pieces(cuts))
    assert server.bodies[1][5:] == message
    server.answer(1, answer)
    talk(client, server, in_pieces(cuts))
    assert reply(client) == (0, "", answer)


def test_every_byte_may_come_alone() -> None:
    client, server = connected()
    client.begin(b"x")
    talk(client, server)
    server.answer(1, b"answer", [("grpc-status", "5"), ("grpc-message", "no%20such%20thing")])
    talk(client, server, lambda data: [data[at : at + 1] for at in range(len(data))])
    assert reply(client) == (5, "no such thing", b"")


def test_an_error_may_come_without_a_message() -> None:
    client, server = connected()
    client.begin(b"x")
    talk(client, server)
    server.h2.send_headers(1, [*ANSWER_HEADERS, ("grpc-status", "9")], end_stream=True)
    talk(client, server)
    assert reply(client) == (9, "", b"")


def test_an_answer_before_the_question_is_whole_ends_it_and_leaves_the_connection_usable() -> None:
    client, server = connected()
    server.reads = False
    client.begin(b"m" * 500_000)
    talk(client, server)
    assert server.ended == []
    server.h2.send_headers(1, [*ANSWER_HEADERS, ("grpc-status", "8")], end_stream=True)
    talk(client, server)
    assert reply(client) == (8, "", b"")
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
    assert reply(client) == (0, "", b"y")
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


@pytest.mark.parametrize("trailers", [[("other", "1")], [("grpc-status", "OK")]])
def test_an_end_without_a_status_is_refused(trailers: list[tuple[str, str]]) -> None:
    client, server = connected()
    client.begin(b"x")
    talk(client, server)
    server.answer(1, b"y", trailers)
    with pytest.raises(Http2Error, match="no grpc-status"):
        talk(client, server)


def test_headers_over_the_limit_are_refused() -> None:
    client, server = connected()
    client.begin(b"x")
    talk(client, server)
    server.h2.send_headers(1, [*ANSWER_HEADERS, ("long", "x" * 100_000)])
    with pytest.raises(Http2Error, match="headers"):
        talk(client, server)


@pytest.mark.parametrize("kind", [http2.HEADERS, http2.CONTINUATION])
def test_a_block_of_headers_over_the_limit_is_refused(kind: int) -> None:
    client, _ = connected()
    client.begin(b"x")
    first = http2.frame(http2.HEADERS, 0, 1, b"")
    with pytest.raises(Http2Error, match="headers"):
        client.receive(first + http2.frame(kind, http2.END_HEADERS, 1, b"\0" * 65_537))


def test_a_call_without_a_limit_names_none() -> None:
    client, server = CallConnection(request_block("/a/B", "localhost", None, [])), Server()
    client.open()
    talk(client, server)
    client.begin(b"x")
    talk(client, server)
    assert "grpc-timeout" not in server.requests[0]


# --- a call that is answered with many messages ---------------------------------------------


def streaming() -> tuple[CallConnection, Server]:
    """A call that was asked and whose answer began."""
    client, server = connected()
    client.begin(b"x")
    talk(client, server)
    server.h2.send_headers(1, ANSWER_HEADERS)
    talk(client, server)
    return client, server


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.binary(max_size=40_000), max_size=8),
    st.lists(st.integers(1, 30_000), min_size=1, max_size=8),
)
def test_messages_come_whole_in_any_pieces(messages: list[bytes], cuts: list[int]) -> None:
    client, server = streaming()
    reader, came = MessageReader(), []
    for message in messages:
        server.say(1, message)
        for piece in in_pieces(cuts)(server.h2.data_to_send()):
            client.receive(piece)
            came += reader.read(client.take_body())
        assert came[-1] == message, "as soon as its last byte is there"
        assert client.ending is None
    server.h2.send_headers(1, [("grpc-status", "9"), ("grpc-message", "over")], end_stream=True)
    talk(client, server, in_pieces(cuts))
    assert came == messages
    assert not reader.within_message
    assert client.ending == (9, "over")


@pytest.mark.interpreted
def test_the_windows_stay_open_however_long_the_call_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tideserve.replica.http2._WINDOW_STEP_BYTES", 100_000)
    client, server = streaming()
    opened = server.h2.local_flow_control_window(1)
    for _ in range(50):
        server.say(1, bytes(30_000))
        talk(client, server)
        client.take_body()
    assert server.h2.local_flow_control_window(1) > opened - 150_000
    assert server.h2.outbound_flow_control_window > opened - 150_000


def test_pings_are_answered_within_a_call_that_says_nothing() -> None:
    client, server = streaming()
    server.h2.ping(b"12345678")
    client.receive(server.h2.data_to_send())
    assert client.take_outgoing() == http2.frame(http2.PING, http2.ACK, 0, b"12345678")
    client.receive(http2.frame(http2.PING, http2.ACK, 0, bytes(8)))
    assert client.take_outgoing() == b"", "an answer is not answered"


def test_what_came_before_a_reset_can_be_taken() -> None:
    client, server = streaming()
    server.say(1, b"last words")
    server.h2.reset_stream(1, http2.INTERNAL_ERROR)
    with pytest.raises(Http2Error, match="error 2"):
        client.receive(server.h2.data_to_send())
    assert MessageReader().read(client.take_body()) == [b"last words"]


def test_a_server_that_leaves_goes_on_with_the_call_it_took() -> None:
    client, server = streaming()
    client.receive(http2.frame(http2.GOAWAY, 0, 0, (1).to_bytes(4) + bytes(4)))
    server.say(1, b"still here")
    client.receive(server.h2.data_to_send())
    assert MessageReader().read(client.take_body()) == [b"still here"]
    with pytest.raises(Http2Error, match="leaves"):
        client.receive(http2.frame(http2.GOAWAY, 0, 0, bytes(8)))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_taken_or_refused_with_one_kind_of_error(data: bytes) -> None:
    client, _ = connected()
    client.begin(b"x")
    with suppress(Http2Error):
        client.receive(data)
