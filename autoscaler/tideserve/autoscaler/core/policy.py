"""How many replicas one model version should have: values in, a decision with its reason out.

Shapes in time what is recommended (`recommendation.py`): up at once, down only when it is calm and
the hold is over, within steps, bounds and pins; without data nothing changes.
"""

from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

from tideserve.autoscaler.core.decision import Decision, Inputs
from tideserve.autoscaler.core.hold import Wants, hold_s_of, lowered, remembered
from tideserve.autoscaler.core.limits import Changes, bounded, changed, limited, pinned
from tideserve.autoscaler.core.load import Load
from tideserve.autoscaler.core.recommendation import (
    Learned,
    Recommendation,
    first_of_all,
    recommend,
)
from tideserve.autoscaler.core.settings import ModelPolicy

# Panic ends so long after its last sign, or a start-up time after it if that is longer.
CALM_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class PolicyState:
    """What is remembered of one model version. Times are the caller's `now_s`.

    `wants`: what was recommended. `held`: what was wanted after the hold, before limits.
    `raised_s`: when more replicas were asked for last.
    """

    learned: Learned = field(default_factory=Learned)
    wants: Wants = ()
    changes: Changes = ()
    held: int | None = None
    desired: int | None = None
    panic_until_s: float = 0.0
    raised_s: float = -inf


def decide(
    state: PolicyState, inputs: Inputs, now_s: float, policy: ModelPolicy
) -> tuple[PolicyState, Decision]:
    """One model version, one moment."""
    load = inputs.load
    if load is None or now_s - load.at_s > load.good_for_s:
        return _without_data(state, inputs, policy)
    return _with_data(state, inputs, load, now_s, policy)


def _without_data(
    state: PolicyState, inputs: Inputs, policy: ModelPolicy
) -> tuple[PolicyState, Decision]:
    """S2: what was desired stays; at first, what there is. But for the first replica of all: the
    frontend's own word is enough for it."""
    count = state.desired if state.desired is not None else inputs.present
    reason, held = "no data: nothing changes", state.held
    if count == 0 and (why := first_of_all(inputs)):
        count, reason, held = 1, f"no data: {why}", 1
    count, limit = bounded(count, policy)
    if inputs.pin is not None:
        count, limit = pinned(inputs.pin, policy)
    decision = Decision(count, reason, limit, {"present": float(inputs.present)})
    return replace(state, desired=count, held=held), decision


def _with_data(
    state: PolicyState, inputs: Inputs, load: Load, now_s: float, policy: ModelPolicy
) -> tuple[PolicyState, Decision]:
    last = _last_held(state, inputs)
    learned, recommended = recommend(
        state.learned, inputs, load, now_s, policy, held=last, raised_s=state.raised_s
    )
    if learned.window.is_new:
        # What came before is not known, so the hold begins (anew) here (S3).
        state = replace(state, wants=((now_s, last),))
    hold_s, calm_s = hold_s_of(policy, inputs.startup_s), max(CALM_S, inputs.startup_s)
    state = replace(
        state,
        learned=learned,
        wants=remembered(state.wants, recommended.count, hold_s, now_s),
        panic_until_s=now_s + calm_s if recommended.panic else state.panic_until_s,
    )
    held = recommended
    if recommended.count < last and now_s < state.panic_until_s:
        held = replace(held, count=last, reason=f"panic: calm for less than {calm_s:.1f} s")
    elif recommended.count < last:
        held = _lowered(state, recommended, last, hold_s, now_s)
    return _limited(replace(state, held=held.count), inputs, held, now_s, policy)


def _last_held(state: PolicyState, inputs: Inputs) -> int:
    """Before the first data: what was desired without any, or what there is."""
    for known in (state.held, state.desired):
        if known is not None:
            return known
    return inputs.present


def _lowered(
    state: PolicyState, recommended: Recommendation, last: int, hold_s: float, now_s: float
) -> Recommendation:
    """Down from `last` as the hold says; to none at once, as `idle_s` is a hold of its own."""
    told = replace(recommended, numbers={**recommended.numbers, "hold_s": hold_s})
    if recommended.count == 0:
        return told
    count, judged_s = lowered(last, state.wants, hold_s, now_s)
    if count < last:
        return replace(told, count=count)
    reason = f"hold: {last} wanted within {judged_s:.1f} s; now {recommended.reason}"
    return replace(told, count=last, reason=reason)


def _limited(
    state: PolicyState, inputs: Inputs, held: Recommendation, now_s: float, policy: ModelPolicy
) -> tuple[PolicyState, Decision]:
    """What limits and a pin leave of it."""
    before = state.desired if state.desired is not None else inputs.present
    cap = state.learned.gains.cap
    count, limit = limited(held.count, before, state.changes, cap, policy, now_s)
    reason = held.reason
    if inputs.pin is not None:
        count, limit = pinned(inputs.pin, policy)
        reason = f"pinned: at {inputs.pin}"
    state = replace(
        state,
        changes=changed(state.changes, count - before, now_s, policy),
        desired=count,
        raised_s=now_s if count > before else state.raised_s,
    )
    return state, Decision(count, reason, limit, held.numbers)
