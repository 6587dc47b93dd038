"""A stream of messages over real sockets, from a server of grpcio's or from bytes."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest

from tests.replica.grpcio_server import PATH, serving_method
from tests.replica.h2_server import ANSWER_HEADERS, OK, Server
from tideserve.replica.errors import CallBrokenError
from tideserve.replica.stream import MessageStream
from tideserve.v1 import http2

Answer = Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]


def serving(
    answer: Answer, address: str = "127.0.0.1:0", **options: int
) -> AbstractContextManager[str]:
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_stream_rpc_method_handler(answer)
    return serving_method(handler, address, **options)


def stream(address: str) -> MessageStream:
    return MessageStream(address, PATH, [("token", "secret")])


def count(message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
    assert ("token", "secret") in [(key, value) for key, value in context.invocation_metadata()]
    for number in range(int(message)):
        yield bytes([number]) * 50_000


@pytest.mark.parametrize("number", [0, 1, 30])
def test_messages_come_until_the_server_ends_the_call(number: int, tmp_path: Path) -> None:
    for address in ("127.0.0.1:0", f"unix:{tmp_path}/s"):
        with serving(count, address) as at:
            call = stream(at)
            messages = list(call.messages(str(number).encode()))
            assert messages == [bytes([turn]) * 50_000 for turn in range(number)]
            assert call.ending == (0, "")


def test_a_status_is_told_after_the_messages() -> None:
    def refuse(message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        yield message
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "over: ä 100 %")

    with serving(refuse) as address:
        call = stream(address)
        assert list(call.messages(b"x")) == [b"x"]
        assert call.ending == (9, "over: ä 100 %")


def test_a_call_that_is_refused_has_no_messages() -> None:
    def refuse(message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.set_code(grpc.StatusCode.UNAUTHENTICATED)
        context.set_details("expected the token")
        return iter(())

    with serving(refuse) as address:
        call = stream(address)
        assert list(call.messages(b"x")) == []
        assert call.ending == (16, "expected the token")


@contextmanager
def reading(call: MessageStream) -> Iterator[tuple[list[bytes], "futures.Future[None]"]]:
    """Another thread reads: what it got so far, and how that ends."""
    got: list[bytes] = []

    with futures.ThreadPoolExecutor(1) as pool:
        try:
            yield got, pool.submit(lambda: got.extend(call.messages(b"x")))
        finally:
            call.close()


def test_close_wakes_the_reader_and_refuses_later_ones() -> None:
    arrived, ended = threading.Event(), threading.Event()

    def wait(message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        context.add_callback(ended.set)
        arrived.set()
        yield b"hello"
        ended.wait(10)

    with serving(wait) as address:
        call = stream(address)
        with reading(call) as (_, end):
            assert arrived.wait(10)
            call.close()
            with pytest.raises(CallBrokenError, match="the life is closed"):
                end.result(5)
        assert ended.wait(5), "the server hears of it"
        with pytest.raises(CallBrokenError, match="the life is closed"):
            list(call.messages(b"x"))


def test_a_silent_call_outlives_the_time_to_open_and_answers_the_servers_pings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tideserve.replica.stream._OPEN_TIMEOUT_S", 1)
    silent = threading.Event()

    def wait(message: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        silent.wait(2.5)
        yield b"alive" if context.is_active() else b"gone"

    with serving(wait, keepalive_time_ms=300, keepalive_timeout_ms=300) as address:
        assert list(stream(address).messages(b"x")) == [b"alive"]


def test_no_server_breaks_the_call(tmp_path: Path) -> None:
    for address in (f"unix:{tmp_path}/none", "host..name:1"):
        with pytest.raises(CallBrokenError, match="cannot connect"):
            list(stream(address).messages(b"x"))


# --- a server made of bytes -------------------------------------------------------------------


@contextmanager
def accepting() -> Iterator[tuple[socket.socket, str]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)
        yield listener, f"127.0.0.1:{listener.getsockname()[1]}"


def accept(listener: socket.socket) -> tuple[socket.socket, Server]:
    """A connection whose call was asked."""
    sock, _ = listener.accept()
    sock.settimeout(10)
    server = Server()
    while 1 not in server.ended:
        sock.sendall(server.h2.data_to_send())
        server.take(sock.recv(65_536))
    return sock, server


def test_what_the_server_said_before_it_broke_the_call_is_heard() -> None:
    with accepting() as (listener, address), reading(stream(address)) as (got, end):
        sock, server = accept(listener)
        with sock:
            server.h2.send_headers(1, ANSWER_HEADERS)
            server.say(1, b"last words")
            server.h2.reset_stream(1, 7)
            sock.sendall(server.h2.data_to_send())
            with pytest.raises(CallBrokenError, match=r"^127.0.0.1:\d+: .*error 7"):
                end.result(5)
        assert got == [b"last words"]


def test_a_server_that_goes_without_a_word_breaks_the_call_at_once() -> None:
    with accepting() as (listener, address), reading(stream(address)) as (_, end):
        sock, _ = accept(listener)
        sock.close()
        with pytest.raises(CallBrokenError, match="closed the connection"):
            end.result(5)


def test_an_end_within_a_message_breaks_the_call() -> None:
    with accepting() as (listener, address), reading(stream(address)) as (_, end):
        sock, server = accept(listener)
        with sock:
            server.h2.send_headers(1, ANSWER_HEADERS)
            server.h2.send_data(1, b"\0\0\0\0\5half")
            server.h2.send_headers(1, OK, end_stream=True)
            sock.sendall(server.h2.data_to_send())
            with pytest.raises(CallBrokenError, match="within a message"):
                end.result(5)


def test_a_server_that_leaves_before_the_call_is_not_asked() -> None:
    with accepting() as (listener, address), reading(stream(address)) as (_, end):
        sock, _ = listener.accept()
        with sock:
            server = Server()
            server.take(sock.recv(65_536))
            goaway = http2.frame(http2.GOAWAY, 0, 0, http2.LAST_STREAM.to_bytes(4) + bytes(4))
            sock.sendall(goaway + server.h2.data_to_send())
            with pytest.raises(CallBrokenError, match="leaves"):
                end.result(5)


def test_a_server_that_says_nothing_breaks_the_call_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tideserve.replica.stream._OPEN_TIMEOUT_S", 1)
    with accepting() as (_, address), pytest.raises(CallBrokenError, match="in time"):
        list(stream(address).messages(b"x"))
