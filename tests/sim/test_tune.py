"""Which of the settings that were tried is the best, and which are tried."""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.settings import ModelPolicy, ScalingSettings
from tideserve.autoscaler.core.state import Rules
from tideserve.sim import tune as tune_module
from tideserve.sim.arrivals import Poisson
from tideserve.sim.book import Book, Figures, figures
from tideserve.sim.hardware import BatchTimes, Hardware
from tideserve.sim.scenario import MODEL, Run, Scenario
from tideserve.sim.tune import GROWTH_QUANTILES, HOLD_FACTORS, Candidate, Goal, best_of, tune

EMPTY = Book(np.empty(0))


def candidate(name: str, *, in_time: float, replica_s: float, turns: float) -> Candidate:
    nothing: Figures = figures(EMPTY, 1.0, 1.0)
    found = replace(nothing, attainment=in_time, replica_s=replica_s, reversals_per_hour=turns)
    return Candidate(ModelPolicy(), 0, Run(name, found, EMPTY))


CHEAP = candidate("cheap", in_time=0.9, replica_s=1.0, turns=90.0)
CALM = candidate("calm", in_time=0.995, replica_s=3.0, turns=5.0)
BUSY = candidate("busy", in_time=0.999, replica_s=2.0, turns=40.0)


@pytest.mark.parametrize(
    ("goal", "best"),
    [
        (Goal(0.99), "busy"),
        (Goal(0.5), "cheap"),
        (Goal(0.99, 10.0), "calm"),
        (Goal(0.99, 40.0), "busy"),
        (Goal(0.99, 1.0), "calm"),
        (Goal(0.998, 10.0), "busy"),
        (Goal(1.0), "busy"),
        (Goal(0.0, 0.0), "calm"),
    ],
)
def test_the_share_in_time_goes_before_the_turns_and_these_before_the_cost(
    goal: Goal, best: str
) -> None:
    for tried in ([CHEAP, CALM, BUSY], [BUSY, CALM, CHEAP]):
        assert best_of(tried, goal).run.system == best


def test_every_growth_is_tried_with_every_hold() -> None:
    arrived_s = Poisson(40.0).times_s(5.0, np.random.default_rng(1))
    hardware = Hardware(BatchTimes.linear(0.01, 0.08))
    scenario = Scenario(arrived_s, 5.0, 0.5, hardware, 8)
    told: list[Candidate] = []
    best, tried = tune(
        scenario, ScalingSettings(models={MODEL: ModelPolicy()}), Rules(), Goal(0.9), 1, told.append
    )
    pairs = {(one.policy.growth_quantile, one.policy.hold_factor) for one in tried}
    assert pairs >= {(share, factor) for share in GROWTH_QUANTILES for factor in HOLD_FACTORS}
    assert told == tried
    assert best == best_of(tried, Goal(0.9, inf))


@pytest.mark.parametrize(
    ("calm_from", "found"), [(5.2, 5.25), (4.0, 4.0), (4.1, 4.125), (5.9, 6.0), (0.1, 0.5)]
)
def test_the_way_to_the_next_shorter_hold_is_halved(
    monkeypatch: pytest.MonkeyPatch, calm_from: float, found: float
) -> None:
    """A hold costs what it lasts, and only one from `calm_from` on turns as seldom as asked."""

    def run(scenario: Scenario, policy: ElasticPolicy, rules: Rules, seed: int) -> Run:
        hold = policy.settings.policy_of(MODEL).hold_factor
        turns = 5.0 if hold >= calm_from else 50.0
        return candidate("one", in_time=1.0, replica_s=hold, turns=turns).run

    monkeypatch.setattr(tune_module, "run_scaled", run)
    scenario = Scenario(np.empty(0), 5.0, 0.5, Hardware(BatchTimes.linear(0.01, 0.08)), 8)
    best, tried = tune(
        scenario, ScalingSettings(models={MODEL: ModelPolicy()}), Rules(), Goal(0.9, 10.0), 1
    )
    assert best.policy.hold_factor == found
    assert len(tried) <= 33
