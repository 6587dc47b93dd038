"""A retiring model leaves when it owes nobody anything, and not before (15.5)."""

from dataclasses import dataclass
from typing import cast

from tests.server.samples import make_found, serve
from tideserve.server.arena import Arenas
from tideserve.server.core.actions import Fail, FailureCause
from tideserve.server.core.replicas import ReplicaState
from tideserve.server.core.request import Request
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.models import ModelKey, ModelState, ModelTable
from tideserve.server.retirement import retire
from tideserve.server.service.replicas import ReplicaService


@dataclass
class World:
    """A model that serves with one READY replica."""

    models: ModelTable
    scheduler: Scheduler
    replicas: ReplicaService
    key: ModelKey

    def retire(self) -> list[object]:
        return [*retire(self.models, self.scheduler, self.replicas)]


class NoFront:
    """Nothing is sent here."""


def make_world() -> World:
    models, scheduler = ModelTable(), Scheduler()
    replicas = ReplicaService(models, scheduler, cast("object", NoFront()), 1024, Arenas(0))  # type: ignore[arg-type]
    (key,) = serve(models, make_found())
    spec = models.entries[key].spec
    assert spec is not None
    scheduler.add_model(key, spec.settings)
    scheduler.members.announce("r", key, 0.0)
    assert scheduler.members.join("r", 0.0) is not None
    assert scheduler.members.ready("r", 0.0)
    return World(models, scheduler, replicas, key)


def test_a_model_that_serves_stays() -> None:
    world = make_world()
    assert world.retire() == []

    assert world.key in world.models.entries
    assert world.key in world.scheduler.models


def test_a_retiring_model_stays_while_a_request_waits_or_a_replica_is_there() -> None:
    world = make_world()
    request = Request(1, 1, 8, "s", 0.0)
    assert world.scheduler.on_arrival(world.key, request, 0.0) is None
    world.models.unload("m")
    world.retire()
    assert world.key in world.models.entries
    world.scheduler.on_cancel(world.key, request)

    world.retire()

    assert world.key in world.models.entries, "its replica has not left"


def test_it_leaves_with_its_queue_and_its_lost_replicas_when_nothing_is_left() -> None:
    world = make_world()
    world.models.unload("m")
    world.scheduler.on_lost("r", 1.0, "killed")
    assert world.scheduler.members.of_model(world.key)[0].state is ReplicaState.LOST
    changes = world.models.changes

    assert world.retire() == []

    assert not world.models.entries
    assert not world.scheduler.models
    assert world.scheduler.members.all() == []
    assert world.models.changes > changes


def test_one_that_never_had_a_queue_leaves_too() -> None:
    world = make_world()
    world.models.load(make_found("n"))
    world.models.unload("n")

    world.retire()

    assert [key.name for key in world.models.entries] == ["m"]


def test_one_wanted_again_in_time_stays() -> None:
    world = make_world()
    world.models.unload("m")
    world.retire()
    world.models.load(make_found())
    world.scheduler.on_lost("r", 1.0, "killed")
    world.retire()

    assert world.models.entries[world.key].state is ModelState.READY


def test_what_waits_keeps_a_replaced_generation_though_its_replicas_died() -> None:
    world = make_world()
    request = Request(1, 1, 8, "s", 0.0)
    world.scheduler.on_arrival(world.key, request, 0.0)
    world.models.unload("m")
    world.scheduler.on_lost("r", 1.0, "killed")
    world.retire()

    assert world.key in world.models.entries
    assert world.scheduler.fail_queued(world.key, "x") == [
        Fail(request, FailureCause.UNAVAILABLE, "x")
    ]
