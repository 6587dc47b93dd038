"""The figures for people (a table) and for programs (a JSON file)."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from rich.table import Table

from benchmarks.measure import Figures
from benchmarks.perf_analyzer import Analysis
from benchmarks.rounds import Case, Measured, medians
from benchmarks.workloads import WORKLOADS

REFERENCE: Final = "Triton"


HEADINGS: Final = (
    "workload",
    "callers",
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


def load_table(measured: Measured) -> Table:
    """Medians by workload and callers, beside the best Triton of the same group."""
    table = Table(title="Medians of rounds; CPU and memory are of all the server's processes")
    for column, heading in enumerate(HEADINGS):
        table.add_column(
            heading,
            justify="left" if column < _LEFT_COLUMNS else "right",
            no_wrap=column < _LEFT_COLUMNS,
        )
    group: tuple[str, int] | None = None
    for case, _ in measured_in_order(measured):
        if group is not None and group != (case.workload, case.callers):
            table.add_section()
        group = (case.workload, case.callers)
        table.add_row(*_cells(measured, case))
    return table


def _cells(measured: Measured, case: Case) -> tuple[str, ...]:
    figures = medians(measured[case])
    rate_ratio, cpu_ratio = ratios(measured, case)
    return (
        case.workload,
        str(case.callers or "-"),
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


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def measured_in_order(measured: Measured) -> list[tuple[Case, list[Figures]]]:
    """By workload, most callers first, bare ONNX Runtime (no callers) last."""
    return sorted(measured.items(), key=lambda item: (item[0].workload, -item[0].callers))


def ratios(measured: Measured, case: Case) -> tuple[float | None, float | None]:
    """Rate and CPU a request over those of the Triton with the highest rate in the same group;
    None where there is none. Both are of the same Triton: one set-up, not the best of two."""
    peers = [
        medians(rounds)
        for other, rounds in measured.items()
        if (other.workload, other.callers) == (case.workload, case.callers)
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
        if (other.workload, other.callers, other.instances) == (case.workload, 0, case.instances)
    ]
    return medians(measured[case]).requests_per_s / max(limits) if limits else None


def analysis_table(analyses: Sequence[Analysis]) -> Table:
    table = Table(title="perf_analyzer, unmodified: 0 errors (its rates are not compared)")
    for heading in ("model", "concurrency", "calls"):
        table.add_column(heading)
    for heading in ("requests/s", "p50 ms", "p99 ms", "answered"):
        table.add_column(heading, justify="right")
    for analysis in analyses:
        table.add_row(
            analysis.model,
            str(analysis.concurrency),
            _calls(analysis),
            f"{analysis.requests_per_s:,.0f}",
            f"{analysis.p50_ms:.3f}",
            f"{analysis.p99_ms:.3f}",
            f"{analysis.answered:,}",
        )
    return table


def _calls(analysis: Analysis) -> str:
    calls = "stream" if analysis.streaming else "unary"
    return f"{calls}, shared memory" if analysis.shared_memory else calls


def write_json(
    folder: Path, measured: Measured, analyses: Sequence[Analysis], seconds: float, now: datetime
) -> Path:
    """Writes every round and the medians to FOLDER/<UTC time>.json and returns its path."""
    cases = [
        {
            "workload": case.workload,
            "callers": case.callers,
            "server": case.peer,
            "instances": case.instances,
            "share_of_limit": share_of_limit(measured, case),
            "median": asdict(medians(rounds)),
            "rounds": [asdict(figures) for figures in rounds],
        }
        for case, rounds in measured_in_order(measured)
    ]
    document = {
        "taken_at": now.astimezone(UTC).isoformat(timespec="seconds"),
        "seconds_a_run": seconds,
        "machine": _machine(),
        "cases": cases,
        "perf_analyzer": [asdict(analysis) for analysis in analyses],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now.astimezone(UTC):%Y%m%d-%H%M%S}.json"
    path.write_text(json.dumps(document, indent=2) + "\n")
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
