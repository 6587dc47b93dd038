"""A count that chases itself, its own batches, or its neighbour would never come to rest."""

from itertools import pairwise
from math import ceil
from random import Random

import pytest

from tideserve.autoscaler.core.capacity import Capacity, capacity, fewest, replicas_for
from tideserve.autoscaler.core.decision import Inputs
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Load, Sample
from tideserve.autoscaler.core.placement import Demand, place
from tideserve.autoscaler.core.policy import PolicyState, decide
from tideserve.autoscaler.core.settings import Device, ModelPolicy, ScalingSettings
from tideserve.autoscaler.core.window import LoadWindow

PROFILE = ((1, 0.02), (2, 0.025), (4, 0.03), (8, 0.045), (16, 0.08))
A, B = ModelKey("a", 1, "g1"), ModelKey("b", 1, "g1")
TICK_S = 0.25


@pytest.mark.parametrize("rate", [300.0, 550.0, 600.0, 750.0, 800.0])
def test_a_constant_rate_under_a_latency_target_comes_to_rest(rate: float) -> None:
    state, count, counts = PolicyState(), 1, []
    for tick in range(480):
        now_s, arrivals = tick * TICK_S, rate * tick * TICK_S
        load = Load(now_s, arrivals, succeeded=arrivals, rows=arrivals, profile=PROFILE)
        inputs = Inputs(count, 0, load, startup_s=2.0, unix_s=now_s, latency_target_s=0.1)
        state, decision = decide(state, inputs, now_s, ModelPolicy())
        count = decision.desired
        counts.append(count)
    assert sum(a != b for a, b in pairwise(counts)) <= 2
    found = capacity(PROFILE, 0.1, count)
    assert found is not None
    assert count * found.rows_per_s >= rate


@pytest.mark.parametrize("rate", range(50, 1000, 25))
def test_the_fewest_are_enough_with_their_own_batch_and_one_less_is_not(rate: int) -> None:
    def needs(found: Capacity) -> int:
        return replicas_for(float(rate), found, quantile=0.95, wait_target_s=0.1)

    answer = fewest(PROFILE, 0.1, 64, needs)
    assert answer is not None
    count, found = answer
    assert found == capacity(PROFILE, 0.1, count)
    assert count * found.rows_per_s >= rate - 1e-6
    with_less = capacity(PROFILE, 0.1, count - 1)
    assert with_less is not None
    assert count == 1 or (count - 1) * with_less.rows_per_s < rate


def test_nobody_is_needed_where_nothing_is_asked() -> None:
    answer = fewest(PROFILE, 0.1, 8, lambda _: 0)
    assert answer is not None
    assert answer[0] == 0


def test_where_the_most_are_not_enough_the_need_is_told() -> None:
    answer = fewest(PROFILE, 0.1, 2, lambda found: ceil(2000.0 / found.rows_per_s))
    assert answer is not None
    assert answer[0] > 2
    assert fewest((), 0.1, 2, lambda _: 1) is None


def test_requests_that_wait_for_their_batch_are_no_backlog_that_a_replica_did_not_help() -> None:
    """Deferred batching lets a few wait at any load; the served rate then tells the arrivals."""
    state, count, arrivals, limits = PolicyState(), 1, 0.0, set()
    profile = ((1, 0.02), (2, 0.02))
    for tick in range(480):
        now_s = tick * TICK_S
        arrivals += (60.0 + 1.5 * now_s) * TICK_S
        load = Load(
            now_s,
            arrivals,
            succeeded=arrivals,
            rows=arrivals,
            queued_requests=2,
            queued_rows=2,
            profile=profile,
        )
        state, decision = decide(state, Inputs(count, 0, load, 2.0, now_s), now_s, ModelPolicy())
        count = decision.desired
        limits.add(decision.limited_by)
    assert limits == {None}
    assert count == 3


def test_a_slot_does_not_change_hands_for_a_little_more() -> None:
    def given_to(asked_a: float, asked_b: float) -> dict[ModelKey, int]:
        demands = [
            Demand(A, 3, has=3, rows_per_s=100.0, asked_rows_per_s=asked_a),
            Demand(B, 3, has=2, rows_per_s=100.0, asked_rows_per_s=asked_b),
        ]
        return place(demands, (Device(slots=5),))

    assert given_to(250.0, 260.0) == {A: 3, B: 2}
    assert given_to(250.0, 290.0) == {A: 2, B: 3}


def test_two_models_that_are_as_short_do_not_take_turns() -> None:
    random = Random(3)
    elastic = ElasticPolicy(ScalingSettings(devices=(Device(slots=5),)))
    arrivals, counts, seen = {A: 0.0, B: 0.0}, {A: 2, B: 2}, []
    for tick in range(480):
        now_s = tick * TICK_S
        loads = {}
        for key in (A, B):
            arrivals[key] += 500.0 * TICK_S * (0.85 + 0.3 * random.random())
            came = arrivals[key]
            loads[key] = Load(now_s, came, succeeded=came, rows=came, profile=PROFILE)
        replicas = tuple(
            Replica(f"{key.name}-{number}", key, ReplicaState.READY, was_ready=True)
            for key, count in counts.items()
            for number in range(count)
        )
        snapshot = Snapshot(1, (Model(A), Model(B)), replicas)
        decisions = elastic.decide(snapshot, Sample(now_s, loads), now_s)
        counts = {key: decision.desired for key, decision in decisions.items()}
        seen.append((counts[A], counts[B]))
    assert sum(a != b for a, b in pairwise(seen)) <= 2
    assert sum(seen[-1]) == 5


@pytest.mark.parametrize("answered", [0.0, 2.2e-308, 0.5])
def test_less_than_one_answer_tells_no_rows_a_request(answered: float) -> None:
    load = Load(0.0, arrivals=4.0, failed=answered, rows=4.0, profile=PROFILE)
    assert LoadWindow().push(load).rows_per_request() == 1.0
    _, decision = decide(PolicyState(), Inputs(1, 0, load, 2.0, 0.0), 0.0, ModelPolicy())
    assert decision.desired == 1
