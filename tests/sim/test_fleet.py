"""The autoscaler's core in virtual time: it follows the load, and costs what it should."""

from collections.abc import Mapping

import numpy as np
import pytest

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.fleet import ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.core.settings import Device, ModelPolicy, ScalingSettings
from tideserve.autoscaler.core.state import Rules
from tideserve.sim.arrivals import Phase, Steps
from tideserve.sim.hardware import BatchTimes, Hardware, Spread
from tideserve.sim.scenario import Run, Scenario, run_scaled

RULES = Rules(devices=(Device(slots=16),))
# 50 rows a second a replica.
HARDWARE = Hardware(BatchTimes.linear(0.010, 0.080), start_s=Spread(1.0), load_s=Spread(0.1))


class Script:
    """Wants what it is told, by time."""

    def __init__(self, *steps: tuple[float, int]) -> None:
        self._steps = steps

    def decide(
        self, snapshot: Snapshot, sample: Sample, now_s: float
    ) -> Mapping[ModelKey, Decision]:
        (count, *_) = [count for at_s, count in reversed(self._steps) if at_s <= now_s]
        return {model.key: Decision(count, "as the script says") for model in snapshot.models}


def scenario(*phases: tuple[float, float], initial: int = 1) -> Scenario:
    duration_s = sum(duration for duration, _ in phases)
    steps = Steps(tuple(Phase(duration, rate) for duration, rate in phases))
    times_s = steps.times_s(duration_s, np.random.default_rng(3))
    return Scenario(times_s, duration_s, 0.5, HARDWARE, 8, initial=initial)


def elastic(*phases: tuple[float, float], standby: int = 0, least: int = 1) -> Run:
    policy = ModelPolicy(min_replicas=least, max_replicas=8, latency_target_s=0.5, idle_s=5.0)
    settings = ScalingSettings(default=policy, devices=RULES.devices, standby=standby)
    rules = Rules(devices=RULES.devices, standby=standby)
    return run_scaled(
        scenario(*phases, initial=max(1, least)), ElasticPolicy(settings), rules, seed=3
    )


def ready_at(run: Run, at_s: float) -> int:
    return [ready for when_s, ready, _ in run.book.counts if when_s <= at_s][-1]


def test_a_started_replica_is_ready_after_its_start_up_and_paid_for_from_its_launch() -> None:
    run = run_scaled(scenario((10.0, 10.0)), Script((0.0, 1), (5.0, 3), (8.0, 1)), RULES, seed=3)
    assert ready_at(run, 5.9) == 1
    assert ready_at(run, 6.25) == 3
    assert ready_at(run, 9.0) == 1
    assert run.figures.starts == 2
    # The one at the start was started 1 s before; the others run from 5 s to about 8 s.
    assert run.figures.replica_s == pytest.approx(10.0 + 1.0 + 2 * 3.0, abs=0.5)


def test_a_standby_is_given_the_model_within_its_load_time() -> None:
    rules = Rules(devices=RULES.devices, standby=1)
    run = run_scaled(scenario((10.0, 10.0)), Script((0.0, 1), (5.0, 2)), rules, seed=3)
    assert ready_at(run, 5.0) == 1
    assert ready_at(run, 5.25) == 2


def test_nothing_is_lost_through_a_step_and_back() -> None:
    run = elastic((20.0, 10.0), (30.0, 150.0), (90.0, 10.0))
    assert run.figures.answered == 1.0
    assert run.figures.most_replicas >= 3
    assert ready_at(run, 139.0) == 1
    assert run.figures.attainment > 0.95


def test_at_zero_a_request_is_held_until_its_replica_is_there() -> None:
    run = elastic((5.0, 10.0), (25.0, 0.0), (5.0, 10.0), least=0)
    assert min(ready for _, ready, _ in run.book.counts) == 0
    assert run.figures.answered == 1.0
    assert run.over_optimum is not None


def test_a_replica_that_dies_is_replaced() -> None:
    hardware = Hardware(BatchTimes.linear(0.010, 0.080), start_s=Spread(0.5), mean_life_s=5.0)
    dying = Scenario(scenario((30.0, 20.0)).arrived_s, 30.0, 0.5, hardware, 8, initial=2)
    run = run_scaled(dying, Script((0.0, 2)), RULES, seed=3)
    assert run.book.deaths >= 3
    assert run.figures.starts >= run.book.deaths - 2
    assert run.figures.answered > 0.99


def test_the_optimum_is_no_dearer_for_fewer_in_time() -> None:
    one = scenario((20.0, 10.0), (20.0, 200.0))
    assert one.optimum_s(0.8) <= one.optimum_s(0.99) <= one.optimum_s(1.0)
    assert one.rows_per_s == pytest.approx(50.0)


def test_the_same_seed_gives_the_same_decisions() -> None:
    first, again = (elastic((10.0, 10.0), (10.0, 150.0)) for _ in range(2))
    assert first.decisions == again.decisions
    assert first.figures == again.figures
