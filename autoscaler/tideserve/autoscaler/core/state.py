"""What reconciling remembers between passes: one record a replica, failures a version."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tideserve.autoscaler.core.failures import BackoffRules, Failures
from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.core.settings import Device


class Verdict(Enum):
    """Why a replica is over.

    FAILED_START and ATTRIBUTED (a request killed it) count against the model version;
    REPLACE (it had been READY) and RETIRED (drained, or nobody's) do not.
    """

    FAILED_START = "failed start"
    ATTRIBUTED = "death laid to a request"
    REPLACE = "died after it was READY"
    RETIRED = "retired"


@dataclass(frozen=True, slots=True)
class Record:
    """One replica over time. Times are the caller's `now_s`; None: did not happen.

    `key`: the model version last known of it; None: a standby. `assign_sent_s`: it was one and
    was given that model then.
    `since_s`: started, adopted, or back at a restarted frontend. `seen_epoch`, `seen_s`:
    the life of the frontend that last listed it, and when.
    """

    since_s: float
    key: ModelKey | None = None
    assign_sent_s: float | None = None
    launched: bool = False
    seen_epoch: int | None = None
    seen_s: float = 0.0
    was_ready: bool = False
    attributed: bool = False
    ended_s: float | None = None
    announce_sent_s: float | None = None
    drain_since_s: float | None = None
    drain_sent_s: float | None = None
    kill_sent_s: float | None = None
    report_sent_s: float | None = None
    verdict: Verdict | None = None
    why: str = ""
    failed_starts: int = 0


@dataclass(frozen=True, slots=True)
class ReconcileState:
    """`life` names this autoscaler, `serial` its starts: together they make unique names.
    `epoch`: the frontend's life as of the last pass, None before the first.
    `failures` of None are those of standbys. `prepare_sent_s`: when prepared ones
    were last made or ended.
    `waiting`: why a start waits for a slot or memory, as of the last pass."""

    life: int = 0
    serial: int = 0
    epoch: int | None = None
    records: Mapping[str, Record] = field(default_factory=dict)
    failures: Mapping[ModelKey | None, Failures] = field(default_factory=dict)
    prepare_sent_s: float | None = None
    waiting: Mapping[ModelKey | None, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """Times of reconciling, in seconds, the devices there are, and what is kept ready.

    `standby`: replicas that join without a model; `prepared`: instances made and not started.
    `memory_bytes_of` a replica, by model name.
    `settle_s`: how long a dead READY replica waits for the frontend's word on why it died.
    `repeat_s`, `kill_repeat_s`: an action without visible effect is repeated after that.
    `grace_s`: for one that only the frontend or only the launcher knows.
    """

    start_timeout_s: float = 120.0
    drain_timeout_s: float = 30.0
    settle_s: float = 1.0
    repeat_s: float = 1.0
    kill_repeat_s: float = 5.0
    grace_s: float = 5.0
    backoff: BackoffRules = field(default_factory=BackoffRules)
    devices: tuple[Device, ...] = (Device(slots=4096),)
    standby: int = 0
    prepared: int = 0
    memory_bytes_of: Mapping[str, int] = field(default_factory=dict)
