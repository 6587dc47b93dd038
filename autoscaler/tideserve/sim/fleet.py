"""The autoscaler's core in virtual time: it looks, decides and acts on a simulated engine.

Policy and reconciling are `tideserve.autoscaler.core`'s own objects; what the real loop does
with launchers and the wire happens here to instances and to the scheduler's members.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, assert_never

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
from tideserve.autoscaler.core.decision import Decision, Policy
from tideserve.autoscaler.core.fleet import (
    Exit,
    Instance,
    Model,
    ModelKey,
    Observed,
    Replica,
    ReplicaState,
    Snapshot,
)
from tideserve.autoscaler.core.load import Histogram, Load, Sample
from tideserve.autoscaler.core.reconcile import reconcile
from tideserve.autoscaler.core.state import ReconcileState, Rules
from tideserve.sim.book import WAIT_BOUNDS_S
from tideserve.sim.engine import Engine
from tideserve.sim.hardware import Hardware, Spread
from tideserve.sim.replica import SimReplica
from tideserve.sim.served import Served

TICK_S: Final = 0.25
_EPOCH: Final = 1


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """`initial`: replicas that are READY at the start, by model, and `latency_target_s` of each.
    `unix_s`: the wall time of virtual second 0, for schedules and the time of day, of which
    `day_speed` seconds go by in a virtual one."""

    initial: Mapping[ModelKey, int]
    latency_target_s: Mapping[ModelKey, float]
    tick_s: float = TICK_S
    unix_s: float = 1.7e9
    day_speed: float = 1.0
    rules: Rules = field(default_factory=Rules)


class Fleet:
    """Owns the instances of one engine, of all its models, and what reconciling remembers."""

    def __init__(self, engine: Engine, policy: Policy, settings: FleetSettings) -> None:
        self._engine = engine
        self._served = {_named(one.key): one for one in engine.served.values()}
        self._policy = policy
        self._settings = settings
        self._state = ReconcileState(life=1)
        self._instances: dict[str, Instance] = {}
        self._desired: dict[ModelKey, int] = {}
        self.decisions: dict[ModelKey, list[tuple[float, Decision]]] = {
            key: [] for key in self._served
        }
        engine.on_ended = self._ended

    def begin(self) -> None:
        """The replicas that are there, and the first look."""
        engine = self._engine
        room = {device.name: device.slots for device in self._settings.rules.devices}
        for key, served in self._served.items():
            for number in range(self._settings.initial[key]):
                device = max(room, key=lambda name: room[name])
                room[device] -= 1
                replica = self._launch(f"{key.name}-initial-{number}", key, device)
                replica.startup_s = served.hardware.start_s.draw_s(engine.generator)
                replica.launched_s -= replica.startup_s
                if engine.join(replica):
                    engine.ready(replica)
            served.book.starts = 0
        engine.at(0.0, self._look)

    # --- one look -------------------------------------------------------------------------

    def _look(self, now_s: float) -> None:
        snapshot = self._snapshot(now_s)
        decisions = self._policy.decide(snapshot, self._sample(now_s), now_s)
        self._record(decisions, snapshot, now_s)
        self._state, actions = reconcile(
            self._state,
            Observed(snapshot, tuple(self._instances.values())),
            {key: decision.desired for key, decision in decisions.items()},
            now_s,
            self._settings.rules,
        )
        for action in actions:
            self._act(action, now_s)
        self._engine.at(now_s + self._settings.tick_s, self._look)

    def _record(
        self, decisions: Mapping[ModelKey, Decision], snapshot: Snapshot, now_s: float
    ) -> None:
        for key, served in self._served.items():
            states = [replica.state for replica in snapshot.replicas if replica.key == key]
            book, decision = served.book, decisions[key]
            book.counts.append(
                (now_s, states.count(ReplicaState.READY), states.count(ReplicaState.STARTING))
            )
            if decision.desired != self._desired.get(key):
                self._desired[key] = decision.desired
                book.desired.append((now_s, decision.desired))
                self.decisions[key].append((now_s, decision))

    def _act(self, action: Action, now_s: float) -> None:
        engine = self._engine
        members = engine.scheduler.members
        match action:
            case Start(replica_id, key, device):
                members.announce(replica_id, key, now_s)
                prepared = self._instances.get(replica_id)
                hardware = self._hardware(key)
                spread = hardware.prepared_s if prepared is not None else hardware.start_s
                self._start(self._launch(replica_id, key, device), key, spread, now_s)
            case Assign(replica_id, key):
                self._assign(engine.replicas[replica_id], key, now_s)
            case Prepare(replica_id, device):
                self._instances[replica_id] = Instance(replica_id, None, device, prepared=True)
            case Announce(replica_id, key):
                members.announce(replica_id, key, now_s)
            case Drain(replica_id):
                engine.perform(engine.scheduler.on_drain(replica_id, now_s, action.reason))
            case Kill(replica_id):
                self._kill(replica_id, now_s)
            case Report(replica_id):
                self._instances.pop(replica_id, None)
                members.forget(replica_id)
            case _:
                assert_never(action)

    # --- lives ----------------------------------------------------------------------------

    def _launch(self, replica_id: str, key: ModelKey | None, device: str) -> SimReplica:
        self._engine.scheduler.members.announce(replica_id, key, self._engine.now_s)
        self._instances[replica_id] = Instance(replica_id, key, device)
        return self._engine.launch(replica_id, key, device)

    def _start(
        self, replica: SimReplica, key: ModelKey | None, spread: Spread, now_s: float
    ) -> None:
        replica.startup_s = spread.draw_s(self._engine.generator)

        def is_up(_: float) -> None:
            if self._engine.join(replica) and key is not None:
                self._engine.ready(replica)

        self._engine.at(now_s + replica.startup_s, is_up)

    def _assign(self, replica: SimReplica, key: ModelKey, now_s: float) -> None:
        if not self._engine.scheduler.members.assign(replica.replica_id, key, now_s):
            return
        self._engine.give(replica, key)
        replica.startup_s = self._hardware(key).load_s.draw_s(self._engine.generator)
        self._engine.at(now_s + replica.startup_s, lambda _: self._engine.ready(replica))

    def _kill(self, replica_id: str, now_s: float) -> None:
        engine = self._engine
        replica = engine.replicas.get(replica_id)
        if replica is None:
            self._instances.pop(replica_id, None)
            return
        engine.end(replica, "killed by SIGKILL")
        engine.perform(
            engine.scheduler.on_lost(replica_id, now_s, "killed by its launcher", death=False)
        )

    def _ended(self, replica: SimReplica) -> None:
        known = self._instances.get(replica.replica_id)
        if known is not None:
            self._instances[replica.replica_id] = Instance(
                replica.replica_id, known.key, known.device, Exit(replica.over)
            )

    def _hardware(self, key: ModelKey | None) -> Hardware:
        """A standby starts as the first model's replicas do."""
        served = self._served.get(key) if key is not None else None
        return (served or next(iter(self._served.values()))).hardware

    # --- what the autoscaler sees -----------------------------------------------------------

    def _snapshot(self, now_s: float) -> Snapshot:
        return Snapshot(
            epoch=_EPOCH,
            models=tuple(
                Model(key, latency_target_s=self._settings.latency_target_s[key])
                for key in self._served
            ),
            replicas=tuple(
                Replica(
                    replica_id=member.replica_id,
                    key=member.model if isinstance(member.model, ModelKey) else None,
                    state=ReplicaState(member.state.value),
                    state_age_s=now_s - member.state_since_s,
                    pid=int(member.joined),
                    leases=len(member.leases),
                    was_ready=member.was_ready,
                    reason=member.reason,
                    startup_s=self._phases(member.replica_id),
                    busy_s=self._busy_s(member.replica_id),
                )
                for member in self._engine.scheduler.members.all()
            ),
        )

    def _phases(self, replica_id: str) -> tuple[tuple[str, float], ...]:
        replica = self._engine.replicas.get(replica_id)
        if replica is None or not replica.ready:
            return ()
        return (("start", replica.startup_s),)

    def _busy_s(self, replica_id: str) -> float:
        replica = self._engine.replicas.get(replica_id)
        return 0.0 if replica is None else replica.busy_s

    def _sample(self, now_s: float) -> Sample:
        settings = self._settings
        return Sample(
            unix_s=settings.unix_s + settings.day_speed * now_s,
            loads={key: self._load(served, now_s) for key, served in self._served.items()},
        )

    def _load(self, served: Served, now_s: float) -> Load:
        book, model = served.book, self._engine.scheduler.models[served.key]
        oldest_s = model.queue.oldest_arrival_s()
        return Load(
            at_s=now_s,
            arrivals=served.arrivals,
            rejected=book.rejected,
            expired=book.expired,
            succeeded=book.succeeded,
            failed=book.failed,
            rows=book.rows,
            queue_wait_s=Histogram(WAIT_BOUNDS_S, tuple(map(float, book.wait_counts))),
            queued_requests=model.queue.requests,
            queued_rows=model.queue.rows,
            leased_requests=model.leased_requests,
            oldest_age_s=0.0 if oldest_s is None else now_s - oldest_s,
            profile=tuple(model.profile.points()),
        )


def _named(key: object) -> ModelKey:
    assert isinstance(key, ModelKey), "the autoscaler names models by ModelKey"
    return key
