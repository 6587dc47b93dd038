"""Several models in one run: they do not mix, share devices, and are summed up as what they are."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.settings import Device, ModelPolicy, ScalingSettings
from tideserve.autoscaler.core.state import Rules
from tideserve.server.core.settings import OnLate
from tideserve.sim.arrivals import Phase, Poisson, Steps
from tideserve.sim.compare import compare
from tideserve.sim.hardware import BatchTimes, Hardware, Spread
from tideserve.sim.scenario import ALL, Run, Scenario, run_scaled, run_together

FAST = Hardware(BatchTimes.linear(0.005, 0.020), start_s=Spread(1.0), load_s=Spread(0.1))
SLOW = Hardware(BatchTimes.linear(0.010, 0.080), start_s=Spread(2.0), load_s=Spread(0.1))
SECONDS = 8.0


def scenario(name: str, rate: float, hardware: Hardware = SLOW, seed: int = 3) -> Scenario:
    times_s = Poisson(rate).times_s(SECONDS, np.random.default_rng(seed))
    return Scenario(times_s, SECONDS, 0.5, hardware, 8, name=name)


def together(
    *scenarios: Scenario,
    slots: int = 16,
    standby: int = 0,
    policies: Mapping[str, ModelPolicy] | None = None,
) -> list[Run]:
    devices = (Device("gpu:0", slots - slots // 2), Device("gpu:1", slots // 2))
    scaling = ScalingSettings(
        ModelPolicy(max_replicas=8), policies or {}, devices=devices, standby=standby
    )
    rules = Rules(devices=devices, standby=standby)
    return run_together(scenarios, ElasticPolicy(scaling), rules, seed=3)


@settings(max_examples=5, deadline=None)
@given(
    rates=st.lists(st.floats(1.0, 150.0), min_size=2, max_size=3),
    seed=st.integers(0, 1000),
    on_late=st.sampled_from(list(OnLate)),
)
def test_with_room_for_all_each_fares_as_it_does_alone(
    rates: list[float], seed: int, on_late: OnLate
) -> None:
    scenarios = [
        replace(
            scenario(f"m{at}", rate, (FAST, SLOW)[at % 2], seed + at),
            on_late=on_late,
            duration_s=2.0,
            arrived_s=Poisson(rate).times_s(2.0, np.random.default_rng(seed + at)),
        )
        for at, rate in enumerate(rates)
    ]
    *runs, _ = together(*scenarios)
    for one, run in zip(scenarios, runs, strict=True):
        alone = run_scaled(
            one,
            ElasticPolicy(
                ScalingSettings(ModelPolicy(max_replicas=8), devices=(Device(slots=16),))
            ),
            Rules(devices=(Device(slots=16),)),
            seed=3,
        )
        assert run.model == one.name
        assert run.book.finished_s.tolist() == alone.book.finished_s.tolist()
        assert run.book.idle_at_least == pytest.approx(alone.book.idle_at_least)
        assert run.figures.replica_s == pytest.approx(alone.figures.replica_s)
        # The run goes on until the last model is done, looks at the others included.
        looks = len(alone.book.counts)
        assert run.book.counts[:looks] == alone.book.counts


def test_every_request_has_its_outcome_in_its_own_models_book() -> None:
    lossy = replace(scenario("lossy", 400.0), on_late=OnLate.DROP)
    calm = scenario("calm", 20.0, FAST)
    lossy_run, calm_run, _ = together(lossy, calm, slots=3)
    for run, one in ((lossy_run, lossy), (calm_run, calm)):
        book = run.book
        outcomes = book.succeeded + book.expired + book.rejected + book.failed
        assert outcomes == len(one.arrived_s)
        assert int(np.isfinite(book.finished_s).sum()) == book.succeeded
        assert book.rows == book.succeeded
    assert lossy_run.book.expired + lossy_run.book.rejected > 0
    assert calm_run.book.succeeded == len(calm.arrived_s)


def most_at_a_time(runs: list[Run]) -> int:
    """READY or starting, of all models."""
    looks = zip(*(run.book.counts for run in runs if run.model != ALL), strict=True)
    return max(int(sum(ready + starting for _, ready, starting in look)) for look in looks)


def test_models_do_not_take_more_slots_than_there_are() -> None:
    runs = together(scenario("a", 200.0), scenario("b", 200.0), slots=5)
    assert most_at_a_time(runs) == 5
    assert runs[-1].figures.most_replicas == 5
    assert together(scenario("a", 200.0), scenario("b", 200.0))[-1].figures.most_replicas > 5


def test_who_has_priority_gets_the_slots() -> None:
    """Both want five; alike otherwise, each gets the most when it is first."""
    pair = scenario("a", 200.0), scenario("b", 200.0)
    for first, second in (("a", "b"), ("b", "a")):
        policies = {
            first: ModelPolicy(max_replicas=8, priority=1),
            second: ModelPolicy(max_replicas=8, priority=2),
        }
        found = {run.model: run.figures for run in together(*pair, slots=6, policies=policies)}
        assert found[first].most_replicas >= 5
        assert found[second].most_replicas <= 2
        assert found[first].attainment > found[second].attainment + 0.2


def test_a_slot_that_one_model_leaves_serves_the_other() -> None:
    """The loads change places at half time."""

    def phases(name: str, *rates: float) -> Scenario:
        steps = Steps(tuple(Phase(20.0, rate) for rate in rates))
        times_s = steps.times_s(40.0, np.random.default_rng(3))
        return replace(scenario(name, 1.0), arrived_s=times_s, duration_s=40.0)

    runs = together(phases("a", 130.0, 2.0), phases("b", 2.0, 130.0), slots=5)
    ready = {
        run.model: [
            [ready for at_s, ready, _ in run.book.counts if at_s <= until_s][-1]
            for until_s in (19.0, 39.0)
        ]
        for run in runs[:2]
    }
    assert ready["a"][0] >= 3
    assert ready["b"][1] >= 3
    assert most_at_a_time(runs) <= 5


def test_all_together_cost_what_each_does_and_the_standbys() -> None:
    pair = scenario("a", 60.0), scenario("b", 60.0, FAST)
    a, b, both = together(*pair)
    assert both.model == ALL
    assert both.figures.replica_s == pytest.approx(a.figures.replica_s + b.figures.replica_s)
    assert both.figures.arrivals == a.figures.arrivals + b.figures.arrivals
    hits = sum(run.figures.attainment * run.figures.arrivals for run in (a, b))
    assert both.figures.attainment == pytest.approx(hits / both.figures.arrivals)
    assert a.over_optimum is not None
    assert b.over_optimum is not None
    assert both.over_optimum is not None
    assert min(a.over_optimum, b.over_optimum) < both.over_optimum
    assert both.over_optimum < max(a.over_optimum, b.over_optimum)
    a, b, both = together(*pair, standby=2)
    spare_s = both.figures.replica_s - a.figures.replica_s - b.figures.replica_s
    assert SECONDS < spare_s <= 2 * SECONDS + 1.0
    assert both.figures.starts >= a.figures.starts + b.figures.starts + 2


def test_a_single_model_pays_for_its_standbys() -> None:
    scaling = ScalingSettings(devices=(Device(slots=8),), standby=1)
    run = run_scaled(
        scenario("a", 1.0),
        ElasticPolicy(scaling),
        Rules(devices=(Device(slots=8),), standby=1),
        seed=3,
    )
    # One that was there, since its start-up of 2 s, and a standby.
    assert run.figures.replica_s == pytest.approx(SECONDS + 2.0 + SECONDS, abs=0.5)


def test_systems_are_compared_model_by_model_and_together() -> None:
    pair = scenario("a", 60.0), scenario("b", 60.0, FAST)
    devices = (Device(slots=16),)
    scaling, rules = ScalingSettings(devices=devices), Rules(devices=devices)
    systems = ("tideserve", "kpa-70", "static")
    runs = compare(pair, scaling, rules, systems, seed=3)
    assert [(run.system, run.model) for run in runs] == [
        (system, model) for system in systems for model in ("a", "b", ALL)
    ]
    for ours, static in zip(runs[:2], runs[6:8], strict=True):
        assert {count for _, count in static.book.desired} == {ours.figures.most_replicas}
    again = compare(pair, scaling, rules, systems, seed=3)
    assert [run.figures for run in runs] == [run.figures for run in again]
