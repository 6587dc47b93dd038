"""grpc.health.v1 of the server and of each model, through loads, unloads and the stop."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import cast

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from tests.e2e.adder import write_adder
from tests.e2e.server import Server
from tideserve.client import Client
from tideserve.v1.methods import INFERENCE_SERVICE

pytestmark = pytest.mark.e2e

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN
Watched = SimpleQueue[int | grpc.StatusCode]


@pytest.fixture
def server(start_server: Callable[..., Server], tmp_path: Path, front: str) -> Server:
    repository = tmp_path / "repository"
    write_adder(repository, 1)
    write_adder(repository, 1, name="other")
    return start_server(
        repository, f"--front={front}", "--model-control=explicit", "--load-model=other"
    )


def test_health_follows_a_model_through_its_lives_and_the_servers_end(server: Server) -> None:
    with (
        grpc.insecure_channel(server.address) as channel,
        Client(server.address) as client,
        _watch(channel, "adder") as adder,
        _watch(channel, "adder/1") as version,
        _watch(channel, "other") as other,
        _watch(channel, "") as whole,
    ):
        stub = HealthStub(channel)
        for watched, status in (
            (adder, SERVICE_UNKNOWN),
            (version, SERVICE_UNKNOWN),
            (other, SERVING),
            (whole, SERVING),
        ):
            assert watched.get(timeout=5) == status
        with pytest.raises(grpc.RpcError) as unknown:
            _check(stub, "adder")
        call = cast("grpc.Call", unknown.value)
        assert call.code() is grpc.StatusCode.NOT_FOUND
        assert "other" in (call.details() or "")

        client.load("adder")
        assert [adder.get(timeout=5), version.get(timeout=5)] == [NOT_SERVING, NOT_SERVING]
        assert [adder.get(timeout=5), version.get(timeout=5)] == [SERVING, SERVING]
        for service in ("adder", "adder/1", "other", "", INFERENCE_SERVICE):
            assert _check(stub, service) == SERVING
        with pytest.raises(grpc.RpcError):
            _check(stub, "adder/2")

        client.unload("adder")
        assert [adder.get(timeout=5), version.get(timeout=5)][-1] != SERVING
        client.load("adder")
        _until_serving(adder)
        _until_serving(version)
        # Nobody else was told anything.
        assert _is_silent(other)
        assert _is_silent(whole)

        server.send(signal.SIGTERM)
        for watched in (adder, version, other, whole):
            assert watched.get(timeout=5) == NOT_SERVING
            end = watched.get(timeout=5)
            assert end in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
    # A replica that was drained before it had joined leaves like the others.
    assert server.wait_end(3) == 0, server.log


# --- inside ------------------------------------------------------------------------------------


@contextmanager
def _watch(channel: grpc.Channel, service: str) -> Iterator[Watched]:
    """Every status that a watcher is told, and the code that ends it."""
    told: Watched = SimpleQueue()
    call = HealthStub(channel).Watch(HealthCheckRequest(service=service))

    def read() -> None:
        try:
            for answer in call:
                told.put(answer.status)
        except grpc.RpcError:
            told.put(call.code())

    reader = Thread(target=read)
    reader.start()
    try:
        yield told
    finally:
        call.cancel()
        reader.join(timeout=5)
        assert not reader.is_alive()


def _check(stub: HealthStub, service: str) -> int:
    return int(stub.Check(HealthCheckRequest(service=service), timeout=5).status)


def _until_serving(watched: Watched) -> None:
    while (status := watched.get(timeout=5)) != SERVING:
        assert status in (NOT_SERVING, SERVICE_UNKNOWN)


def _is_silent(watched: Watched) -> bool:
    try:
        watched.get_nowait()
    except Empty:
        return True
    return False
