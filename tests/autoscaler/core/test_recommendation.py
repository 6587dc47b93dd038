"""What each reason asks for, one look at a time, and how it says so."""

from dataclasses import replace
from itertools import pairwise
from math import inf

import pytest

from tests.autoscaler.core.loads import UNIX_S
from tests.autoscaler.core.looks import IDLE, inputs, looks
from tideserve.autoscaler.core.decision import Inputs
from tideserve.autoscaler.core.load import Load
from tideserve.autoscaler.core.policy import PolicyState, decide
from tideserve.autoscaler.core.recommendation import Learned, Recommendation, recommend
from tideserve.autoscaler.core.settings import ModelPolicy, Schedule, Trigger


def recommended(policy: ModelPolicy, *given_: Inputs, held: int = 0) -> Recommendation:
    """Of the last of these looks, a second apart."""
    learned, found = Learned(), None
    for now_s, one in enumerate(given_):
        assert one.load is not None
        load = replace(one.load, at_s=float(now_s))
        learned, found = recommend(
            learned, one, load, float(now_s), policy, held=held, raised_s=-inf
        )
    assert found is not None
    return found


def test_the_reason_that_asks_for_most_is_told_and_no_bound_is_looked_at() -> None:
    policy = ModelPolicy(
        max_replicas=2,
        triggers=(Trigger("few", "q", 10.0), Trigger("many", "q", 1.0)),
        schedules=(Schedule("0 22 * * *", 3600.0, 5),),
    )
    readings = {"few": 30.0, "many": 9.0}
    found = recommended(policy, inputs(triggers=readings))
    assert (found.count, found.reason) == (9, "trigger many: 9 of 1 a replica")
    found = recommended(policy, inputs(triggers={**readings, "many": 4.0}))
    assert (found.count, found.reason) == (5, "schedule: at least 5")


def test_of_none_that_are_wanted_the_reason_is_for_how_long_nobody_asked() -> None:
    policy = ModelPolicy(min_replicas=0, idle_s=2.0, triggers=(Trigger("t", "q", 1.0),))
    found = recommended(policy, *[inputs(triggers={"t": 0.0})] * 4)
    assert (found.count, found.reason, found.panic) == (0, "idle: for 3 s", False)


def test_panic_is_told_also_where_another_reason_asks_for_more() -> None:
    policy = ModelPolicy(triggers=(Trigger("t", "q", 1.0),))
    crowded = inputs(load=replace(IDLE, queued_requests=50, queued_rows=50))
    assert recommended(policy, crowded).reason.startswith("panic: 50 rows wait")
    found = recommended(policy, replace(crowded, triggers={"t": 7.0}))
    assert (found.count, found.reason) == (7, "trigger t: 7 of 1 a replica")
    assert found.panic
    assert not recommended(policy, inputs(triggers={"t": 7.0})).panic


def test_before_a_batch_was_timed_as_many_stay_as_were_wanted() -> None:
    asked = [inputs(load=replace(IDLE, profile=(), arrivals=10.0 * at)) for at in range(3)]
    found = recommended(ModelPolicy(), *asked, held=3)
    assert (found.count, found.reason) == (3, "unmeasured: no batch was timed yet")
    assert recommended(ModelPolicy(), *asked).count == 1


def test_a_version_that_was_never_ready_is_started_once_even_with_min_0() -> None:
    policy = ModelPolicy(min_replicas=0, idle_s=1.0)
    new = inputs(0, was_ready=False, load=Load(0.0))
    assert {d.desired for d in looks(policy, *[new] * 10)} == {1}
    assert looks(policy, *[new] * 3, *[inputs(1)] * 10)[-1].desired == 0


def test_a_held_request_wakes_a_model_at_zero() -> None:
    policy = ModelPolicy(min_replicas=0, idle_s=2.0)
    held = inputs(0, load=replace(IDLE, arrivals=1.0, queued_requests=1, queued_rows=1))
    *_, before, woken = looks(policy, *[inputs(0)] * 5, held)
    assert before.desired == 0
    assert woken.desired == 1


def test_a_trigger_counts_by_maximum_and_stays_at_its_last_word_without_data() -> None:
    policy = ModelPolicy(triggers=(Trigger("jobs", "q", 10.0),))
    with_data = inputs(triggers={"jobs": 35.0})
    first, *_, last = looks(policy, with_data, *[inputs(4)] * 30)
    assert (first.desired, first.reason) == (4, "trigger jobs: 35 of 10 a replica")
    assert last.desired == 4
    assert last.inputs.get("trigger_jobs") is None
    assert looks(policy, with_data, *[inputs(4, triggers={"jobs": 5.0})] * 40)[-1].desired == 1


@pytest.mark.parametrize("reading", [1e308, -1e308])
def test_a_number_beyond_all_replicas_is_no_more_than_the_maximum(reading: float) -> None:
    policy = ModelPolicy(max_replicas=3, triggers=(Trigger("jobs", "q", 1e-300),))
    (found,) = looks(policy, inputs(triggers={"jobs": reading}))
    assert found.desired == (3 if reading > 0.0 else 1)


def test_a_schedule_is_a_minimum_while_it_lasts() -> None:
    # 2023-11-14 22:13:20 UTC.
    policy = ModelPolicy(schedules=(Schedule("0 22 * * *", 3600.0, 5),))
    assert looks(policy, inputs())[0].desired == 5
    assert looks(policy, inputs(unix_s=UNIX_S + 3600.0))[0].desired == 1


def test_drops_are_panic_also_where_capacity_seems_enough() -> None:
    first = replace(IDLE, arrivals=10.0)
    then = replace(IDLE, arrivals=14.0, rejected=4.0)
    *_, last = looks(ModelPolicy(), inputs(1, load=first), inputs(1, load=then))
    assert last.desired == 2
    assert "4 requests dropped" in last.reason


def test_without_a_profile_a_slow_queue_adds_one_at_a_time() -> None:
    blind = replace(IDLE, profile=(), queued_requests=5, queued_rows=5, oldest_age_s=2.0)
    found = looks(ModelPolicy(), *[inputs(1, load=blind)] * 4, *[inputs(2, load=blind)] * 12)
    counts = [d.desired for d in found]
    # Start-up and 4 s later it may be seen whether one more was enough.
    assert counts[:6] == [2, 2, 2, 2, 2, 3]
    assert max(counts) == 3
    assert all(b - a <= 1 for a, b in pairwise(counts))


def test_one_more_is_asked_for_on_numbers_of_after_the_last_one_only() -> None:
    """A scrape every 15 s: what it tells twelve seconds long is of before the start."""
    policy, state = ModelPolicy(), PolicyState()
    counts: list[int] = []
    for now_s in range(60):
        at_s = float(now_s - now_s % 15)
        stuck = replace(
            IDLE, at_s=at_s, profile=(), queued_requests=5, queued_rows=5, oldest_age_s=2.0
        )
        load = replace(stuck, good_for_s=45.0)
        present = counts[-1] if counts else 1
        state, decision = decide(state, inputs(present, load=load), float(now_s), policy)
        counts.append(decision.desired)
    # At 0 the first one; the scrape of 15 s is the first of after it, and begins at 0.
    assert [counts[at] for at in (0, 14, 15, 29, 30, 44, 45)] == [2, 2, 2, 2, 3, 3, 3]


def test_every_number_of_a_decision_is_told() -> None:
    told = looks(ModelPolicy(), inputs(), inputs())[-1].inputs
    assert told.keys() >= {
        "ready",
        "starting",
        "startup_s",
        "queued_rows",
        "rows_per_s_20s",
        "rows_per_s_4s",
        "rows_per_request",
        "capacity_rows_per_s",
        "growth_ratio",
        "idle_s",
    }
    assert all(abs(value) < inf for value in told.values())
