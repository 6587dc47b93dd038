"""The policy of an autoscaler file: every model version by its own targets, then by devices."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tideserve.autoscaler.core.decision import Decision, Inputs
from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.core.marginal import Gains
from tideserve.autoscaler.core.placement import Demand, place
from tideserve.autoscaler.core.policy import PolicyState, decide
from tideserve.autoscaler.core.settings import ModelPolicy, ScalingSettings
from tideserve.autoscaler.core.startup import StartUps
from tideserve.autoscaler.core.window import LoadWindow

_RETIRES = Decision(
    0,
    "retires: the model version is not wanted, or no replica can load it",
    limited_by="not wanted",
)


@dataclass(slots=True)
class _Memory:
    """Of one model version. `placed`: what it was given last."""

    policy: PolicyState = field(default_factory=PolicyState)
    start_ups: StartUps = field(default_factory=StartUps)
    was_ready: bool = False
    placed: int | None = None


class ElasticPolicy:
    """Owns what is remembered of each wanted model version; forgets those that are gone."""

    def __init__(self, settings: ScalingSettings) -> None:
        self.settings = settings
        self._memories: dict[ModelKey, _Memory] = {}

    def adopt(self, settings: ScalingSettings) -> None:
        """Takes another file's settings and keeps what was learned."""
        self.settings = settings

    def decide(
        self, snapshot: Snapshot, sample: Sample, now_s: float
    ) -> Mapping[ModelKey, Decision]:
        """One decision a model version."""
        wanted = [model for model in snapshot.models if model.wanted]
        keys = {model.key for model in wanted}
        for key in keys - self._memories.keys():
            self._memories[key] = self._inherited(key)
        self._memories = {key: memory for key, memory in self._memories.items() if key in keys}
        decisions = {model.key: self._decide(model, snapshot, sample, now_s) for model in wanted}
        placed = self._placed(decisions)
        for key, decision in placed.items():
            self._memories[key].placed = decision.desired
        return placed | {model.key: _RETIRES for model in snapshot.models if not model.wanted}

    def _decide(self, model: Model, snapshot: Snapshot, sample: Sample, now_s: float) -> Decision:
        key = model.key
        memory = self._memories[key]
        replicas = [replica for replica in snapshot.replicas if replica.key == key]
        if memory.placed is None:  # a restarted autoscaler: what runs has its slots
            memory.placed = _count(replicas, ReplicaState.READY) + _count(
                replicas, ReplicaState.STARTING
            )
        memory.start_ups = memory.start_ups.push(replicas)
        memory.was_ready = memory.was_ready or any(replica.was_ready for replica in replicas)
        policy = self.settings.policy_of(key.name)
        load = sample.loads.get(key)
        if model.served or (load is not None and load.succeeded):
            memory.was_ready = True
        inputs = Inputs(
            ready=_count(replicas, ReplicaState.READY),
            starting=_count(replicas, ReplicaState.STARTING),
            load=load,
            startup_s=memory.start_ups.expected_s(),
            unix_s=sample.unix_s,
            was_ready=memory.was_ready,
            latency_target_s=model.latency_target_s,
            triggers=_readings(policy, key.name, sample),
            pin=sample.pins.get(key),
            held_requests=model.held_requests,
        )
        memory.policy, decision = decide(memory.policy, inputs, now_s, policy)
        return decision

    def _inherited(self, key: ModelKey) -> _Memory:
        """New files of a version take over with as many replicas as the old ones have: what was
        held goes on, for a whole hold from their first load. What they can do is learned anew."""
        for known, memory in self._memories.items():
            if (known.name, known.version) == (key.name, key.version):
                learned = replace(memory.policy.learned, window=LoadWindow(), gains=Gains())
                policy = replace(memory.policy, learned=learned, desired=None)
                return _Memory(policy, memory.start_ups)
        return _Memory()

    def _placed(self, decisions: Mapping[ModelKey, Decision]) -> dict[ModelKey, Decision]:
        """As many of them as the devices have slots and memory for."""
        demands = [self._demand(key, decision) for key, decision in decisions.items()]
        given = place(demands, self.settings.devices)
        placed = {}
        for key, decision in decisions.items():
            if given[key] < decision.desired:
                decision = replace(
                    decision,
                    desired=given[key],
                    limited_by=f"devices: {decision.desired} wanted, slots for {given[key]}",
                )
            placed[key] = decision
        return placed

    def _demand(self, key: ModelKey, decision: Decision) -> Demand:
        policy = self.settings.policy_of(key.name)
        numbers = decision.inputs
        # S2: what has no data keeps the slots that it has, and claims no others.
        kept = int(numbers["present"]) if "rows_per_s_20s" not in numbers else 0
        return Demand(
            key=key,
            desired=decision.desired,
            has=self._memories[key].placed or 0,
            least=max(policy.min_replicas, kept),
            priority=policy.priority,
            rows_per_s=numbers.get("capacity_rows_per_s", 0.0),
            asked_rows_per_s=max(
                numbers.get("rows_per_s_20s", 0.0), numbers.get("rows_per_s_4s", 0.0)
            ),
            memory_bytes=policy.memory_bytes,
        )


def _count(replicas: list[Replica], state: ReplicaState) -> int:
    return sum(replica.state is state for replica in replicas)


def _readings(policy: ModelPolicy, model: str, sample: Sample) -> dict[str, float]:
    return {
        trigger.name: sample.triggers[model, trigger.name]
        for trigger in policy.triggers
        if (model, trigger.name) in sample.triggers
    }
