"""What reconciling remembers between passes: one record a replica, failures a version."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from tideserve.autoscaler.core.failures import BackoffRules, Failures
from tideserve.autoscaler.core.fleet import ModelKey


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

    `since_s`: started, adopted, or back at a restarted frontend. `seen_epoch`, `seen_s`:
    the life of the frontend that last listed it, and when.
    """

    since_s: float
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
    """`life` names this autoscaler, `serial` its starts: together they make unique names."""

    life: int = 0
    serial: int = 0
    records: Mapping[str, Record] = field(default_factory=dict)
    failures: Mapping[ModelKey, Failures] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """Times of reconciling, in seconds, and the devices there are.

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
    devices: tuple[str, ...] = ("cpu",)
