"""A run's time of day: schedules of the file hold when the trace says that it is their hour."""

from collections.abc import Mapping
from datetime import UTC, datetime

import numpy as np

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.fleet import ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.core.settings import Device, ModelPolicy, ScalingSettings, Schedule
from tideserve.autoscaler.core.state import Rules
from tideserve.sim.arrivals import Poisson
from tideserve.sim.hardware import BatchTimes, Hardware, Spread
from tideserve.sim.scenario import Run, Scenario, run_scaled

HARDWARE = Hardware(BatchTimes.linear(0.010, 0.080), start_s=Spread(1.0))
DEVICES = (Device(slots=16),)
MORNING_S = datetime(2026, 3, 2, 7, 59, 50, tzinfo=UTC).timestamp()


def run(one: Scenario, policy: ModelPolicy) -> Run:
    scaling = ScalingSettings(policy, devices=DEVICES)
    return run_scaled(one, ElasticPolicy(scaling), Rules(devices=DEVICES), seed=1)


def quiet(unix_s: float, *, day_speed: float = 1.0) -> Scenario:
    times_s = Poisson(2.0).times_s(30.0, np.random.default_rng(1))
    return Scenario(times_s, 30.0, 0.5, HARDWARE, 8, unix_s=unix_s, day_speed=day_speed)


def first_at(found: Run, count: int) -> float | None:
    return next((at_s for at_s, desired in found.book.desired if desired >= count), None)


def test_a_schedule_begins_at_its_hour_of_the_run() -> None:
    policy = ModelPolicy(schedules=(Schedule("0 8 * * *", 3600.0, min_replicas=4),))
    began_s = first_at(run(quiet(MORNING_S), policy), 4)
    # A scheduled count is there in time: its replicas start up before.
    assert began_s is not None
    assert 8.0 <= began_s <= 10.25
    assert first_at(run(quiet(MORNING_S - 3600.0), policy), 4) is None


def test_the_day_of_a_trace_goes_by_as_fast_as_it_is_played() -> None:
    policy = ModelPolicy(schedules=(Schedule("0 8 * * *", 3600.0, min_replicas=4),))
    began_s = first_at(run(quiet(MORNING_S - 90.0, day_speed=10.0), policy), 4)
    assert began_s is not None
    assert 9.0 <= began_s <= 10.25


def test_a_policy_is_told_the_time_of_the_trace() -> None:
    told: list[tuple[float, float]] = []

    class Clock:
        """Wants one, and writes down what time it was."""

        def decide(
            self, snapshot: Snapshot, sample: Sample, now_s: float
        ) -> Mapping[ModelKey, Decision]:
            told.append((now_s, sample.unix_s))
            return {model.key: Decision(1, "one") for model in snapshot.models}

    run_scaled(quiet(MORNING_S, day_speed=10.0), Clock(), Rules(devices=DEVICES), seed=1)
    assert len(told) > 100
    assert all(unix_s == MORNING_S + 10.0 * now_s for now_s, unix_s in told)
