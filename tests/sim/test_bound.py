"""The bound of what can be in time: against every schedule there is, and what the simulator's
policies reach."""

from collections.abc import Iterator
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tideserve.server.core.settings import BatchingMode, OnLate
from tideserve.sim.arrivals import Gamma, Poisson
from tideserve.sim.bound import most_in_time
from tideserve.sim.hardware import BatchTimes, Hardware
from tideserve.sim.scenario import Scenario, run_fixed

DURATION_S = 0.6
# Whole eighths of a second: sums are exact.
TIMES = st.lists(st.integers(0, 24), min_size=1, max_size=5).map(
    lambda eighths: np.array(sorted(eighths), np.float64) / 8.0
)


def packings(left: tuple[int, ...]) -> Iterator[list[tuple[int, ...]]]:
    """Every way to put some of them into batches."""
    if not left:
        yield []
        return
    first, rest = left[0], left[1:]
    yield from packings(rest)
    for chosen in range(1 << len(rest)):
        batch = (first, *(one for at, one in enumerate(rest) if chosen >> at & 1))
        others = tuple(one for at, one in enumerate(rest) if not chosen >> at & 1)
        for packing in packings(others):
            yield [batch, *packing]


def is_in_time(
    packing: list[tuple[int, ...]],
    arrived_s: list[float],
    replicas: int,
    batch: BatchTimes,
    target_s: float,
) -> bool:
    """Whether some order of the batches, each on the replica that is free first, has all in
    time."""
    for order in permutations(packing):
        free_s = [0.0] * replicas
        for requests in order:
            at = free_s.index(min(free_s))
            end_s = max(free_s[at], arrived_s[requests[-1]]) + batch.mean_s(len(requests))
            if end_s > arrived_s[requests[0]] + target_s:
                break
            free_s[at] = end_s
        else:
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(
    TIMES,
    st.integers(1, 2),
    st.integers(1, 8).map(lambda eighths: eighths / 8.0),
    st.integers(0, 16).map(lambda eighths: eighths / 8.0),
    st.integers(1, 32).map(lambda eighths: eighths / 8.0),
    st.integers(1, 5),
)
def test_no_schedule_of_all_that_there_are_has_more_in_time(
    arrived_s: np.ndarray[tuple[int], np.dtype[np.float64]],
    replicas: int,
    per_row_s: float,
    base_s: float,
    target_s: float,
    max_rows: int,
) -> None:
    batch = BatchTimes.linear(per_row_s, base_s)
    most = max(
        sum(map(len, packing))
        for packing in packings(tuple(range(len(arrived_s))))
        if max(map(len, packing), default=0) <= max_rows
        and is_in_time(packing, arrived_s.tolist(), replicas, batch, target_s)
    )
    found = most_in_time(
        arrived_s, replicas=replicas, batch=batch, target_s=target_s, max_rows=max_rows
    )
    assert most / len(arrived_s) <= found + 1e-9
    assert found <= 1.0


def test_it_is_exact_where_all_come_at_once_and_one_batch_fits() -> None:
    # Four take a second, which is all there is; five would be late.
    found = most_in_time(
        np.zeros(10), replicas=1, batch=BatchTimes.linear(0.2, 0.2), target_s=1.0, max_rows=8
    )
    assert found == pytest.approx(0.4, abs=0.01)


def test_a_small_batch_around_a_large_one_counts() -> None:
    # Two replicas: 0 and 2 in one batch, the four between them in another one.
    arrived_s = np.array([0.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    batch = BatchTimes(((2, 1.0), (3, 2.5), (4, 2.8)))
    found = most_in_time(arrived_s, replicas=2, batch=batch, target_s=3.0, max_rows=4)
    assert is_in_time([(1, 2, 3, 4), (0, 5)], arrived_s.tolist(), 2, batch, 3.0)
    assert found == 1.0


def test_a_batch_is_no_wider_than_its_time_leaves() -> None:
    # Replica time is without end; a request each ten seconds can only be alone, and that is late.
    arrived_s = np.arange(0.0, 1000.0, 10.0)
    batch = BatchTimes(((1, 2.0), (2, 2.0)))
    assert most_in_time(arrived_s, replicas=9, batch=batch, target_s=1.9, max_rows=2) == 0.0
    assert most_in_time(arrived_s, replicas=9, batch=batch, target_s=2.0, max_rows=2) == 1.0


@pytest.mark.parametrize(
    ("replicas", "load", "cv"), [(8, 0.7, 3.0), (8, 1.0, 1.0), (8, 1.2, 1.0), (1, 0.9, 1.0)]
)
def test_our_own_policy_stays_below_it_and_near(replicas: int, load: float, cv: float) -> None:
    batch = BatchTimes.linear(1.053e-3, 5.072e-3)
    empty = Scenario(
        np.empty(0), 1.0, 0.025, Hardware(batch), 64, BatchingMode.SLO, on_late=OnLate.DROP
    )
    rows = empty.best_rows(replicas)
    rate = load * replicas * rows / batch.mean_s(rows)
    arrivals = Poisson(rate) if cv == 1.0 else Gamma(rate, cv)
    arrived_s = arrivals.times_s(DURATION_S, np.random.default_rng(3))
    scenario = Scenario(
        arrived_s, DURATION_S, 0.025, Hardware(batch), 64, BatchingMode.SLO, on_late=OnLate.DROP
    )
    share = run_fixed(scenario, replicas, 1).figures.attainment
    most = most_in_time(arrived_s, replicas=replicas, batch=batch, target_s=0.025, max_rows=64)
    assert share <= most
    assert share >= most - 0.06


def test_without_arrivals_nothing_is_late() -> None:
    batch = BatchTimes.linear(1.0, 1.0)
    assert most_in_time(np.empty(0), replicas=1, batch=batch, target_s=1.0, max_rows=1) == 1.0


def test_arrivals_out_of_order_and_no_replica_are_refused() -> None:
    batch = BatchTimes.linear(1.0, 1.0)
    with pytest.raises(ValueError, match="ascending"):
        most_in_time(np.array([1.0, 0.0]), replicas=1, batch=batch, target_s=1.0, max_rows=1)
    with pytest.raises(ValueError, match="replicas"):
        most_in_time(np.zeros(1), replicas=0, batch=batch, target_s=1.0, max_rows=1)
