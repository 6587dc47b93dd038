"""What a model version was asked for: counters and gauges of one moment, from any source."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from tideserve.autoscaler.core.fleet import ModelKey


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts by upper bound, not cumulative; one more count than bounds. Counters."""

    bounds: tuple[float, ...] = ()
    counts: tuple[float, ...] = ()
    sum: float = 0.0


@dataclass(frozen=True, slots=True)
class Load:
    """`at_s`: when it was true, on the clock of `now_s`.

    `arrivals` (rejected and expired ones are among them) to `rows` and the histograms are
    counters that never fall: a source evens out restarts of what it reads. `rows`: executed.
    `profile`: learned l(b), batch rows with seconds. `good_for_s`: when it is older it is no
    data (S2); a source that is renewed less often says more. The rest are gauges.
    """

    at_s: float
    arrivals: float = 0.0
    rejected: float = 0.0
    expired: float = 0.0
    succeeded: float = 0.0
    failed: float = 0.0
    rows: float = 0.0
    queue_wait_s: Histogram = field(default_factory=Histogram)
    latency_s: Histogram = field(default_factory=Histogram)
    queued_requests: int = 0
    queued_rows: int = 0
    leased_requests: int = 0
    oldest_age_s: float = 0.0
    profile: tuple[tuple[int, float], ...] = ()
    good_for_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """What a policy decides from, beside the fleet. What is missing is not known (S2).

    `triggers`: readings by model name and trigger name. `pins`: counts that people set.
    `unix_s`: wall time, for schedules and the time of day.
    """

    unix_s: float
    loads: Mapping[ModelKey, Load] = field(default_factory=dict)
    triggers: Mapping[tuple[str, str], float] = field(default_factory=dict)
    pins: Mapping[ModelKey, int] = field(default_factory=dict)
