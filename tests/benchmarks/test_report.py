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
from benchmarks.picture import draw, wanted
from benchmarks.report import (
    analysis_table,
    document,
    load_name,
    load_table,
    markdown,
    measured_in_order,
    ratios,
    share_of_limit,
    write,
)
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
ANALYSIS = Analysis("Tideserve, 1 replica", "identity", 16, True, 1234.0, 1.5, 2.5, answered=4321)


NOW = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
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
    assert "Tideserve, 1 replica" in text
    assert "stream" in text
    assert "4,321" in text


def test_the_markdown_has_the_analyses_too(tmp_path: Path) -> None:
    about = document(MEASURED, [ANALYSIS], seconds=5.0, now=NOW)
    path = write(tmp_path, MEASURED, about, NOW, [ANALYSIS])
    text = path.with_suffix(".md").read_text()
    line = "| identity | Tideserve, 1 replica | 16 | stream | 1,234 | 1.500 | 2.500 | 4,321 |"
    assert line in text.splitlines()
    assert "| model | server |" not in markdown(MEASURED, about)


def test_the_json_file_holds_every_round(tmp_path: Path) -> None:
    about = document(MEASURED, [ANALYSIS], seconds=5.0, now=NOW)
    path = write(tmp_path / "bench", MEASURED, about, NOW)
    assert path.name == "20300102-030405.json"
    read = json.loads(path.read_text())
    assert read["taken_at"] == "2030-01-02T03:04:05+00:00"
    assert read["machine"]["cores"] >= 1
    first = read["cases"][0]
    assert (first["workload"], first["load"]) == ("identity", "64 callers")
    assert (first["request_bytes"], first["max_batch_size"]) == (64, 64)
    assert first["server"] == "Tideserve, 1 replica"
    assert first["median"]["requests_per_s"] == 1000.0
    assert len(first["rounds"]) == 3
    assert read["perf_analyzer"][0]["answered"] == 4321


def test_the_markdown_has_the_cells_of_the_table_and_what_they_were_taken_with() -> None:
    text = markdown(COMPUTED, document(COMPUTED, [], seconds=5.0, now=NOW))
    assert "- convolutional: 110,592 bytes a request, max_batch_size 8" in text
    assert "rounds of about 5 s" in text
    row = next(line for line in text.splitlines() if "Tideserve, 2 replicas" in line)
    assert row.startswith("| convolutional | 64 callers | Tideserve, 2 replicas | 720 |")
    assert row.endswith("| 0.90 |")


def test_open_loops_come_after_callers_and_have_no_ratio() -> None:
    half = Case("identity", 0, "Triton, 1 instance, 0 us delay", open_percent=50)
    measured = {half: [figures(250.0)], **MEASURED}
    assert ratios(measured, half) == (None, None)
    names = [load_name(case) for case, _ in measured_in_order(measured)]
    assert names == ["64 callers", "64 callers", "64 callers", "1 caller", "open 50%", "bare"]


def test_a_picture_is_drawn_of_the_most_callers_and_the_limit(tmp_path: Path) -> None:
    about = document(COMPUTED, [], seconds=5.0, now=NOW)
    shown = [case["server"] for case in wanted(about, "convolutional", 64)]
    assert shown == [
        "Tideserve, 2 replicas",
        "Tideserve, 1 replica",
        "ONNX Runtime, batches of 8",
    ]
    assert draw(about, tmp_path / "out.png")
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert not draw({**about, "cases": []}, tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
