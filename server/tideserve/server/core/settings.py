"""What a model's queue and batches are bounded by: values, made from config.pbtxt."""

from dataclasses import dataclass, field
from enum import Enum


class BatchingMode(Enum):
    """When a batch is formed once a replica is free.

    EAGER: at once, from what waits. WINDOW: when the batch is full or of a preferred size,
    or the oldest request has waited `max_queue_delay_s` (Triton's dynamic_batching). SLO: as
    late and as large as the latency target allows.
    """

    EAGER = "eager"
    WINDOW = "window"
    SLO = "slo"


class OnLate(Enum):
    """What becomes of a request that cannot meet the latency target any more: it is served
    when nothing in time waits, or it expires."""

    SERVE = "serve"
    DROP = "drop"


class TimeoutAction(Enum):
    """What happens to a request whose queue-policy timeout passes: it expires, or it is
    delayed behind all that have not timed out."""

    REJECT = "reject"
    DELAY = "delay"


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Of one priority level. A `timeout_s` or `max_queue_requests` of None means none."""

    timeout_action: TimeoutAction = TimeoutAction.REJECT
    timeout_s: float | None = None
    allow_timeout_override: bool = True
    max_queue_requests: int | None = None


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """Bounds of one model version's queue (R2), over all its priority levels.

    `priority_levels` 0 or 1: one level. Levels run from 1, the highest.
    """

    max_requests: int = 16_384
    max_rows: int = 1_048_576
    max_bytes: int = 1_073_741_824
    priority_levels: int = 1
    default_priority: int = 1
    default_policy: QueuePolicy = field(default_factory=QueuePolicy)
    priority_policies: tuple[tuple[int, QueuePolicy], ...] = ()

    def policy(self, priority: int) -> QueuePolicy:
        for level, policy in self.priority_policies:
            if level == priority:
                return policy
        return self.default_policy


@dataclass(frozen=True, slots=True)
class BatchSettings:
    """How requests of one model version become batches.

    `max_batch_rows` 0: the model has no batch dimension, every request travels alone.
    `row_costs`, ascending: what rows are padded to cost. `max_batch_cost` None: any; else rows times what each costs, which a request alone may exceed.
    `preferred_rows` ascends. `target_s`: from arrival to answer, set in mode SLO, and
    `on_late` is of that mode.
    """

    mode: BatchingMode = BatchingMode.EAGER
    max_batch_rows: int = 0
    preferred_rows: tuple[int, ...] = ()
    max_queue_delay_s: float = 0.0
    preserve_ordering: bool = False
    max_lease_bytes: int = 32 * 1024 * 1024
    max_batch_cost: int | None = None
    row_costs: tuple[int, ...] = ()
    target_s: float | None = None
    on_late: OnLate = OnLate.SERVE

    def capped_rows(self, cap_rows: int, row_cost: int) -> int:
        """The most rows of that cost in a batch; `cap_rows` bounds it too, 0 stays 0."""
        if self.max_batch_cost is None:
            return cap_rows
        return min(cap_rows, max(1, self.max_batch_cost // max(1, row_cost)))


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """How long a batch may take, and whether it may run twice.

    `max_batch_time_s` None: 60 s, then 10 x the learned l(b), never below 5 s.
    """

    retryable: bool = True
    max_batch_time_s: float | None = None


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """All that the core knows of a model version."""

    queue: QueueSettings = field(default_factory=QueueSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    lease: LeaseSettings = field(default_factory=LeaseSettings)
