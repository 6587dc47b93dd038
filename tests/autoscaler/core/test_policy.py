"""One decision at a time: what becomes of what is wanted, what bounds it, and what it says."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.autoscaler.core.loads import PROFILE, kind
from tests.autoscaler.core.looks import IDLE, inputs, looks
from tideserve.autoscaler.core.decision import Inputs
from tideserve.autoscaler.core.load import Load
from tideserve.autoscaler.core.policy import PolicyState, decide
from tideserve.autoscaler.core.settings import ModelPolicy, StepLimits, Trigger


def test_without_load_the_minimum_stays() -> None:
    last = looks(ModelPolicy(min_replicas=1, idle_s=5.0), *[inputs()] * 20)[-1]
    assert (last.desired, last.limited_by) == (1, "min: 1")
    assert kind(last) == "idle"


def test_s2_the_first_replica_of_all_needs_no_data_but_the_frontend_s() -> None:
    policy = ModelPolicy(min_replicas=0, idle_s=1.0)
    unknown = inputs(0, load=None)
    held = replace(unknown, held_requests=2)
    waking = looks(policy, unknown, held, replace(held, starting=1), replace(unknown, ready=1))
    assert [d.desired for d in waking] == [0, 1, 1, 1]
    assert waking[1].reason == "no data: wake: 2 requests are held"
    assert waking[3].reason == "no data: nothing changes"
    first = looks(policy, replace(unknown, was_ready=False))[0]
    assert (first.desired, kind(first)) == (1, "no data")
    # Numbers of before they came do not keep them waiting.
    stale = inputs(0, held_requests=1)
    idle = [*[inputs(0)] * 5, stale]
    assert [d.desired for d in looks(policy, *idle)][-2:] == [0, 1]


def test_a_pin_goes_before_everything_but_the_maximum() -> None:
    policy = ModelPolicy(min_replicas=2, max_replicas=4)
    assert [d.desired for d in looks(policy, *(inputs(2, pin=pin) for pin in (0, 3, 9)))] == [
        0,
        3,
        4,
    ]
    assert looks(policy, inputs(2, pin=9))[0].limited_by == "max: 4"
    assert looks(policy, inputs(2, pin=9, load=None))[0].limited_by == "max: 4"
    pinned = looks(policy, inputs(2, pin=3, load=None))[0]
    assert (pinned.desired, pinned.limited_by) == (3, "pinned")


def test_steps_are_limited_up_and_down() -> None:
    policy = ModelPolicy(
        min_replicas=0,
        max_replicas=20,
        steps=StepLimits(up=2, down=1, per_s=10.0),
        hold_s=0.0,
        triggers=(Trigger("t", "q", 1.0),),
    )
    up = looks(policy, *[inputs(1, triggers={"t": 9.0})] * 12)
    assert [d.desired for d in up][:3] == [3, 3, 3]
    assert up[1].limited_by == "steps.up: 2 in 10 s"
    assert up[11].desired == 5
    down = looks(policy, inputs(9, triggers={"t": 9.0}), *[inputs(9, triggers={"t": 1.0})] * 12)
    assert down[5].desired == 8
    assert down[5].limited_by == "steps.down: 1 in 10 s"


def test_a_count_that_stays_says_whether_the_hold_or_panic_keeps_it() -> None:
    policy = ModelPolicy(hold_s=7.0, triggers=(Trigger("t", "q", 1.0),))
    more, fewer = inputs(3, triggers={"t": 3.0}), inputs(3, triggers={"t": 1.0})
    held = looks(policy, more, fewer)[-1]
    assert held.reason == "hold: 3 wanted within 7.0 s; now trigger t: 1 of 1 a replica"
    assert (held.desired, held.inputs["hold_s"]) == (3, 7.0)
    crowded = replace(more, load=replace(IDLE, queued_requests=50, queued_rows=50))
    calming = looks(policy, crowded, fewer)[-1]
    assert (calming.desired, calming.reason) == (3, "panic: calm for less than 2.0 s")
    assert "hold_s" not in calming.inputs


def test_no_step_keeps_requests_waiting_for_the_first_replica() -> None:
    policy = ModelPolicy(
        min_replicas=0, steps=StepLimits(up=1, per_s=3600.0), hold_s=0.0, idle_s=2.0
    )
    asked = inputs(0, load=replace(IDLE, queued_requests=1, queued_rows=1))
    up, *down = looks(policy, asked, *[inputs(1)] * 5)
    assert (up.desired, down[-1].desired) == (1, 0)
    again = looks(policy, asked, *[inputs(1)] * 5, asked, replace(asked, ready=1))
    assert [(d.desired, d.limited_by) for d in again[-2:]] == [(1, None), (1, None)]


def test_with_none_allowed_that_is_told_also_while_nobody_asks() -> None:
    policy = ModelPolicy(min_replicas=0, max_replicas=0, idle_s=1.0)
    for load in (IDLE, replace(IDLE, queued_requests=1, queued_rows=1), None):
        last = looks(policy, *[inputs(0, load=load)] * 5)[-1]
        assert (last.desired, last.limited_by) == (0, "max: 0")
    unlimited = looks(ModelPolicy(min_replicas=0, idle_s=1.0), *[inputs(0)] * 5)[-1]
    assert (unlimited.desired, unlimited.limited_by) == (0, None)


LOADS = st.builds(
    Load,
    at_s=st.just(0.0),
    arrivals=st.floats(0, 1e6),
    rejected=st.floats(0, 1e3),
    expired=st.floats(0, 1e3),
    succeeded=st.floats(0, 1e6),
    failed=st.floats(0, 1e3),
    rows=st.floats(0, 1e6),
    queued_requests=st.integers(0, 10_000),
    queued_rows=st.integers(0, 100_000),
    leased_requests=st.integers(0, 100),
    oldest_age_s=st.floats(0, 1e4),
    profile=st.sampled_from([(), PROFILE, ((1, 1e-6),), ((1, 100.0), (64, 1e4))]),
)
INPUTS = st.builds(
    Inputs,
    ready=st.integers(0, 12),
    starting=st.integers(0, 12),
    load=st.none() | LOADS,
    startup_s=st.floats(0, 1000),
    unix_s=st.floats(0, 2e9),
    was_ready=st.booleans(),
    latency_target_s=st.none() | st.floats(1e-6, 100),
    triggers=st.dictionaries(st.just("t"), st.floats(0, 100)),
    pin=st.none(),
)


@given(
    st.lists(st.tuples(INPUTS, st.floats(0.01, 20.0)), min_size=1, max_size=15),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_s1_s2_whatever_comes_desired_is_within_bounds_and_no_data_changes_nothing(
    given_: list[tuple[Inputs, float]], least: int, more: int
) -> None:
    policy = ModelPolicy(
        min_replicas=least, max_replicas=least + more, triggers=(Trigger("t", "q", 1.0),)
    )
    state, now_s = PolicyState(), 0.0
    for one, after_s in given_:
        now_s += after_s
        if one.load is not None:
            one = replace(one, load=replace(one.load, at_s=now_s))
        before = state.desired
        state, decision = decide(state, one, now_s, policy)
        assert least <= decision.desired <= least + more
        assert decision.reason
        if one.load is None and before is not None:
            assert decision.desired == before
        assert len(state.wants) <= 512
        assert len(state.changes) <= 512


@pytest.mark.parametrize("age_s", [5.1, 100.0])
def test_s2_a_stale_load_is_no_data(age_s: float) -> None:
    state, _ = decide(PolicyState(), inputs(3), 0.0, ModelPolicy())
    _, decision = decide(state, inputs(3), age_s, ModelPolicy())
    assert decision.reason == "no data: nothing changes"
    assert decision.desired == 3
