"""The figures for people (a table, Markdown) and for programs (a JSON file)."""

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from benchmarks.measure import Figures
from benchmarks.perf_analyzer import Analysis
from benchmarks.rounds import Case, Measured, medians
from benchmarks.workloads import WORKLOADS

REFERENCE: Final = "Triton"


HEADINGS: Final = (
    "workload",
    "load",
    "server",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "CPU us",
    "PSS MB",
    "rate / Triton",
    "CPU / Triton",
    "of the limit",
)
_LEFT_COLUMNS: Final = 3
_ANALYSIS_TITLE: Final = "perf_analyzer, unmodified: 0 errors (its rates are compared where tensors lie in shared memory)"
_ANALYSIS_HEADINGS: Final = (
    "model",
    "server",
    "concurrency",
    "calls",
    "requests/s",
    "p50 ms",
    "p99 ms",
    "answered",
)
_ANALYSIS_LEFT_COLUMNS: Final = 4


def load_table(measured: Measured) -> Table:
    """Medians by workload and callers, beside the best Triton of the same group."""
    table = Table(title="Medians of rounds; CPU and memory are of all the server's processes")
    for column, heading in enumerate(HEADINGS):
        table.add_column(
            heading,
            justify="left" if column < _LEFT_COLUMNS else "right",
            no_wrap=column < _LEFT_COLUMNS,
        )
    group: tuple[str, str] | None = None
    for case, _ in measured_in_order(measured):
        if group is not None and group != (case.workload, load_name(case)):
            table.add_section()
        group = (case.workload, load_name(case))
        table.add_row(*_cells(measured, case))
    return table


def _cells(measured: Measured, case: Case) -> tuple[str, ...]:
    figures = medians(measured[case])
    rate_ratio, cpu_ratio = ratios(measured, case)
    return (
        case.workload,
        load_name(case),
        case.peer,
        f"{figures.requests_per_s:,.0f}",
        f"{figures.p50_ms:.3f}",
        f"{figures.p99_ms:.3f}",
        _or_dash(figures.p999_ms, ".3f"),
        f"{figures.cpu_us:.1f}",
        f"{figures.pss_mb:.0f}",
        _or_dash(rate_ratio, ".2f"),
        _or_dash(cpu_ratio, ".2f"),
        _or_dash(share_of_limit(measured, case), ".2f"),
    )


def load_name(case: Case) -> str:
    """What calls: so many callers, so much of the capacity in an open loop, or a bare loop."""
    if case.is_bare:
        return "bare"
    if case.open_percent:
        return f"open {case.open_percent}%"
    return f"{case.callers} {'caller' if case.callers == 1 else 'callers'}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def measured_in_order(measured: Measured) -> list[tuple[Case, list[Figures]]]:
    """By workload, most callers first, then open loops, bare ONNX Runtime last."""

    def place(item: tuple[Case, list[Figures]]) -> tuple[str, bool, int, int]:
        case = item[0]
        return case.workload, case.is_bare, case.open_percent, -case.callers

    return sorted(measured.items(), key=place)


def ratios(measured: Measured, case: Case) -> tuple[float | None, float | None]:
    """Rate and CPU a request over those of the Triton with the highest rate in the same group;
    None where there is none, and in open loops, whose rates are each server's own. Both are of the
    same Triton: one set-up, not the best of two."""
    if case.open_percent:
        return None, None
    peers = [
        medians(rounds)
        for other, rounds in measured.items()
        if (other.workload, load_name(other)) == (case.workload, load_name(case))
        and other.peer.startswith(REFERENCE)
    ]
    if not peers:
        return None, None
    best = max(peers, key=lambda figures: figures.requests_per_s)
    figures = medians(measured[case])
    return figures.requests_per_s / best.requests_per_s, figures.cpu_us / best.cpu_us


def share_of_limit(measured: Measured, case: Case) -> float | None:
    """Rate over the highest of as many bare ONNX Runtime processes as the server has instances;
    None where they were not measured or the model costs next to nothing."""
    if not WORKLOADS[case.workload].computes:
        return None
    limits = [
        medians(rounds).requests_per_s
        for other, rounds in measured.items()
        if other.is_bare and (other.workload, other.instances) == (case.workload, case.instances)
    ]
    return medians(measured[case]).requests_per_s / max(limits) if limits else None


def analysis_table(analyses: Sequence[Analysis]) -> Table:
    table = Table(title=_ANALYSIS_TITLE)
    for column, heading in enumerate(_ANALYSIS_HEADINGS):
        table.add_column(heading, justify="left" if column < _ANALYSIS_LEFT_COLUMNS else "right")
    for analysis in analyses:
        table.add_row(*_analysis_cells(analysis))
    return table


def _analysis_cells(analysis: Analysis) -> tuple[str, ...]:
    return (
        analysis.model,
        analysis.server,
        str(analysis.concurrency),
        _calls(analysis),
        f"{analysis.requests_per_s:,.0f}",
        f"{analysis.p50_ms:.3f}",
        f"{analysis.p99_ms:.3f}",
        f"{analysis.answered:,}",
    )


def _calls(analysis: Analysis) -> str:
    calls = "stream" if analysis.streaming else "unary"
    return f"{calls}, shared memory" if analysis.shared_memory else calls


def document(
    measured: Measured, analyses: Sequence[Analysis], seconds: float, now: datetime
) -> dict[str, Any]:
    """Every round and the medians, as they are written to JSON."""
    cases = [
        {
            "workload": case.workload,
            "load": load_name(case),
            "callers": case.callers,
            "open_percent": case.open_percent,
            "server": case.peer,
            "instances": case.instances,
            "max_batch_size": WORKLOADS[case.workload].max_batch_rows,
            "request_bytes": WORKLOADS[case.workload].input_bytes,
            "share_of_limit": share_of_limit(measured, case),
            "median": asdict(medians(rounds)),
            "rounds": [asdict(figures) for figures in rounds],
        }
        for case, rounds in measured_in_order(measured)
    ]
    return {
        "taken_at": now.astimezone(UTC).isoformat(timespec="seconds"),
        "seconds_a_run": seconds,
        "machine": _machine(),
        "cases": cases,
        "perf_analyzer": [asdict(analysis) for analysis in analyses],
    }


def markdown(
    measured: Measured, about: Mapping[str, Any], analyses: Sequence[Analysis] = ()
) -> str:
    """The tables of `load_table` and `analysis_table` with what they were taken with, `about` being
    `document`'s."""
    rows = [_cells(measured, case) for case, _ in measured_in_order(measured)]
    machine = ", ".join(f"{name} {value}" for name, value in about["machine"].items())
    taken = (
        f"Taken {about['taken_at']}; medians of up to {_most_rounds(measured)} rounds of about"
        f" {about['seconds_a_run']:g} s. Machine: {machine}."
    )
    models = [WORKLOADS[name] for name in dict.fromkeys(case.workload for case in measured)]
    return "\n".join(
        [
            "# Benchmark",
            "",
            taken,
            "",
            *(
                f"- {model.model}: {model.input_bytes:,} bytes a request,"
                f" max_batch_size {model.max_batch_rows}"
                for model in models
            ),
            "",
            _line(HEADINGS),
            _line(["---"] * _LEFT_COLUMNS + ["---:"] * (len(HEADINGS) - _LEFT_COLUMNS)),
            *map(_line, rows),
            "",
            *(_analysis_lines(analyses) if analyses else []),
        ]
    )


def _analysis_lines(analyses: Sequence[Analysis]) -> list[str]:
    rules = ["---"] * _ANALYSIS_LEFT_COLUMNS
    rules += ["---:"] * (len(_ANALYSIS_HEADINGS) - _ANALYSIS_LEFT_COLUMNS)
    rows = [_line(_analysis_cells(analysis)) for analysis in analyses]
    return [f"{_ANALYSIS_TITLE}:", "", _line(_ANALYSIS_HEADINGS), _line(rules), *rows, ""]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _most_rounds(measured: Measured) -> int:
    return max(map(len, measured.values()), default=0)


def write(
    folder: Path,
    measured: Measured,
    about: Mapping[str, Any],
    now: datetime,
    analyses: Sequence[Analysis] = (),
) -> Path:
    """Writes `about` to FOLDER/<UTC time>.json, beside it the Markdown; returns the former."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now.astimezone(UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(about, indent=2) + "\n")
    path.with_suffix(".md").write_text(markdown(measured, about, analyses))
    return path


def _machine() -> dict[str, object]:
    return {
        "cores": os.cpu_count(),
        "processor": _processor(),
        "load_1_minute": os.getloadavg()[0],
        "python": platform.python_version(),
        "tideserve": version("tideserve"),
        "grpcio": version("grpcio"),
        "onnxruntime": version("onnxruntime"),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
