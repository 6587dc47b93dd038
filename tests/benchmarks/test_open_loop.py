"""The open loop against a real gRPC server and a real HTTP server of this process."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import pytest

from benchmarks.errors import LoadFailedError
from benchmarks.open_loop import capacity, send_open
from benchmarks.wire import Target
from benchmarks.workloads import frame

PATH = "/test.Echo/Call"


@pytest.fixture
def grpc_address() -> Iterator[str]:
    """Answers with the bytes it got, on a few threads."""
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(
        lambda request, _: request
    )
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("test.Echo", {"Call": handler})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(grace=None).wait()


class EchoHandler(BaseHTTPRequestHandler):
    """Answers with the bytes it got; at /broken with an error."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(500 if self.path == "/broken" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing: a test's output is its own."""


class EchoServer(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


@pytest.fixture
def http_address() -> Iterator[str]:
    server = EchoServer(("127.0.0.1", 0), EchoHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def grpc_target(address: str, message: bytes) -> Target:
    headers = ("content-type: application/grpc", "te: trailers")
    return Target(f"http://{address}{PATH}", headers, frame(message), is_http1=False)


def http_target(address: str, path: str = "/") -> Target:
    return Target(f"http://{address}{path}", ("content-type: a/b",), b"x" * 64, is_http1=True)


@pytest.mark.parametrize("message_bytes", [0, 64, 600_000])
def test_every_byte_of_every_grpc_answer_is_counted(grpc_address: str, message_bytes: int) -> None:
    load = send_open(grpc_target(grpc_address, bytes(message_bytes)), 100.0, 0.3, seed=1)
    assert load.requests == 30
    assert load.data_bytes == 30 * (message_bytes + 5)
    assert 0.0 < load.p50_s <= load.p99_s
    assert load.p999_s is None


def test_every_byte_of_every_http_answer_is_counted(http_address: str) -> None:
    load = send_open(http_target(http_address), 200.0, 0.3, seed=1)
    assert (load.requests, load.data_bytes) == (60, 60 * 64)


def test_latency_is_from_when_a_request_was_due(grpc_address: str) -> None:
    """A rate that no server reaches: all are due within a ms, and most wait."""
    load = send_open(grpc_target(grpc_address, bytes(64)), 1e6, 0.002, seed=1)
    assert load.requests == 2000
    assert load.p50_s > load.seconds / 10
    assert load.p999_s is not None


def test_capacity_is_taken_with_no_more_in_flight_than_asked(
    grpc_address: str, http_address: str
) -> None:
    assert capacity(grpc_target(grpc_address, bytes(64)), requests=50, callers=4) > 0.0
    assert capacity(http_target(http_address), requests=50, callers=4) > 0.0


def test_an_http_error_gives_no_figures(http_address: str) -> None:
    with pytest.raises(LoadFailedError, match="expected HTTP 200 with a length"):
        send_open(http_target(http_address, "/broken"), 100.0, 0.05, seed=1)
