"""How many replicas one model version should have: values in, a decision with its reason out.

Feed-forward: what is expected to come over what a replica can do, so that it cannot chase its
own effect on latency. Panic, hold and step limits shape it in time. The idea of a panic mode
that scales up at once and never down is Knative's (https://knative.dev/docs/serving/autoscaling).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import ceil, inf
from typing import Final

from tideserve.autoscaler.core.capacity import (
    MAX_SERVERS,
    Capacity,
    capacity,
    fewest,
    replicas_for,
)
from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.forecast import MIN_RATE, DayTable, Growth
from tideserve.autoscaler.core.hold import Wants, hold_s_of, lowered, remembered
from tideserve.autoscaler.core.limits import Changes, bounded, changed, limited, pinned
from tideserve.autoscaler.core.load import Load
from tideserve.autoscaler.core.marginal import STEADY_S, Gains
from tideserve.autoscaler.core.schedule import scheduled_minimum
from tideserve.autoscaler.core.settings import ModelPolicy
from tideserve.autoscaler.core.window import LoadWindow

STABLE_S: Final = 20.0
FAST_S: Final = 4.0
# What is expected to grow is a mean of so many rows, within the two spans: of fewer, chance
# alone makes the highest of the next seconds half as much again.
COUNTED: Final = 400.0
# A quantile of waits over less than this is of too few.
MIN_WAITS_S: Final = 1.0
SURGE_SPANS_S: Final = (0.5, 1.0, 2.0)
# Panic ends so long after its last sign.
CALM_S: Final = 2.0
# Queued work is to be gone within the wait target, the start-up time, or this.
MIN_CLEAR_S: Final = 0.5
# The wait in the queue that is aimed at where neither it nor a latency target is given.
DEFAULT_WAIT_S: Final = 0.1


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a decision about one model version is made from.

    `present`: READY and STARTING ones (S1). `load` None: no data (S2). `startup_s`: Tc.
    `was_ready`: some replica of this version was, at some time. `triggers`: readings by name; a
    trigger without one is not known. `held_requests`: by the frontend's own word, whatever the
    source of loads knows.
    """

    ready: int
    starting: int
    load: Load | None
    startup_s: float
    unix_s: float
    was_ready: bool = True
    latency_target_s: float | None = None
    triggers: Mapping[str, float] = field(default_factory=dict)
    pin: int | None = None
    held_requests: int = 0

    @property
    def present(self) -> int:
        return self.ready + self.starting


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What is remembered of one model version. Times are the caller's `now_s`. `held` is what
    was wanted after the hold, before limits."""

    window: LoadWindow = field(default_factory=LoadWindow)
    growth: Growth = field(default_factory=Growth)
    day: DayTable = field(default_factory=DayTable)
    gains: Gains = field(default_factory=Gains)
    wants: Wants = ()
    changes: Changes = ()
    held: int | None = None
    desired: int | None = None
    decision: Decision | None = None
    panic_until_s: float = 0.0
    raised_s: float = -inf
    active_s: float = 0.0
    trigger_wants: tuple[tuple[str, int], ...] = ()
    began_s: float | None = None


@dataclass(frozen=True, slots=True)
class _Want:
    count: int
    reason: str


def decide(
    state: PolicyState, inputs: Inputs, now_s: float, policy: ModelPolicy
) -> tuple[PolicyState, Decision]:
    """One model version, one moment."""
    if state.began_s is None:
        state = replace(state, began_s=now_s, active_s=now_s, wants=((now_s, inputs.present),))
    if inputs.load is None or now_s - inputs.load.at_s > inputs.load.good_for_s:
        return _without_data(state, inputs, policy)
    return _Decider(state, inputs, inputs.load, now_s, policy).decide()


def _without_data(
    state: PolicyState, inputs: Inputs, policy: ModelPolicy
) -> tuple[PolicyState, Decision]:
    """S2: what was desired stays; at first, what there is. But for the first replica of all: the
    frontend's own word is enough for it."""
    count = state.desired if state.desired is not None else inputs.present
    reason, held = "no data: nothing changes", state.held
    if count == 0 and (why := _first_of_all(inputs)):
        count, reason, held = 1, f"no data: {why}", 1
    count, limit = bounded(count, policy)
    if inputs.pin is not None:
        count, limit = pinned(inputs.pin, policy)
    decision = Decision(count, reason, limit, {"present": float(inputs.present)})
    return replace(state, desired=count, held=held, decision=decision), decision


def _first_of_all(inputs: Inputs, queued_requests: int = 0) -> str:
    """Why there has to be one replica; empty: for no such reason. `queued_requests`: as the
    source of loads has it."""
    if not inputs.was_ready:
        return "first start: the version has not been READY yet"
    held = max(inputs.held_requests, queued_requests)
    return f"wake: {held} requests are held" if held and not inputs.present else ""


class _Decider:
    """The steps of one decision; `numbers` collects all that it used."""

    def __init__(
        self, state: PolicyState, inputs: Inputs, load: Load, now_s: float, policy: ModelPolicy
    ) -> None:
        self._state = state
        self._inputs = inputs
        self._load = load
        self._now_s = now_s
        self._policy = policy
        self._hold_s = hold_s_of(policy, inputs.startup_s)
        self._window = state.window.push(load)
        if len(self._window.loads) == 1:
            # Nothing to compare with, or all of it is too old: what came meanwhile is not known,
            # so the hold and the idle time begin (anew) here (S3).
            wants = ((now_s, self._last_held()),)
            self._state = replace(state, began_s=now_s, active_s=now_s, wants=wants)
        self._numbers: dict[str, float] = {
            "ready": inputs.ready,
            "starting": inputs.starting,
            "startup_s": inputs.startup_s,
            "queued_rows": load.queued_rows,
        }

    def decide(self) -> tuple[PolicyState, Decision]:
        state, policy, now_s = self._state, self._policy, self._now_s
        found = self._capacity()
        self._learn(found)
        wants = [self._proactive()]
        panic = self._panic(found)
        if panic is not None:
            wants.append(panic)
            state_panic_s = now_s + max(CALM_S, self._inputs.startup_s)
        else:
            state_panic_s = state.panic_until_s
        trigger_wants = self._triggers(wants)
        self._schedules(wants)
        self._activity(wants)
        # Of none wanted the last word says most: for how long nobody has asked.
        want = max(wants, key=lambda one: one.count)
        if want.count == 0:
            want = wants[-1]
        history = remembered(state.wants, want.count, self._hold_s, now_s)
        count, reason = self._held(want, history, state_panic_s, panic=panic is not None)
        held = count
        before = state.desired if state.desired is not None else self._inputs.present
        count, limit = limited(count, before, state.changes, self._gains.cap, policy, now_s)
        if self._inputs.pin is not None:
            count, limit = pinned(self._inputs.pin, policy)
            reason = f"pinned: at {self._inputs.pin}"
        decision = Decision(count, reason, limit, self._numbers)
        changes = changed(state.changes, count - before, now_s, policy)
        raised_s = now_s if count > before else state.raised_s
        return (
            replace(
                state,
                window=self._window,
                growth=self._growth,
                day=self._day,
                gains=self._gains,
                wants=history,
                changes=changes,
                held=held,
                desired=count,
                decision=decision,
                panic_until_s=state_panic_s,
                raised_s=raised_s,
                active_s=self._active_s,
                trigger_wants=trigger_wants,
            ),
            decision,
        )

    # --- what is known ----------------------------------------------------------------

    def _learn(self, found: Capacity | None) -> None:
        window, inputs, now_s = self._window, self._inputs, self._now_s
        per_request = window.rows_per_request()
        stable = (window.request_rate(STABLE_S) or 0.0) * per_request
        fast = (window.request_rate(FAST_S) or 0.0) * per_request
        self._stable, self._fast = stable, fast
        self._surge = window.surge_rate(SURGE_SPANS_S) * per_request
        span_s = min(STABLE_S, max(FAST_S, COUNTED / max(stable, 1e-9)))
        self._base = (window.request_rate(span_s) or 0.0) * per_request
        self._growth = self._state.growth
        if window.covers_s() >= span_s:
            self._growth = self._growth.push(
                self._base, inputs.startup_s, now_s, self._policy.growth_quantile
            )
        self._day = self._state.day.push(stable, inputs.unix_s)
        self._gains = self._state.gains.push(
            inputs.ready,
            window.served_rows_rate(STEADY_S),
            # A batch a replica waits where batching is deferred, at any load: no backlog.
            backlogged=found is not None
            and window.was_backlogged(STEADY_S, inputs.ready * found.batch_rows),
            now_s=now_s,
        )
        self._numbers |= {
            "rows_per_s_20s": stable,
            "rows_per_s_4s": fast,
            "rows_per_s_surge": self._surge,
            "rows_per_s_base": self._base,
            "rows_per_request": per_request,
        }
        self._active_s = now_s if window.is_active() else self._state.active_s
        self._is_idle = now_s - self._active_s >= self._policy.idle_s

    def _capacity(self) -> Capacity | None:
        """What each of those that are there gives."""
        found = capacity(self._load.profile, self._target_s(), max(1, self._inputs.present))
        if found is not None:
            self._numbers |= {
                "batch_rows": found.batch_rows,
                "batch_s": found.batch_s,
                "capacity_rows_per_s": found.rows_per_s,
            }
        return found

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

    # --- wants ------------------------------------------------------------------------

    def _proactive(self) -> _Want:
        expected = max(self._stable, self._base * self._growth.ratio)
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
            present = max(self._inputs.present, self._last_held())
            return _Want(present if rate > 0.0 else 0, "unmeasured: no batch was timed yet")
        count, found = enough
        source = "the day's table" if table > expected else f"growth x{self._growth.ratio:.2f}"
        return _Want(
            count,
            f"proactive: {rate:.1f} rows/s expected ({source}), "
            f"{found.rows_per_s:.1f} rows/s a replica",
        )

    def _panic(self, found: Capacity | None) -> _Want | None:
        """More than what is there can clear within the target."""
        target_s = self._wait_target_s()
        # Waits of the time since the last replica that was asked for could help.
        since_s = min(FAST_S, self._load.at_s - self._state.raised_s - self._inputs.startup_s)
        wait_s = None
        if since_s >= MIN_WAITS_S:
            wait_s = self._window.queue_wait_s(since_s, self._policy.queue_target.quantile)
        drops = self._window.drops(FAST_S)
        self._numbers["drops_4s"] = drops
        if wait_s is not None:
            self._numbers["queue_wait_s"] = wait_s
        # One that waits longer is no quantile; one that waits twice as long is stuck.
        breached = self._load.oldest_age_s > 2.0 * target_s or (
            wait_s is not None and wait_s > target_s and self._load.queued_requests > 0
        )
        present = self._inputs.present
        if found is None:
            return self._one_more("queue") if breached or drops else None
        rate = found.rows_per_s
        clear_s = max(target_s, self._inputs.startup_s, MIN_CLEAR_S)
        # What is computed anyway is no backlog: a batch for each replica.
        backlog = max(0.0, self._load.queued_rows - present * found.batch_rows)
        coming = max(self._fast, self._surge)
        needed = coming + backlog / clear_s
        self._numbers["backlog_rows"] = backlog
        signs = []
        if coming > present * rate:
            signs.append(f"{coming:.1f} rows/s now")
        if backlog > 0.0:
            signs.append(f"{self._load.queued_rows} rows wait")
        if drops:
            signs.append(f"{drops:.0f} requests dropped")
        if signs:
            enough = self._fewest(lambda found: ceil(needed / found.rows_per_s - 1e-9))
            count = max(enough[0] if enough else 0, present if backlog <= 0.0 and not drops else 0)
            if drops and count <= present and self._inputs.starting == 0 and self._is_settled():
                count = present + 1
            return _Want(max(1, count), f"panic: {', '.join(signs)}, {rate:.1f} a replica")
        return self._one_more("queue") if breached else None

    def _one_more(self, what: str) -> _Want | None:
        """The model of the load says that there is enough and the queue disagrees: one more,
        and then a while to see what it changed."""
        wait_ms = self._wait_target_s() * 1e3
        reason = f"panic: the {what} waits longer than {wait_ms:.0f} ms"
        if self._inputs.starting or not self._is_settled():
            return _Want(max(1, self._inputs.present), reason)
        return _Want(self._inputs.present + 1, reason)

    def _is_settled(self) -> bool:
        """What is known is of a time in which the last replica that was asked for could help: a
        source that is renewed seldom goes on telling of the time before."""
        served_s = self._state.raised_s + self._inputs.startup_s
        return self._window.begins_s(FAST_S) >= served_s

    def _triggers(self, wants: list[_Want]) -> tuple[tuple[str, int], ...]:
        """By maximum. One without a reading stays at its last word (S3)."""
        known = dict(self._state.trigger_wants)
        told: list[tuple[str, int]] = []
        for trigger in self._policy.triggers:
            reading = self._inputs.triggers.get(trigger.name)
            if reading is not None:
                self._numbers[f"trigger_{trigger.name}"] = reading
                # A foreign number over a tiny target may be beyond any integer.
                wanted = min(reading / trigger.target, float(MAX_SERVERS))
                count = ceil(max(0.0, wanted - 1e-9))
                reason = f"trigger {trigger.name}: {reading:g} of {trigger.target:g} a replica"
            elif trigger.name in known:
                count, reason = known[trigger.name], f"trigger {trigger.name}: no data, as before"
            else:
                continue
            told.append((trigger.name, count))
            wants.append(_Want(count, reason))
        return tuple(told)

    def _schedules(self, wants: list[_Want]) -> None:
        minimum = scheduled_minimum(self._policy.schedules, self._inputs.unix_s)
        if minimum:
            wants.append(_Want(minimum, f"schedule: at least {minimum}"))

    def _activity(self, wants: list[_Want]) -> None:
        """One while there is work, and for `idle_s` after it."""
        idle_s = self._now_s - self._active_s
        self._numbers["idle_s"] = idle_s
        if why := _first_of_all(self._inputs, self._load.queued_requests):
            wants.append(_Want(1, why))
        elif not self._is_idle:
            wants.append(_Want(1, f"active: asked for {idle_s:.1f} s ago"))
        else:
            wants.append(_Want(0, f"idle: for {idle_s:.0f} s"))

    # --- shape in time ----------------------------------------------------------------

    def _last_held(self) -> int:
        """Before the first data: what was desired without any, or what there is."""
        for known in (self._state.held, self._state.desired):
            if known is not None:
                return known
        return self._inputs.present

    def _held(self, want: _Want, history: Wants, panic_s: float, *, panic: bool) -> tuple[int, str]:
        """Up at once; down as the hold says."""
        last = self._last_held()
        if want.count >= last:
            return want.count, want.reason
        if panic or self._now_s < panic_s:
            return last, f"panic: calm for less than {max(CALM_S, self._inputs.startup_s):.1f} s"
        self._numbers["hold_s"] = self._hold_s
        if want.count == 0 and self._is_idle:
            return 0, want.reason  # idle_s is a hold of its own
        began_s = self._state.began_s if self._state.began_s is not None else self._now_s
        count, hold_s = lowered(last, history, self._hold_s, began_s, self._now_s)
        if count >= last:
            return last, f"hold: {last} wanted within {hold_s:.1f} s; now {want.reason}"
        return count, want.reason
