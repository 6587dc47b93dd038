"""What the autoscaler file says, as the core takes it: checked values, seconds and counts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, tzinfo


@dataclass(frozen=True, slots=True)
class QueueTarget:
    """This quantile of the queue wait shall stay below `target_s`. None: 0.1 s, or what the
    latency target leaves beside a batch where there is one: a batch that waits for more rows
    uses it all."""

    quantile: float = 0.95
    target_s: float | None = None


@dataclass(frozen=True, slots=True)
class StepLimits:
    """At most that many replicas more, or fewer, within `per_s`. None: no limit."""

    up: int | None = None
    down: int | None = None
    per_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """At least `min_replicas` for `duration_s` from each time that `cron` names."""

    cron: str
    duration_s: float
    min_replicas: int
    zone: tzinfo = UTC


@dataclass(frozen=True, slots=True)
class Trigger:
    """Replicas so that the reading of `query` is at most `target` a replica."""

    name: str
    query: str
    target: float


@dataclass(frozen=True, slots=True)
class ModelPolicy:
    """One model's targets and bounds.

    `latency_target_s` None: the model's own, if it has one. `growth_quantile`: of the growth of
    the rate within Tc, what is prepared for. `hold_factor`: k of H = k x Tc, unless `hold_s`
    fixes H. `idle_s`: with min_replicas 0, without arrivals for so long the last replica goes. Lower `priority` numbers are served first where devices are short.
    """

    min_replicas: int = 1
    max_replicas: int = 8
    queue_target: QueueTarget = field(default_factory=QueueTarget)
    latency_target_s: float | None = None
    growth_quantile: float = 0.9
    hold_factor: float = 3.0
    hold_s: float | None = None
    idle_s: float = 60.0
    steps: StepLimits = field(default_factory=StepLimits)
    schedules: tuple[Schedule, ...] = ()
    triggers: tuple[Trigger, ...] = ()
    priority: int = 1
    cost_per_replica_s: float = 1.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Device:
    """`name`: "cpu" or "gpu:INDEX". `slots`: replicas that fit beside each other on it.

    `cores`: CPU sets that its replicas take in turn; empty: not pinned. `memory_bytes` 0:
    not counted.
    """

    name: str = "cpu"
    slots: int = 8
    memory_bytes: int = 0
    threads: int = 1
    cores: tuple[frozenset[int], ...] = ()


@dataclass(frozen=True, slots=True)
class ScalingSettings:
    """The whole: `models` by name, `default` for every other one. `standby` replicas are
    kept joined without a model; `prepared` containers created and not started."""

    default: ModelPolicy = field(default_factory=ModelPolicy)
    models: Mapping[str, ModelPolicy] = field(default_factory=dict)
    devices: tuple[Device, ...] = (Device(),)
    standby: int = 0
    prepared: int = 0

    def policy_of(self, model: str) -> ModelPolicy:
        return self.models.get(model, self.default)
