"""The autoscaler's own metrics, as a scrape reads them."""

import re
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.metrics import AutoscalerMetrics, kind_of

KEY = ModelKey("digits", 1, "g")
LABELS = {"model": "digits", "version": "1"}


def snapshot(ready: int, starting: int = 0, standby: int = 0) -> Snapshot:
    replicas = [
        Replica(f"r{at}", KEY, ReplicaState.READY, startup_s=(("launch", 0.1), ("load", 0.2)))
        for at in range(ready)
    ]
    replicas += [Replica(f"s{at}", KEY, ReplicaState.STARTING) for at in range(starting)]
    replicas += [Replica(f"t{at}", None, ReplicaState.STANDBY) for at in range(standby)]
    return Snapshot(1, (Model(KEY),), tuple(replicas))


def value(metrics: AutoscalerMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"tideserve_autoscaler_{name}", labels)


def test_counts_times_and_costs() -> None:
    metrics = AutoscalerMetrics(lambda model: {"digits": 0.5}[model])
    metrics.record(10.0, snapshot(1), {KEY: Decision(2, "panic: x")}, [KEY])
    metrics.record(12.0, snapshot(2, 1, 3), {KEY: Decision(3, "panic: y")}, [KEY])
    metrics.record(12.5, snapshot(2, 1, 3), {KEY: Decision(3, "hold: y")}, [])
    assert value(metrics, "desired", **LABELS) == 3
    assert value(metrics, "ready", **LABELS) == 2
    assert value(metrics, "starting", **LABELS) == 1
    assert value(metrics, "standby") == 3
    assert value(metrics, "decisions_total", **LABELS, reason="panic") == 2
    assert value(metrics, "decisions_total", **LABELS, reason="hold") is None
    assert value(metrics, "replica_seconds_total", **LABELS) == 3 * 2.0 + 3 * 0.5
    assert value(metrics, "cost_total", **LABELS) == 0.5 * 7.5


def test_a_start_up_is_counted_once_by_phase() -> None:
    metrics = AutoscalerMetrics(lambda _: 1.0)
    for _ in range(3):
        metrics.record(0.0, snapshot(2), {KEY: Decision(2, "x")}, [])
    assert value(metrics, "startup_seconds_count", **LABELS, phase="launch") == 2
    assert value(metrics, "startup_seconds_sum", **LABELS, phase="total") == pytest.approx(0.6)


def test_a_replica_that_rejoins_a_restarted_frontend_is_no_other_start_up() -> None:
    metrics = AutoscalerMetrics(lambda _: 1.0)
    for look in (snapshot(2), snapshot(0), snapshot(2)):
        metrics.record(0.0, look, {KEY: Decision(2, "x")}, [])
    assert value(metrics, "startup_seconds_count", **LABELS, phase="total") == 2


def test_a_replica_costs_until_it_has_drained() -> None:
    metrics = AutoscalerMetrics(lambda _: 1.0)
    draining = Snapshot(1, (Model(KEY),), (Replica("r", KEY, ReplicaState.DRAINING),))
    for now_s in (0.0, 2.0):
        metrics.record(now_s, draining, {KEY: Decision(0, "x")}, [])
    assert value(metrics, "replica_seconds_total", **LABELS) == 2.0


def test_a_version_that_is_gone_leaves_no_series() -> None:
    metrics = AutoscalerMetrics(lambda _: 1.0)
    metrics.record(0.0, snapshot(1), {KEY: Decision(1, "x")}, [KEY])
    metrics.record(1.0, snapshot(1), {KEY: Decision(1, "x")}, [])
    assert b"digits" in generate_latest(metrics.registry)
    metrics.record(2.0, Snapshot(1), {}, [])
    assert b"digits" not in generate_latest(metrics.registry)


def test_a_long_silence_is_not_counted_as_replica_time() -> None:
    metrics = AutoscalerMetrics(lambda _: 1.0)
    metrics.record(0.0, snapshot(1), {KEY: Decision(1, "x")}, [])
    metrics.record(1000.0, snapshot(1), {KEY: Decision(1, "x")}, [])
    assert value(metrics, "replica_seconds_total", **LABELS) == 10.0


def test_kinds_of_reasons_are_few() -> None:
    assert kind_of("panic: 3 rows wait, 80.0 a replica") == "panic"
    assert kind_of("fixed: a count of 3") == "fixed"
    assert kind_of("trigger jobs: 3 of 1 a replica") == "trigger"
    assert kind_of("no data: nothing changes") == "no_data"


def test_the_page_names_all_that_is_exported_and_nothing_else() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^\| `(tideserve_autoscaler_\w+)`", page, re.MULTILINE))
    metrics = AutoscalerMetrics(lambda _: 1.0)
    exported = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in metrics.registry.collect()
        if family.name.startswith("tideserve")
    }
    assert named == exported
