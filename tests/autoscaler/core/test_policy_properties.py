"""What no sequence of looks may break."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.autoscaler.core.loads import PROFILE, UNIX_S
from tests.autoscaler.core.looks import IDLE
from tideserve.autoscaler.core.decision import Inputs
from tideserve.autoscaler.core.load import Load
from tideserve.autoscaler.core.policy import PolicyState, decide
from tideserve.autoscaler.core.settings import ModelPolicy, Trigger

STALE_S = Load(0.0).good_for_s
BY_TRIGGER = ModelPolicy(max_replicas=50, hold_s=300.0, triggers=(Trigger("t", "q", 1.0),))


def test_a_peak_is_held_for_h_however_often_the_want_changes_meanwhile() -> None:
    state, held_s = PolicyState(), 0.0
    for look in range(3200):
        now_s = look * 0.25
        reading = 20.0 if now_s == 400.0 else 3.0 + look % 2
        one = Inputs(3, 0, replace(IDLE, at_s=now_s), 0.5, UNIX_S + now_s, triggers={"t": reading})
        state, decision = decide(state, one, now_s, BY_TRIGGER)
        if decision.desired == 20:
            held_s = now_s - 400.0
        assert len(state.wants) <= 64
    assert 299.0 <= held_s <= 300.25


def test_s3_starts_that_die_before_capacity_is_known_lower_nothing() -> None:
    state, policy = PolicyState(), ModelPolicy(hold_s=4.0)
    for look in range(80):
        now_s = look * 0.5
        load = Load(now_s, arrivals=50.0 * now_s)
        present = 3 if now_s < 5.0 else 1
        one = Inputs(0, present, load, 0.5, UNIX_S + now_s, was_ready=False)
        state, decision = decide(state, one, now_s, policy)
        assert decision.desired == 3


@given(
    st.lists(
        st.tuples(
            st.integers(0, 6),
            st.integers(0, 3),
            st.integers(0, 300),
            st.integers(0, 200),
            st.floats(0.0, 12.0),
            st.floats(0.25, 40.0),
            st.none() | st.integers(0, 20),
        ),
        min_size=1,
        max_size=20,
    ),
    st.integers(0, 4),
)
def test_s1_s2_s3_whatever_comes(
    looks: list[tuple[int, int, int, int, float, float, int | None]], least: int
) -> None:
    policy = ModelPolicy(min_replicas=least, max_replicas=8, hold_s=1.0, idle_s=1.0)
    state, now_s, arrivals = PolicyState(), 0.0, 0
    was_pinned = False
    for ready, starting, came, queued, age_s, after_s, pin in looks:
        now_s += after_s
        arrivals += came
        load = Load(
            now_s - age_s,
            arrivals=float(arrivals),
            succeeded=1.0,
            rows=1.0,
            queued_requests=queued,
            queued_rows=queued,
            profile=PROFILE,
        )
        one = Inputs(ready, starting, load, 0.5, UNIX_S + now_s, latency_target_s=0.4, pin=pin)
        before = state.desired
        state, decision = decide(state, one, now_s, policy)
        assert decision.desired <= 8
        if pin is not None:
            assert decision.desired == min(pin, 8)
        else:
            assert decision.desired >= least
        # Taking a pin away gives the count back to the policy, at the next look with data.
        is_free = pin is None and not was_pinned
        was_pinned = pin is not None or (was_pinned and age_s > STALE_S)
        if before is None or not is_free:
            continue
        if age_s > STALE_S:
            assert decision.desired == before
        elif now_s < state.panic_until_s or len(state.learned.window.loads) == 1:
            assert decision.desired >= before
