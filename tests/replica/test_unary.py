"""Calls over real sockets, against a server of grpcio's."""

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import grpc
import pytest

from tests.replica.grpcio_server import PATH, serving_method
from tideserve.replica.errors import CallBrokenError
from tideserve.replica.unary import UnaryMethod

Answer = Callable[[bytes, grpc.ServicerContext], bytes]


def serving(answer: Answer, address: str = "127.0.0.1:0") -> AbstractContextManager[str]:
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(answer)
    return serving_method(
        handler, address, max_receive_message_length=-1, max_send_message_length=-1
    )


@contextmanager
def method(address: str, timeout_s: int = 5) -> Iterator[UnaryMethod]:
    made = UnaryMethod(address, PATH, [("token", "secret")], timeout_s)
    try:
        yield made
    finally:
        made.close()


def echo(message: bytes, context: grpc.ServicerContext) -> bytes:
    assert ("token", "secret") in [(key, value) for key, value in context.invocation_metadata()]
    return message


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_531, 3_000_000, 20_000_000])
def test_messages_come_back_whole(size: int) -> None:
    with serving(echo) as address, method(address) as call:
        message = bytes(range(256)) * (size // 256) + bytes(size % 256)
        assert call.call(message) == (0, "", message)
        assert call.call(message) == (0, "", message)


def test_a_unix_socket_is_an_address(tmp_path: Path) -> None:
    with serving(echo, f"unix:{tmp_path}/s") as address, method(address) as call:
        assert call.call(b"x") == (0, "", b"x")


def test_threads_call_beside_each_other() -> None:
    together = threading.Barrier(3, timeout=10)

    def wait(message: bytes, context: grpc.ServicerContext) -> bytes:
        together.wait()
        return message

    with serving(wait) as address, method(address) as call:
        with futures.ThreadPoolExecutor(3) as pool:
            replies = list(pool.map(call.call, [b"a", b"b", b"c"]))
        assert [reply.message for reply in replies] == [b"a", b"b", b"c"]


def test_a_status_is_told_with_its_words() -> None:
    def refuse(message: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "over: ä 100 %")
        raise AssertionError

    with serving(refuse) as address, method(address) as call:
        assert call.call(b"x") == (9, "over: ä 100 %", b"")


def test_close_ends_a_call_that_waits_and_refuses_later_ones() -> None:
    arrived, ended = threading.Event(), threading.Event()

    def wait(message: bytes, context: grpc.ServicerContext) -> bytes:
        arrived.set()
        ended.wait(10)
        return message

    with serving(wait) as address, method(address) as call:
        with futures.ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(call.call, b"x")
            assert arrived.wait(10)
            call.close()
            with pytest.raises(CallBrokenError):
                waiting.result(5)
        ended.set()
        with pytest.raises(CallBrokenError, match="closed"):
            call.call(b"x")


def test_no_server_breaks_the_call() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with (
            method(f"127.0.0.1:{taken.getsockname()[1]}") as call,
            pytest.raises(CallBrokenError, match="cannot connect"),
        ):
            call.call(b"x")


def test_a_server_that_says_nothing_breaks_the_call_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with method(address, timeout_s=1) as call, pytest.raises(CallBrokenError, match="in time"):
            call.call(b"x")


def test_a_server_that_restarts_is_found_again(tmp_path: Path) -> None:
    address = f"unix:{tmp_path}/s"
    with method(address) as call:
        with serving(echo, address):
            assert call.call(b"x").message == b"x"
        with pytest.raises(CallBrokenError):
            call.call(b"x")
        with serving(echo, address):
            assert call.call(b"y").message == b"y"
