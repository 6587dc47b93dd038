"""Medians, ratios, tables and the JSON file."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from benchmarks.measure import Figures
from benchmarks.perf_analyzer import Analysis
from benchmarks.report import analysis_table, load_table, ratios, share_of_limit, write_json
from benchmarks.rounds import Case, Measured, medians


def figures(requests_per_s: float, cpu_us: float = 100.0) -> Figures:
    return Figures(requests_per_s, 1.0, 2.0, 3.0, cpu_us, 100.0, requests=1000, checked=10)


OURS = Case("identity", 64, "Tideserve, 1 replica")
MEASURED: Measured = {
    OURS: [figures(900.0, 45.0), figures(1000.0, 50.0), figures(5000.0, 60.0)],
    Case("identity", 64, "Triton, 1 instance, 0 us delay"): [figures(500.0, 110.0)],
    Case("identity", 64, "Triton, 2 instances, 1000 us delay"): [figures(400.0, 90.0)],
    Case("identity", 1, "Tideserve, 1 replica"): [figures(100.0)],
    Case("identity", 0, "ONNX Runtime, batches of 1"): [figures(9000.0)],
}
ANALYSIS = Analysis("identity", 16, True, 1234.0, 1.5, 2.5, answered=4321)


TWO_REPLICAS = Case("convolutional", 64, "Tideserve, 2 replicas", instances=2)
ONE_REPLICA = Case("convolutional", 64, "Tideserve, 1 replica", instances=1)
COMPUTED: Measured = {
    TWO_REPLICAS: [figures(720.0)],
    ONE_REPLICA: [figures(400.0)],
    Case("convolutional", 0, "ONNX Runtime, batches of 1", instances=2): [figures(700.0)],
    Case("convolutional", 0, "ONNX Runtime, batches of 8", instances=2): [figures(800.0)],
}


def drawn(table: Table) -> str:
    console = Console(file=StringIO(), width=160)
    console.print(table)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_medians_are_taken_figure_by_figure_and_counts_add_up() -> None:
    middle = medians(MEASURED[OURS])
    assert middle.requests_per_s == 1000.0
    assert middle.cpu_us == 50.0
    assert middle.requests == 3000
    assert middle.checked == 30


def test_ratios_are_over_the_triton_with_the_highest_rate() -> None:
    rate, cpu = ratios(MEASURED, OURS)
    assert rate == pytest.approx(2.0)
    assert cpu == pytest.approx(50.0 / 110.0)


def test_there_is_no_ratio_without_triton_in_the_group() -> None:
    assert ratios(MEASURED, Case("identity", 1, "Tideserve, 1 replica")) == (None, None)


def test_the_table_shows_every_case_most_callers_first() -> None:
    text = drawn(load_table(MEASURED))
    lines = [line for line in text.splitlines() if "identity" in line]
    assert len(lines) == 5
    assert "1,000" in lines[0]
    assert "2.00" in lines[0]
    assert "0.45" in lines[0]
    assert "ONNX Runtime, batches of 1" in lines[4]


def test_the_limit_is_the_best_of_as_many_bare_processes() -> None:
    assert share_of_limit(COMPUTED, TWO_REPLICAS) == pytest.approx(0.9)
    assert share_of_limit(COMPUTED, ONE_REPLICA) is None
    assert share_of_limit(MEASURED, OURS) is None, "identity computes nothing"


def test_a_figure_that_a_round_has_not_is_none_of_all() -> None:
    unknown = replace(figures(900.0), p999_ms=None)
    assert medians([figures(900.0), unknown]).p999_ms is None


def test_the_analyses_are_drawn_with_their_kind_of_call() -> None:
    text = drawn(analysis_table([ANALYSIS]))
    assert "stream" in text
    assert "4,321" in text


def test_the_json_file_holds_every_round(tmp_path: Path) -> None:
    now = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
    path = write_json(tmp_path / "bench", MEASURED, [ANALYSIS], seconds=5.0, now=now)
    assert path.name == "20300102-030405.json"
    document = json.loads(path.read_text())
    assert document["taken_at"] == "2030-01-02T03:04:05+00:00"
    assert document["machine"]["cores"] >= 1
    first = document["cases"][0]
    assert (first["workload"], first["callers"]) == ("identity", 64)
    assert first["server"] == "Tideserve, 1 replica"
    assert first["median"]["requests_per_s"] == 1000.0
    assert len(first["rounds"]) == 3
    assert document["perf_analyzer"][0]["answered"] == 4321
