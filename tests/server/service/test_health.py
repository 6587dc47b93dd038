"""grpc.health.v1: the server, its models and their versions."""

from typing import Any

import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from tests.server.fake_front import World
from tests.server.samples import make_found
from tideserve.server.errors import Code
from tideserve.server.service.health import MAX_WATCHERS

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
UNKNOWN = HealthCheckResponse.SERVICE_UNKNOWN


def check(world: World, service: str) -> Any:
    return world.answer(
        world.call(CHECK, HealthCheckRequest(service=service)), HealthCheckResponse
    ).status


def watch(world: World, service: str) -> int:
    return world.call(WATCH, HealthCheckRequest(service=service))


def told(world: World, call_id: int) -> list[Any]:
    return [HealthCheckResponse.FromString(it).status for it in world.front.sent[call_id]]


def test_the_server_serves_whatever_its_models_do() -> None:
    world = World()

    assert check(world, "") == check(world, "inference.GRPCInferenceService") == SERVING


@pytest.mark.parametrize("service", ["m", "m/1"])
def test_a_model_serves_once_it_is_ready(service: str) -> None:
    world = World()
    assert check(world, service) == NOT_SERVING
    world.replica()

    assert check(world, service) == SERVING


@pytest.mark.parametrize("service", ["x", "m/2", "/", "M"])
def test_an_unknown_service_is_not_found_and_the_known_ones_are_named(service: str) -> None:
    world = World()
    world.replica()
    status = world.failed(world.call(CHECK, HealthCheckRequest(service=service)))

    assert status.code == Code.NOT_FOUND
    assert "inference.GRPCInferenceService, m" in status.message


def test_a_watcher_is_told_at_once_and_of_every_change_and_of_nothing_else() -> None:
    world = World()
    model, server = watch(world, "m"), watch(world, "")
    assert (told(world, model), told(world, server)) == ([NOT_SERVING], [SERVING])
    world.replica()
    assert (told(world, model), told(world, server)) == ([NOT_SERVING, SERVING], [SERVING])

    world.models.unload("m")
    world.turn()

    assert told(world, model)[-1] == NOT_SERVING
    assert told(world, server) == [SERVING]


def test_a_watcher_of_an_unknown_model_hears_when_it_comes() -> None:
    world = World()
    call_id = watch(world, "n")
    assert told(world, call_id) == [UNKNOWN]
    world.models.load(make_found("n"))
    world.turn()

    assert told(world, call_id) == [UNKNOWN, NOT_SERVING]


def test_a_broken_model_is_known_and_not_serving() -> None:
    world = World()
    world.models.load(make_found("broken", error="config.pbtxt:1: no"))

    assert check(world, "broken") == NOT_SERVING


def test_a_stopping_server_serves_nothing() -> None:
    world = World()
    world.replica()
    watcher = watch(world, "m")
    world.dispatcher.announce_stop()

    assert check(world, "") == check(world, "m") == NOT_SERVING
    assert told(world, watcher) == [SERVING, NOT_SERVING]


def test_a_watcher_that_left_is_told_nothing_and_makes_room() -> None:
    world = World()
    watchers = [watch(world, "m") for _ in range(MAX_WATCHERS)]
    refused = world.failed(watch(world, "m"))
    assert refused.code == Code.RESOURCE_EXHAUSTED
    assert str(MAX_WATCHERS) in refused.message
    world.cancel(watchers[0])
    world.replica()

    assert told(world, watchers[0]) == [NOT_SERVING]
    assert told(world, watchers[1]) == [NOT_SERVING, SERVING]
    assert world.is_open(watch(world, "m"))
