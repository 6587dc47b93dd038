"""What people and programs read of runs: a table, a JSON document, a picture, a page."""

import base64
import io
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import numpy as np

from tideserve.sim.book import in_time
from tideserve.sim.scenario import Run, Scenario

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS: Final = (
    "system",
    "model",
    "in time",
    "answered",
    "p50",
    "p99",
    "mean batch",
    "replica-seconds",
    "over optimum",
    "starts",
    "reversals/h",
    "most",
)


def row_of(run: Run) -> tuple[str, ...]:
    """One run, as the table has it."""
    figures = run.figures
    return (
        run.system,
        run.model,
        f"{figures.attainment:.2%}",
        f"{figures.answered:.2%}",
        _milliseconds(figures.p50_s),
        _milliseconds(figures.p99_s),
        f"{figures.mean_batch_rows:.1f}",
        f"{figures.replica_s:.0f}",
        "-" if run.over_optimum is None else f"{run.over_optimum:.2f}",
        str(figures.starts),
        f"{figures.reversals_per_hour:.0f}",
        str(figures.most_replicas),
    )


def table_of(runs: Sequence[Run]) -> "Table":
    """For a terminal."""
    from rich.table import Table

    table = Table(*COLUMNS, header_style="bold")
    for run in runs:
        table.add_row(*row_of(run))
    return table


def markdown_of(runs: Sequence[Run]) -> str:
    """For a page of documentation."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(row_of(run)) + " |" for run in runs]
    return "\n".join(lines) + "\n"


def document_of(scenarios: Sequence[Scenario], runs: Sequence[Run], seed: int) -> dict[str, Any]:
    """For programs. The same for the same seed; times that are not known are null."""
    return {
        "seed": seed,
        "duration_s": round(scenarios[0].duration_s, 6),
        "batching": scenarios[0].mode.value,
        "models": [
            {
                "model": one.name,
                "target_s": one.target_s,
                "rows_per_s_of_a_replica": round(one.rows_per_s, 6),
            }
            for one in scenarios
        ],
        "systems": [
            {
                "system": run.system,
                "model": run.model,
                "over_optimum": None if run.over_optimum is None else round(run.over_optimum, 6),
                **{name: _finite(value) for name, value in asdict(run.figures).items()},
            }
            for run in runs
        ],
    }


def picture(scenario: Scenario, runs: Sequence[Run], note: str) -> bytes:
    """A PNG: load, replicas of each system, late requests of each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    load, counts, late = figure.subplots(3, 1, sharex=True, height_ratios=(2, 3, 2))
    bin_s = max(1.0, scenario.duration_s / 300.0)
    edges = np.arange(0.0, scenario.duration_s + bin_s, bin_s)
    arrived, _ = np.histogram(scenario.arrived_s, bins=edges)
    load.plot(edges[:-1], arrived / bin_s, color="0.3", lw=1)
    load.set_ylabel("requests/s")
    load.set_title(note, fontsize=9)
    for run in runs:
        times_s = [at_s for at_s, _, _ in run.book.counts]
        counts.plot(times_s, [ready for _, ready, _ in run.book.counts], lw=1.2, label=run.system)
        missed = ~in_time(run.book, scenario.target_s)
        too_late, _ = np.histogram(scenario.arrived_s[missed], bins=edges)
        late.plot(edges[:-1], too_late / bin_s, lw=1, label=run.system)
    asked, _ = np.histogram(scenario.arrived_s, bins=edges, weights=scenario.request_work)
    needed = asked / bin_s / scenario.rows_per_s
    counts.plot(edges[:-1], needed, color="0.7", lw=1, label="load over capacity")
    counts.set_ylabel("replicas READY")
    counts.legend(loc="upper left", fontsize=8, ncols=4)
    late.set_ylabel("late or lost/s")
    late.set_xlabel("seconds")
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100)
    return out.getvalue()


def page(runs: Sequence[Run], pictures: Sequence[tuple[str, bytes]]) -> str:
    """One HTML file with everything in it. `pictures`: each with its note."""
    head = "".join(f"<th>{escape(name)}</th>" for name in COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row_of(run)) + "</tr>"
        for run in runs
    )
    shown = "".join(
        f'<p>{escape(note)}</p><p><img alt="load, replicas and late requests over time" '
        f'src="data:image/png;base64,{base64.b64encode(image).decode()}"></p>'
        for note, image in pictures
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Simulation</title>'
        "<style>body{font-family:sans-serif;margin:2rem}table{border-collapse:collapse}"
        "td,th{padding:.3rem .7rem;border-bottom:1px solid #ccc;text-align:right}"
        "td:first-child,th:first-child{text-align:left}img{max-width:100%}</style>"
        f"<h1>Simulation</h1><table><tr>{head}</tr>{body}</table>{shown}</html>\n"
    )


def write_report(
    folder: Path, scenarios: Sequence[Scenario], runs: Sequence[Run], seed: int
) -> None:
    """simulation.html, and simulation.png or, of several models, simulation-MODEL.png of each."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, bytes]] = []
    for scenario in scenarios:
        note = note_of(scenario, seed)
        own = [run for run in runs if run.model == scenario.name]
        image = picture(scenario, own, note)
        # A name may have characters that a file's may not.
        suffix = f"-{quote(scenario.name, safe='')}" if len(scenarios) > 1 else ""
        (folder / f"simulation{suffix}.png").write_bytes(image)
        pictures.append((note, image))
    (folder / "simulation.html").write_text(page(runs, pictures), encoding="utf-8")


def note_of(scenario: Scenario, seed: int) -> str:
    """What was simulated, in a line."""
    return (
        f"{scenario.name}: {len(scenario.arrived_s)} arrivals in {scenario.duration_s:.0f} s, target "
        f"{scenario.target_s * 1e3:g} ms, {scenario.rows_per_s:.4g} rows/s a replica, start-up "
        f"{scenario.hardware.start_s.median_s:g} s, mode {scenario.mode.value}, seed {seed}"
    )


def _milliseconds(seconds: float) -> str:
    if not isfinite(seconds):
        return "-"
    return f"{seconds * 1e3:.1f} ms" if seconds < 1.0 else f"{seconds:.2f} s"


def _finite(value: float) -> float | None:
    if isinstance(value, int):
        return value
    return round(value, 6) if isfinite(value) else None
