"""How many replicas one model version needs now: the most that any reason asks for.

The reasons: what is expected to come, panic, triggers, schedules, and that somebody asks. What
becomes of it in time, `policy.py` decides.

Feed-forward: what is expected to come over what a replica can do, so that it cannot chase its own
effect on latency. The idea of a panic mode that scales up at once and never down is Knative's
(https://knative.dev/docs/serving/autoscaling).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from typing import Final

from tideserve.autoscaler.core.capacity import (
    MAX_SERVERS,
    Capacity,
    capacity,
    fewest,
    replicas_for,
)
from tideserve.autoscaler.core.decision import Inputs
from tideserve.autoscaler.core.forecast import MIN_RATE, DayTable, Growth
from tideserve.autoscaler.core.load import Load
from tideserve.autoscaler.core.marginal import STEADY_S, Gains
from tideserve.autoscaler.core.rates import FAST_S, rates_of
from tideserve.autoscaler.core.schedule import scheduled_minimum
from tideserve.autoscaler.core.settings import ModelPolicy
from tideserve.autoscaler.core.window import LoadWindow

# A quantile of waits over less than this is of too few.
MIN_WAITS_S: Final = 1.0
# Queued work is to be gone within the wait target, the start-up time, or this.
MIN_CLEAR_S: Final = 0.5
# The wait in the queue that is aimed at where neither it nor a latency target is given.
DEFAULT_WAIT_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Learned:
    """What is remembered of one model version's load. `active_s`: when it was asked for last.
    `trigger_wants`: what each trigger asked for when it was known last."""

    window: LoadWindow = field(default_factory=LoadWindow)
    growth: Growth = field(default_factory=Growth)
    day: DayTable = field(default_factory=DayTable)
    gains: Gains = field(default_factory=Gains)
    active_s: float = 0.0
    trigger_wants: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Recommendation:
    """`panic`: it is no time to go down. `numbers`: all that it was made from, as in a Decision's
    `inputs`."""

    count: int
    reason: str
    panic: bool
    numbers: Mapping[str, float]


def recommend(
    learned: Learned,
    inputs: Inputs,
    load: Load,
    now_s: float,
    policy: ModelPolicy,
    *,
    held: int,
    raised_s: float,
) -> tuple[Learned, Recommendation]:
    """One model version, one moment. `load`: that of the inputs, and still good. `held`: what was
    wanted last, after the hold. `raised_s`: when more replicas were asked for last."""
    return _Recommender(learned, inputs, load, now_s, policy, held, raised_s).recommend()


def first_of_all(inputs: Inputs, queued_requests: int = 0) -> str:
    """Why there has to be one replica; empty: for no such reason. `queued_requests`: as the
    source of loads has it."""
    if not inputs.was_ready:
        return "first start: the version has not been READY yet"
    held = max(inputs.held_requests, queued_requests)
    return f"wake: {held} requests are held" if held and not inputs.present else ""


@dataclass(frozen=True, slots=True)
class _Want:
    """What one reason asks for."""

    count: int
    reason: str


class _Recommender:
    """The reasons of one moment; `numbers` collects all that they used."""

    def __init__(
        self,
        learned: Learned,
        inputs: Inputs,
        load: Load,
        now_s: float,
        policy: ModelPolicy,
        held: int,
        raised_s: float,
    ) -> None:
        self._before = learned
        self._inputs = inputs
        self._load = load
        self._now_s = now_s
        self._policy = policy
        self._held = held
        self._raised_s = raised_s
        self._numbers: dict[str, float] = {
            "ready": inputs.ready,
            "starting": inputs.starting,
            "startup_s": inputs.startup_s,
            "queued_rows": load.queued_rows,
        }
        self._window = learned.window.push(load)
        # What each of those that are there gives; None: no batch was timed yet.
        self._capacity = capacity(load.profile, self._target_s(), max(1, inputs.present))
        self._rates = rates_of(self._window)
        self._growth = self._grown()
        self._day = learned.day.push(self._rates.stable, inputs.unix_s)
        # Of what came before the first load nothing is known: the idle time begins there (S3).
        is_active = self._window.is_active() or self._window.is_new
        self._active_s = now_s if is_active else learned.active_s
        self._is_idle = now_s - self._active_s >= policy.idle_s

    def recommend(self) -> tuple[Learned, Recommendation]:
        self._tell()
        proactive, panic, triggers = self._proactive(), self._panic(), self._triggers()
        activity = self._activity()
        asked = [want for _, want in triggers]
        wants = [proactive, panic, *asked, self._scheduled(), activity]
        most = max((want for want in wants if want is not None), key=lambda want: want.count)
        if most.count == 0:
            # Of all that ask for none it says most: for how long nobody has asked.
            most = activity
        learned = Learned(
            window=self._window,
            growth=self._growth,
            day=self._day,
            gains=self._gained(),
            active_s=self._active_s,
            trigger_wants=tuple((name, want.count) for name, want in triggers),
        )
        return learned, Recommendation(
            most.count, most.reason, panic=panic is not None, numbers=self._numbers
        )

    # --- what is known ----------------------------------------------------------------

    def _grown(self) -> Growth:
        if self._window.covers_s() < self._rates.base_span_s:
            return self._before.growth
        return self._before.growth.push(
            self._rates.base, self._inputs.startup_s, self._now_s, self._policy.growth_quantile
        )

    def _gained(self) -> Gains:
        ready = self._inputs.ready
        return self._before.gains.push(
            ready,
            self._window.served_rows_rate(STEADY_S),
            # A batch a replica waits where batching is deferred, at any load: no backlog.
            backlogged=self._capacity is not None
            and self._window.was_backlogged(STEADY_S, ready * self._capacity.batch_rows),
            now_s=self._now_s,
        )

    def _tell(self) -> None:
        if self._capacity is not None:
            self._numbers |= {
                "batch_rows": self._capacity.batch_rows,
                "batch_s": self._capacity.batch_s,
                "capacity_rows_per_s": self._capacity.rows_per_s,
            }
        self._numbers |= {
            "rows_per_s_20s": self._rates.stable,
            "rows_per_s_4s": self._rates.fast,
            "rows_per_s_surge": self._rates.surge,
            "rows_per_s_base": self._rates.base,
            "rows_per_request": self._rates.rows_per_request,
        }

    def _target_s(self) -> float | None:
        return self._policy.latency_target_s or self._inputs.latency_target_s

    def _wait_target_s(self) -> float:
        """How long a request may wait in the queue."""
        if self._policy.queue_target.target_s is not None:
            return self._policy.queue_target.target_s
        target_s = self._target_s()
        if target_s is None:
            return DEFAULT_WAIT_S
        least_s = min((latency_s for _, latency_s in self._load.profile), default=0.0)
        return max(target_s - least_s, 0.5 * target_s)

    def _fewest(self, replicas_of: Callable[[Capacity], int]) -> tuple[int, Capacity] | None:
        most = self._policy.max_replicas
        return fewest(self._load.profile, self._target_s(), most, replicas_of)

    # --- what is expected -------------------------------------------------------------

    def _proactive(self) -> _Want:
        expected = max(self._rates.stable, self._rates.base * self._growth.ratio)
        table = self._day.expected(self._inputs.unix_s, self._inputs.startup_s)
        if table < MIN_RATE:  # yesterday's odd request is no reason to stay up
            table = 0.0
        self._numbers |= {"growth_ratio": self._growth.ratio, "day_table_rows_per_s": table}
        rate = max(expected, table) if table or not self._is_idle else 0.0
        quantile, wait_target_s = self._policy.queue_target.quantile, self._wait_target_s()
        enough = self._fewest(
            lambda found: replicas_for(rate, found, quantile=quantile, wait_target_s=wait_target_s)
        )
        if enough is None:
            # No batch was timed yet: what is there has to do until one was, and one that died
            # while it started is no reason for fewer (S3).
            present = max(self._inputs.present, self._held)
            return _Want(present if rate > 0.0 else 0, "unmeasured: no batch was timed yet")
        count, found = enough
        source = "the day's table" if table > expected else f"growth x{self._growth.ratio:.2f}"
        return _Want(
            count,
            f"proactive: {rate:.1f} rows/s expected ({source}), "
            f"{found.rows_per_s:.1f} rows/s a replica",
        )

    # --- panic ------------------------------------------------------------------------

    def _panic(self) -> _Want | None:
        """More than what is there can clear within the target."""
        drops = self._window.drops(FAST_S)
        self._numbers["drops_4s"] = drops
        is_late = self._is_late()
        found, present = self._capacity, self._inputs.present
        if found is None:
            return self._one_more() if is_late or drops else None
        # What is computed anyway is no backlog: a batch for each replica.
        backlog = max(0.0, self._load.queued_rows - present * found.batch_rows)
        coming = max(self._rates.fast, self._rates.surge)
        self._numbers["backlog_rows"] = backlog
        signs = []
        if coming > present * found.rows_per_s:
            signs.append(f"{coming:.1f} rows/s now")
        if backlog > 0.0:
            signs.append(f"{self._load.queued_rows} rows wait")
        if drops:
            signs.append(f"{drops:.0f} requests dropped")
        if not signs:
            return self._one_more() if is_late else None
        clear_s = max(self._wait_target_s(), self._inputs.startup_s, MIN_CLEAR_S)
        needed = coming + backlog / clear_s
        enough = self._fewest(lambda found: ceil(needed / found.rows_per_s - 1e-9))
        count = max(enough[0] if enough else 0, present if backlog <= 0.0 and not drops else 0)
        if drops and count <= present and self._may_ask_for_more():
            count = present + 1
        reason = f"panic: {', '.join(signs)}, {found.rows_per_s:.1f} a replica"
        return _Want(max(1, count), reason)

    def _is_late(self) -> bool:
        """The queue waits longer than its target."""
        target_s = self._wait_target_s()
        # Waits of the time since the last replica that was asked for could help.
        since_s = min(FAST_S, self._load.at_s - self._raised_s - self._inputs.startup_s)
        wait_s = None
        if since_s >= MIN_WAITS_S:
            wait_s = self._window.queue_wait_s(since_s, self._policy.queue_target.quantile)
        if wait_s is not None:
            self._numbers["queue_wait_s"] = wait_s
        # One that waits longer is no quantile; one that waits twice as long is stuck.
        return self._load.oldest_age_s > 2.0 * target_s or (
            wait_s is not None and wait_s > target_s and self._load.queued_requests > 0
        )

    def _one_more(self) -> _Want:
        """The model of the load says that there is enough and the queue disagrees: one more,
        and then a while to see what it changed."""
        reason = f"panic: the queue waits longer than {self._wait_target_s() * 1e3:.0f} ms"
        present = self._inputs.present
        return _Want(present + 1 if self._may_ask_for_more() else max(1, present), reason)

    def _may_ask_for_more(self) -> bool:
        """None starts, and what is known is of a time in which the last replica that was asked for
        could help: a source that is renewed seldom goes on telling of the time before."""
        served_s = self._raised_s + self._inputs.startup_s
        return self._inputs.starting == 0 and self._window.begins_s(FAST_S) >= served_s

    # --- what the file asks for, and that somebody asks -------------------------------

    def _triggers(self) -> list[tuple[str, _Want]]:
        """By name. One without a reading stays at its last word (S3)."""
        last_counts = dict(self._before.trigger_wants)
        wants = []
        for trigger in self._policy.triggers:
            reading = self._inputs.triggers.get(trigger.name)
            if reading is not None:
                self._numbers[f"trigger_{trigger.name}"] = reading
                # A foreign number over a tiny target may be beyond any integer.
                wanted = min(reading / trigger.target, float(MAX_SERVERS))
                count = ceil(max(0.0, wanted - 1e-9))
                reason = f"trigger {trigger.name}: {reading:g} of {trigger.target:g} a replica"
            elif trigger.name in last_counts:
                count = last_counts[trigger.name]
                reason = f"trigger {trigger.name}: no data, as before"
            else:
                continue
            wants.append((trigger.name, _Want(count, reason)))
        return wants

    def _scheduled(self) -> _Want | None:
        minimum = scheduled_minimum(self._policy.schedules, self._inputs.unix_s)
        return _Want(minimum, f"schedule: at least {minimum}") if minimum else None

    def _activity(self) -> _Want:
        """One while there is work, and for `idle_s` after it."""
        idle_s = self._now_s - self._active_s
        self._numbers["idle_s"] = idle_s
        if why := first_of_all(self._inputs, self._load.queued_requests):
            return _Want(1, why)
        if not self._is_idle:
            return _Want(1, f"active: asked for {idle_s:.1f} s ago")
        return _Want(0, f"idle: for {idle_s:.0f} s")
