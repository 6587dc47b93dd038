"""The HTTP port: who asks what gets which answer, and nobody holds the others up."""

import http.client
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from tideserve.server.errors import AddressInUseError
from tideserve.server.http import HttpServer


class Reason:
    """What /readyz is told."""

    def __init__(self) -> None:
        self.text: str | None = None

    def __call__(self) -> str | None:
        return self.text


@pytest.fixture
def reason() -> Reason:
    return Reason()


@pytest.fixture
def server(reason: Reason) -> Iterator[HttpServer]:
    registry = CollectorRegistry()
    Gauge("tides", "Test.", registry=registry).set(3)
    server = HttpServer("127.0.0.1", 0, registry, reason)
    server.start()
    yield server
    server.close()


def ask(server: HttpServer, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_health_and_readiness_are_answered(server: HttpServer, reason: Reason) -> None:
    assert ask(server, "/healthz") == (200, "ok\n")
    assert ask(server, "/readyz") == (200, "ok\n")
    reason.text = "m version 1 is LOADING"

    assert ask(server, "/healthz") == (200, "ok\n")
    assert ask(server, "/readyz") == (503, "m version 1 is LOADING\n")


def test_a_reason_in_any_script_is_answered(server: HttpServer, reason: Reason) -> None:
    reason.text = "é is loading"

    assert ask(server, "/readyz") == (503, "é is loading\n")


def test_metrics_are_answered(server: HttpServer) -> None:
    status, text = ask(server, "/metrics")

    assert status == 200
    assert "tides 3.0" in text


@pytest.mark.parametrize("path", ["/", "/metrics/", "/v2/health/live", "/healthz/x"])
def test_another_path_is_not_found_and_told_which_there_are(server: HttpServer, path: str) -> None:
    assert ask(server, path) == (404, "there are /metrics, /healthz, /readyz\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_another_method_is_refused(server: HttpServer, path: str, method: str) -> None:
    assert ask(server, path, method)[0] == 405


def test_head_is_answered_without_a_body(server: HttpServer) -> None:
    assert ask(server, "/healthz", "HEAD") == (200, "")


def test_garbage_is_refused_and_the_next_good_request_answered(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(b"\x16\x03\x01 not http\r\n\r\n")
        assert b"400" in client.recv(1000)

    assert ask(server, "/healthz")[0] == 200


def test_clients_that_say_nothing_hold_nobody_up(server: HttpServer) -> None:
    silent = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(20)]
    try:
        assert ask(server, "/healthz")[0] == 200
        assert ask(server, "/metrics")[0] == 200
    finally:
        for client in silent:
            client.close()


def test_a_client_that_breaks_off_leaves_no_traceback(
    server: HttpServer, capfd: pytest.CaptureFixture[str]
) -> None:
    threads = set(threading.enumerate())
    client = socket.create_connection(("127.0.0.1", server.port), 10)
    client.sendall(b"GET /metr")
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()
    # Answered on a later connection, hence after the thread of this one was started.
    assert ask(server, "/healthz")[0] == 200
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)

    assert "Traceback" not in capfd.readouterr().err


def test_a_silent_clients_connection_is_closed_without_a_traceback(
    server: HttpServer, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tideserve.server.http._Handler.timeout", 0.05)
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        assert client.recv(100) == b""

    assert "Traceback" not in capfd.readouterr().err


def test_a_port_in_use_is_named(server: HttpServer, reason: Reason) -> None:
    second = HttpServer("127.0.0.1", server.port, CollectorRegistry(), reason)

    with pytest.raises(
        AddressInUseError, match=rf"127\.0\.0\.1:{server.port} .*another --http-port"
    ):
        second.start()
    second.close()


def test_an_ipv6_address_is_listened_on(reason: Reason) -> None:
    server = HttpServer("::1", 0, CollectorRegistry(), reason)
    server.start()
    try:
        with socket.create_connection(("::1", server.port), 10) as client:
            client.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
            assert b"200 OK" in client.recv(1000)
    finally:
        server.close()


def test_closing_frees_the_port_and_ends_the_thread(reason: Reason) -> None:
    before = threading.active_count()
    server = HttpServer("127.0.0.1", 0, CollectorRegistry(), reason)
    assert server.port == 0
    server.start()
    port = server.port
    server.close()
    server.close()

    assert threading.active_count() == before
    again = HttpServer("127.0.0.1", port, CollectorRegistry(), reason)
    again.start()
    again.close()
