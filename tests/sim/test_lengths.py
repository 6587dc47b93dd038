"""Requests of different lengths: batches of one bucket, times and limits by rows times length."""

from collections.abc import Hashable, Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tideserve.server.core.actions import Action, Dispatch
from tideserve.server.core.assignment import Assignment
from tideserve.server.core.leases import Lease
from tideserve.server.core.model import Model
from tideserve.server.core.replicas import Replica
from tideserve.server.core.settings import BatchingMode
from tideserve.sim.arrivals import Poisson
from tideserve.sim.book import in_time
from tideserve.sim.hardware import BatchTimes, Hardware
from tideserve.sim.scenario import Scenario, run_fixed

EDGES = (64, 128, 512)
# l(b) is of rows of 512.
HARDWARE = Hardware(BatchTimes.linear(0.008, 0.004), row_cost=512)


class Leases(Assignment):
    """The core's own rule, and what it handed out."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Lease] = []

    def assign(
        self, key: Hashable, model: Model, replicas: Iterable[Replica], now_s: float
    ) -> list[Action]:
        actions = super().assign(key, model, replicas, now_s)
        self.given += [action.lease for action in actions if isinstance(action, Dispatch)]
        return actions


def scenario(
    rate: float,
    costs: tuple[int, ...],
    *,
    mode: BatchingMode = BatchingMode.SLO,
    most_cost: int | None = None,
    seed: int = 5,
) -> Scenario:
    generator = np.random.default_rng(seed)
    times_s = Poisson(rate).times_s(2.0, generator)
    return Scenario(
        times_s,
        2.0,
        0.1,
        HARDWARE,
        32,
        mode,
        row_costs=generator.choice(costs, times_s.size),
        pad_edges=EDGES,
        max_batch_cost=most_cost,
    )


def test_a_batch_takes_as_long_as_its_rows_are_long() -> None:
    generator = np.random.default_rng(1)
    assert HARDWARE.draw_batch_s(4, 512, generator) == pytest.approx(0.036)
    assert HARDWARE.draw_batch_s(4, 128, generator) == pytest.approx(0.012)
    assert HARDWARE.draw_batch_s(1, 1024, generator) == pytest.approx(0.020)
    assert Hardware(HARDWARE.batch).draw_batch_s(4, 1, generator) == pytest.approx(0.036)


@settings(max_examples=8, deadline=None)
@given(
    # Two replicas do 133 a second of those that are computed alone. A run ends at twice its time, so
    # beyond twice that rate leases would be left without their answers.
    rate=st.floats(20.0, 200.0),
    costs=st.sets(st.sampled_from((*EDGES, 700)), min_size=1).map(tuple),
    most_cost=st.sampled_from([None, 600, 2048]),
    mode=st.sampled_from(list(BatchingMode)),
    seed=st.integers(0, 1000),
)
def test_batches_are_of_one_bucket_and_within_their_cost(
    rate: float, costs: tuple[int, ...], most_cost: int | None, mode: BatchingMode, seed: int
) -> None:
    one, rule = scenario(rate, costs, mode=mode, most_cost=most_cost, seed=seed), Leases()
    book = run_fixed(one, 2, seed, assignment=rule).book
    for lease in rule.given:
        assert {request.row_cost for request in lease.requests} == {lease.row_cost}
        if most_cost is not None and len(lease.requests) > 1:
            assert lease.rows * lease.row_cost <= most_cost
    assert book.succeeded == sum(len(lease.requests) for lease in rule.given)


def test_short_requests_cost_little_and_the_optimum_knows_it() -> None:
    short, long = scenario(130.0, (64,)), scenario(130.0, (512,))
    assert scenario(400.0, (512,)).optimum_s(1.0) > 3.0 * scenario(400.0, (64,)).optimum_s(1.0)
    # Twelve long rows, or 32 short ones, the most in a batch, are done in time.
    assert short.mean_request_work == pytest.approx((12 / 0.1) * (0.004 + 32 * 0.001) / 32)
    assert long.mean_request_work == pytest.approx(1.0)
    attained = [run_fixed(one, 1, 1).figures.attainment for one in (short, long)]
    assert attained[0] > 0.99
    assert attained[1] < 0.9


def test_with_a_target_short_ones_are_not_kept_waiting_by_long_ones() -> None:
    """One in five is long; a replica could do twice as much in time."""
    mixed = scenario(110.0, (64, 64, 64, 64, 512))
    served = in_time(run_fixed(mixed, 1, 1).book, mixed.target_s)
    assert mixed.row_costs is not None
    assert served[mixed.row_costs == 64].mean() > 0.95
