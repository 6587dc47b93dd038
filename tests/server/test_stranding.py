"""A version that nobody serves and nobody could start says so, after a grace (15.7)."""

from dataclasses import dataclass, field

from tests.server.samples import make_found, serve
from tideserve.server.core.actions import Action, Fail, FailureCause
from tideserve.server.core.request import Request
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.models import ModelKey, ModelState, ModelTable
from tideserve.server.stranding import GRACE_S, Stranding


@dataclass
class World:
    """A version that was READY and has no replica."""

    models: ModelTable = field(default_factory=ModelTable)
    scheduler: Scheduler = field(default_factory=Scheduler)
    key: ModelKey = field(init=False)
    stranding: Stranding = field(init=False)

    def __post_init__(self) -> None:
        (self.key,) = serve(self.models, make_found())
        spec = self.models.entries[self.key].spec
        assert spec is not None
        self.scheduler.add_model(self.key, spec.settings)
        self.stranding = Stranding(self.models, self.scheduler)

    def state(self) -> ModelState:
        return self.models.entries[self.key].state

    def look(self, now_s: float, *, has_autoscaler: bool = False, limit: str = "") -> list[Action]:
        limited = {self.key: limit} if limit else {}
        return self.stranding.look(has_autoscaler=has_autoscaler, now_s=now_s, limited=limited)


def test_after_the_grace_what_waits_fails_as_unavailable() -> None:
    world = World()
    assert world.scheduler.on_arrival(world.key, Request(1, 1, 8, "s", 0.0), 0.0) is None
    assert world.look(10.0) == []
    assert world.look(10.0 + GRACE_S - 0.1) == []
    assert world.state() is ModelState.READY

    (failed,) = world.look(10.0 + GRACE_S)

    assert isinstance(failed, Fail)
    assert failed.cause is FailureCause.UNAVAILABLE
    assert world.state() is ModelState.UNAVAILABLE
    assert world.look(100.0) == []


def test_an_autoscaler_makes_the_grace_begin_anew_and_what_was_given_up_ready() -> None:
    world = World()
    world.look(0.0)
    world.look(GRACE_S - 1.0, has_autoscaler=True)
    world.look(GRACE_S)
    world.look(2 * GRACE_S - 0.1)
    assert world.state() is ModelState.READY
    world.look(2 * GRACE_S)
    assert world.state() is ModelState.UNAVAILABLE
    assert not world.models.all_ready()

    world.look(2 * GRACE_S, has_autoscaler=True)
    assert world.state() is ModelState.READY


def test_a_replica_that_is_on_its_way_ends_the_grace() -> None:
    world = World()
    world.look(0.0)
    world.scheduler.members.announce("r", world.key, 1.0)
    assert world.look(GRACE_S) == []
    world.scheduler.on_lost("r", GRACE_S, "gone")
    assert world.look(GRACE_S + 1.0) == []
    assert world.look(2 * GRACE_S) == []
    assert world.state() is ModelState.READY
    world.look(2 * GRACE_S + 1.0)
    assert world.state() is ModelState.UNAVAILABLE


def test_a_version_that_fails_for_another_reason_is_not_made_ready() -> None:
    world = World()
    world.models.fail(world.key, "broken")
    world.look(0.0)
    world.look(GRACE_S)
    world.look(GRACE_S, has_autoscaler=True)
    assert world.state() is ModelState.UNAVAILABLE
    assert world.models.entries[world.key].reason == "broken"


def test_one_that_its_autoscaler_may_not_start_is_unavailable_until_it_may() -> None:
    world = World()
    assert world.scheduler.on_arrival(world.key, Request(1, 1, 8, "s", 0.0), 0.0) is None
    assert world.look(0.0, has_autoscaler=True, limit="max: 0") == []
    assert world.look(GRACE_S - 0.1, has_autoscaler=True, limit="max: 0") == []

    (failed,) = world.look(GRACE_S, has_autoscaler=True, limit="max: 0")

    assert isinstance(failed, Fail)
    assert failed.cause is FailureCause.UNAVAILABLE
    assert "its autoscaler may not start one: max: 0" in failed.detail
    world.look(2 * GRACE_S, has_autoscaler=True, limit="max: 0")
    assert world.state() is ModelState.UNAVAILABLE
    assert world.models.all_ready(), "that is no fault of the server's"
    assert world.look(2 * GRACE_S, has_autoscaler=True) == []
    assert world.state() is ModelState.READY


def test_a_limit_of_another_version_or_one_that_has_a_replica_strands_nobody() -> None:
    world = World()
    other = {ModelKey("other", 1, "g"): "max: 0"}
    for now_s in (0.0, GRACE_S):
        assert world.stranding.look(has_autoscaler=True, now_s=now_s, limited=other) == []
    world.scheduler.members.announce("r", world.key, 1.0)
    for now_s in (0.0, GRACE_S, 2 * GRACE_S):
        assert world.look(now_s, has_autoscaler=True, limit="pinned") == []
    assert world.state() is ModelState.READY
