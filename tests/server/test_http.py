"""The HTTP port: who asks what gets which answer, and nobody holds the others up."""

import gzip
import http.client
import socket
import struct
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics

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


def test_metrics_come_as_openmetrics_and_compressed_if_asked_for(server: HttpServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    accepted = {"Accept": "application/openmetrics-text", "Accept-Encoding": "gzip"}
    connection.request("GET", "/metrics", headers=accepted)
    response = connection.getresponse()
    text = gzip.decompress(response.read()).decode()
    connection.close()

    assert response.getheader("Content-Encoding") == "gzip"
    assert str(response.getheader("Content-Type")).startswith("application/openmetrics-text")
    (family,) = openmetrics(text)  # type: ignore[no-untyped-call]
    assert (family.name, family.samples[0].value) == ("tides", 3.0)


@pytest.mark.parametrize("path", ["/", "/metrics/", "/v2/health/live", "/healthz/x"])
def test_another_path_is_not_found_and_told_which_there_are(server: HttpServer, path: str) -> None:
    assert ask(server, path) == (404, "there are /metrics, /healthz, /readyz\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize("path", ["/metrics", "/healthz"])
def test_another_method_is_refused(server: HttpServer, path: str, method: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.request(method, path)
    response = connection.getresponse()
    response.read()
    connection.close()

    assert (response.status, response.getheader("Allow")) == (405, "GET, HEAD")


def raw(server: HttpServer, request: bytes) -> tuple[bytes, bytes]:
    """Head and body as they are on the wire, which a client library would make fit."""
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(request)
        received = b"".join(iter(lambda: client.recv(65536), b""))
    head, _, body = received.partition(b"\r\n\r\n")
    return head, body


@pytest.mark.parametrize("path", [b"/healthz", b"/metrics"])
def test_head_is_answered_as_get_without_a_body(server: HttpServer, path: bytes) -> None:
    get_head, get_body = raw(server, b"GET " + path + b" HTTP/1.0\r\n\r\n")
    head, body = raw(server, b"HEAD " + path + b" HTTP/1.0\r\n\r\n")

    assert head.startswith(b"HTTP/1.0 200 OK\r\n")
    assert b"Content-Length: %d" % len(get_body) in head
    assert len(head) == len(get_head)
    assert (len(get_body) > 0, body) == (True, b"")


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


def test_one_connection_too_many_ends_the_oldest_and_is_answered(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tideserve.server.http.MAX_CONNECTIONS", 3)
    # They send a byte now and then, which no time-out sees.
    slow = [socket.create_connection(("127.0.0.1", server.port), 10) for _ in range(3)]
    try:
        for client in slow:
            client.sendall(b"G")
        assert ask(server, "/healthz") == (200, "ok\n")
        assert ended(slow[0])
        for client in slow[1:]:
            client.sendall(b"ET /healthz HTTP/1.0\r\n\r\n")
            assert b"200 OK" in client.recv(1000)
    finally:
        for client in slow:
            client.close()


def ended(client: socket.socket) -> bool:
    """Whether the server broke the connection off; waits for it."""
    try:
        while client.recv(1000):
            pass
    except ConnectionError:
        pass
    return True


def test_closing_ends_connections_and_their_threads(reason: Reason) -> None:
    before = set(threading.enumerate())
    server = HttpServer("127.0.0.1", 0, CollectorRegistry(), reason)
    server.start()
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        client.sendall(b"GET /hea")
        # Accepted after the slow one, which hence has its thread.
        assert ask(server, "/healthz")[0] == 200
        server.close()

        # At once, that is, not when the client has been silent for too long.
        assert set(threading.enumerate()) <= before
        assert ended(client)


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
