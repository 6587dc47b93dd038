"""Random histories: whatever happens to replicas, models and the frontend, S1-S4 hold."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.autoscaler.world import DIGITS, World
from tideserve.autoscaler.core.actions import (
    Action,
    Announce,
    Assign,
    Drain,
    Kill,
    Prepare,
    Report,
    Start,
)
from tideserve.autoscaler.core.fleet import Model, ModelKey, ReplicaState
from tideserve.autoscaler.core.settings import Device
from tideserve.autoscaler.core.state import Rules

# Room for the most that is desired, 4 + 1, and none to spare for standbys then.
DEVICES = (Device("cpu", slots=3), Device("gpu:0", slots=2))
SLOTS = sum(device.slots for device in DEVICES)
OTHER = ModelKey("other", 2, "g1")
PICK = st.integers(min_value=0, max_value=1000)


class Histories(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.world = World(
            desired={DIGITS: 2, OTHER: 1},
            models={DIGITS: Model(DIGITS), OTHER: Model(OTHER)},
            rules=Rules(standby=1, prepared=1, devices=DEVICES),
        )
        self.names: set[str] = set()
        self.prepared: set[str] = set()

    @initialize()
    def a_fleet_that_runs(self) -> None:
        """Else most histories end before there is a joined standby."""
        self.look(0.0)
        for name in list(self.world.replicas):
            self._join(name, leases=0)

    # --- what happens -------------------------------------------------------------------

    @rule(after_s=st.sampled_from([0.0, 0.01, 0.25, 0.6, 1.1, 5.5, 31.0, 130.0]))
    def look(self, after_s: float) -> None:
        world = self.world
        draining = {
            name
            for name, replica in world.replicas.items()
            if replica.state in (ReplicaState.DRAINING, ReplicaState.LOST)
        }
        serving = {
            name
            for name, replica in world.replicas.items()
            if replica.state is ReplicaState.READY
            or (replica.state is ReplicaState.DRAINING and replica.leases)
        }
        joined = self._joined_standbys()
        actions = world.step(after_s)
        if world.away or world.stopping:
            assert not [
                action for action in actions if isinstance(action, Start | Drain | Announce)
            ]
        if world.away:
            assert actions == []
        for action in actions:
            self._check(action, draining, serving)
            if isinstance(action, Start) and action.key in world.state.failures:
                assert world.now_s >= world.state.failures[action.key].not_before_s
        self._check_counts(actions)
        self._check_standbys(actions, joined)
        self._check_slots(actions)
        if not world.away:  # what is remembered is bounded by what there is
            over = {action.replica_id for action in actions if isinstance(action, Report)}
            known = world.replicas.keys() | world.instances.keys()
            assert world.state.records.keys() <= known | over
            assert world.state.failures.keys() <= {DIGITS, OTHER, None}

    def _check(self, action: Action, draining: set[str], serving: set[str]) -> None:
        match action:
            case Start():
                assert action.replica_id not in self.names, "a name was used twice"
                self.names.add(action.replica_id)
                assert action.key is None or self.world.models[action.key].wanted
            case Drain():
                assert action.replica_id not in draining
            case Kill():  # S4: what serves is never killed
                assert action.replica_id not in serving
            case Report():
                assert action.failed_starts >= 0
                assert bool(action.give_up_reason) <= bool(action.cause)
            case Prepare():
                assert action.replica_id not in self.names | self.prepared
                self.prepared.add(action.replica_id)
            case Assign():
                assert self.world.models[action.key].wanted
            case Announce():
                pass

    def _check_counts(self, actions: list[Action]) -> None:
        """S1: a start never makes more than desired, what is starting included."""
        for key in {a.key for a in actions if isinstance(a, Start) and a.key is not None}:
            capacity = [
                replica
                for replica in self.world.replicas.values()
                if replica.key == key
                and self._serving(replica.state)
                and replica.replica_id not in self._told_to_drain()
                and self.world.instances[replica.replica_id].exit is None
                and self.world.state.records[replica.replica_id].drain_since_s is None
            ]
            assert len(capacity) <= self.world.desired[key]

    def _told_to_drain(self) -> set[str]:
        records = self.world.state.records
        return {name for name, record in records.items() if record.drain_since_s is not None}

    def _check_standbys(self, actions: list[Action], joined: set[str]) -> None:
        """A joined standby is not drained, and nothing new is started, while a model needs it."""
        assigned = {a.replica_id for a in actions if isinstance(a, Assign)}
        drained = {a.replica_id for a in actions if isinstance(a, Drain)} & joined
        started = any(isinstance(a, Start) and a.key is not None for a in actions)
        if started:
            assert joined <= assigned
        if drained:
            for key, desired in self.world.desired.items():
                if self.world.models[key].wanted and key not in self.world.state.failures:
                    counted = [
                        name
                        for name, record in self.world.state.records.items()
                        if record.key == key
                        and record.verdict is None
                        and record.drain_since_s is None
                    ]
                    assert len(counted) >= desired

    def _check_slots(self, actions: list[Action]) -> None:
        """A start never makes more than a device has slots."""
        for device in DEVICES:
            if any(isinstance(a, Start) and a.device == device.name for a in actions):
                running = [
                    instance
                    for instance in self.world.instances.values()
                    if instance.device == device.name
                    and instance.exit is None
                    and not instance.prepared
                ]
                assert len(running) <= device.slots

    def _joined_standbys(self) -> set[str]:
        """Those that can be given a model at once."""
        world = self.world
        return {
            name
            for name, replica in world.replicas.items()
            if replica.state is ReplicaState.STANDBY
            and name in world.living()
            and name in world.state.records
            and world.state.records[name].key is None
            and world.state.records[name].drain_since_s is None
            and world.state.records[name].verdict is None
        }

    @staticmethod
    def _serving(state: ReplicaState) -> bool:
        return state in (ReplicaState.STARTING, ReplicaState.READY)

    @precondition(lambda self: self.world.replicas)
    @rule(pick=PICK, leases=st.integers(min_value=0, max_value=2))
    def becomes_ready(self, pick: int, leases: int) -> None:
        self._join(self._pick(pick), leases)

    @rule()
    def all_become_ready(self) -> None:
        for name in list(self.world.replicas):
            self._join(name, leases=0)

    def _join(self, name: str, leases: int) -> None:
        replica = self.world.replicas[name]
        if replica.state is ReplicaState.STARTING and self._runs(name):
            if replica.key is None:
                self.world.stand_by(name)
            else:
                self.world.set(name, ReplicaState.READY, was_ready=True, leases=leases)

    @precondition(lambda self: self.world.instances)
    @rule(pick=PICK, attributed=st.booleans())
    def dies(self, pick: int, attributed: bool) -> None:
        name = sorted(self.world.instances)[pick % len(self.world.instances)]
        replica = self.world.replicas.get(name)
        self.world.end(name)
        if replica is not None and replica.was_ready and name in self.world.replicas:
            self.world.lose(name, attributed=attributed)

    @precondition(lambda self: self.world.replicas)
    @rule(pick=PICK)
    def freezes(self, pick: int) -> None:
        self.world.lose(self._pick(pick))

    @rule(count=st.integers(min_value=0, max_value=4))
    def load_changes(self, count: int) -> None:
        self.world.desired[DIGITS] = count

    @rule(count=st.integers(min_value=0, max_value=2))
    def standbys_change(self, count: int) -> None:
        self.world.rules = replace(self.world.rules, standby=count)

    @rule(deaf=st.booleans())
    def frontend_loses_words_or_not(self, deaf: bool) -> None:
        self.world.deaf = deaf

    @rule(wanted=st.booleans())
    def model_comes_or_goes(self, wanted: bool) -> None:
        self.world.models[OTHER] = Model(OTHER, wanted=wanted)

    @rule(away=st.booleans())
    def frontend_goes_or_comes(self, away: bool) -> None:
        self.world.away = away

    @rule(stopping=st.booleans())
    def frontend_stops_or_not(self, stopping: bool) -> None:
        self.world.stopping = stopping

    @rule()
    def frontend_restarts(self) -> None:
        self.world.epoch += 1
        self.world.replicas.clear()

    # --- what holds ---------------------------------------------------------------------

    @invariant()
    def backoff_is_within_its_bounds(self) -> None:
        for failures in self.world.state.failures.values():
            wait_s = failures.not_before_s - failures.last_s
            assert 0.49 <= wait_s <= 60.01
            assert failures.given_up == (failures.count >= 5)

    def teardown(self) -> None:
        """Left in peace, the fleet becomes what is desired."""
        world = self.world
        world.away = world.stopping = world.deaf = False
        for _ in range(400):
            world.step(1.0)
            for name, replica in list(world.replicas.items()):
                if not self._runs(name):
                    continue
                if replica.state is ReplicaState.STARTING and replica.key is None:
                    world.stand_by(name)
                elif replica.state is ReplicaState.STARTING:
                    world.set(name, ReplicaState.READY, was_ready=True)
                elif replica.state is ReplicaState.READY:
                    age_s = replica.state_age_s + 1.0
                    world.set(name, ReplicaState.READY, state_age_s=age_s, was_ready=True)
                elif replica.state is ReplicaState.DRAINING:
                    world.end(name, "exit code 0")
        for key, model in world.models.items():
            ready = [
                replica.replica_id
                for replica in world.replicas.values()
                if replica.key == key and replica.state is ReplicaState.READY
            ]
            assert len(ready) == (world.desired[key] if model.wanted else 0)
            assert set(ready) <= set(world.living())
        models = sum(world.desired[key] for key, model in world.models.items() if model.wanted)
        spares = [r for r in world.replicas.values() if r.state is ReplicaState.STANDBY]
        assert len(spares) == min(world.rules.standby, SLOTS - models)
        started = [i for i in world.instances.values() if not i.prepared]
        assert len(world.instances) - len(started) == world.rules.prepared
        assert len(started) == len(world.replicas)
        assert len(world.living()) == len(world.instances)

    def _pick(self, pick: int) -> str:
        return sorted(self.world.replicas)[pick % len(self.world.replicas)]

    def _runs(self, name: str) -> bool:
        return name in self.world.living()


Histories.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase
