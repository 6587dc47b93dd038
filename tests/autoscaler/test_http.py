"""The autoscaler's HTTP server over real sockets."""

import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry, Gauge

from tests.autoscaler.waiting import eventually
from tideserve.autoscaler.errors import LaunchError, NoSuchReplicaError, SettingsError
from tideserve.autoscaler.http import MAX_CALLERS, HttpServer


class Decisions:
    def recent(self, count: int) -> list[dict[str, Any]]:
        return [{"desired": number} for number in range(5)][-count:]


def log_of(replica_id: str, lines: int) -> tuple[str, ...]:
    if replica_id == "down":
        raise LaunchError("the engine does not answer")
    if replica_id != "a/b":
        raise NoSuchReplicaError(f"no log of a replica {replica_id!r} is kept here")
    return tuple(f"line {number}" for number in range(10))[-lines:]


def make(port: int = 0, *, fall_back: bool = False) -> HttpServer:
    registry = CollectorRegistry()
    Gauge("answer", "For a test.", registry=registry).set(42)
    return HttpServer(
        "127.0.0.1",
        port,
        token="secret",
        registry=registry,
        journal=Decisions(),
        log_of=log_of,
        fall_back=fall_back,
    )


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    server = make()
    server.start()
    with httpx.Client(base_url=f"http://{server.address}", trust_env=False) as client:
        yield client
    server.close()


def test_metrics_health_and_decisions_are_for_anyone(client: httpx.Client) -> None:
    assert "answer 42.0" in client.get("/metrics").text
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/decisions?count=2").json() == [{"desired": 3}, {"desired": 4}]
    assert len(client.get("/decisions?count=many").json()) == 5
    assert len(client.get(f"/decisions?count={'9' * 5000}").json()) == 5


def test_a_log_needs_the_token(client: httpx.Client) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "secret"}):
        response = client.get("/replicas/a%2Fb/log", headers=headers)
        assert response.status_code == 401
        assert "line" not in response.text
    response = client.get("/replicas/a%2Fb/log?lines=2", headers={"Authorization": "Bearer secret"})
    assert response.text == "line 8\nline 9\n"


def test_an_unknown_replica_and_an_unknown_page_are_404(client: httpx.Client) -> None:
    headers = {"Authorization": "Bearer secret"}
    response = client.get("/replicas/x/log", headers=headers)
    assert (response.status_code, "no log of a replica 'x'" in response.text) == (404, True)
    response = client.get("/replicas/down/log", headers=headers)
    assert (response.status_code, response.text) == (503, "the engine does not answer\n")
    response = client.get("/nothing")
    assert (response.status_code, "expected /metrics" in response.text) == (404, True)
    assert client.post("/metrics").status_code == 501


def test_a_target_that_is_no_path_is_a_400() -> None:
    status, _, body = make().answer("//[", "", "")
    assert (status, body.startswith(b"expected a path, got '//['")) == (400, True)


def test_a_taken_port_is_an_error_or_another_one_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingsError, match=f"cannot listen on 127.0.0.1:{port}"):
            make(port).start()
        server = make(port, fall_back=True)
        server.start()
        try:
            assert server.address != f"127.0.0.1:{port}"
            assert httpx.get(f"http://{server.address}/healthz", trust_env=False).text == "ok\n"
        finally:
            server.close()


def test_callers_beyond_the_bound_are_turned_away_until_one_leaves() -> None:
    server = make()
    server.start()
    host, _, port = server.address.rpartition(":")
    callers = [socket.create_connection((host, int(port)), 10) for _ in range(MAX_CALLERS)]
    try:
        with socket.create_connection((host, int(port)), 10) as late:
            assert late.recv(1) == b""
        callers.pop().close()
        with httpx.Client(base_url=f"http://{server.address}", trust_env=False) as client:

            def is_healthy() -> bool:
                try:
                    return client.get("/healthz").status_code == 200
                except httpx.TransportError:  # the one that left has its thread yet
                    return False

            eventually(is_healthy)
    finally:
        for caller in callers:
            caller.close()
        server.close()
