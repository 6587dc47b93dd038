"""`python -m benchmarks.picture [RUN.json] [OUT.png]`: the picture of a run."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
COLORS = {
    "Tideserve": "#0b7285",
    "Triton": "#868e96",
    "mosec": "#e8a33d",
    "ONNX Runtime": "#495057",
}
_OTHER_COLOR: Final = "#ced4da"
# Of what nothing calls there is a rate and no more.
_MEASURES: Final = (
    ("requests_per_s", "requests/s, more is better"),
    ("p99_ms", "p99 ms, less is better"),
    ("cpu_us", "CPU us a request, less is better"),
    ("pss_mb", "memory (PSS) MB, less is better"),
)


def draw(document: Mapping[str, Any], out: Path) -> bool:
    """Draws one row a model, of the run with the most callers. False where there is none."""
    called = [case for case in document["cases"] if case["callers"] > 0]
    if not called:
        return False
    callers = max(case["callers"] for case in called)
    names = dict.fromkeys(case["workload"] for case in called)
    groups = {name: wanted(document, name, callers) for name in names}
    heights = [0.6 + 0.3 * len(cases) for cases in groups.values()]
    figure, axes = plt.subplots(
        len(groups),
        len(_MEASURES),
        figsize=(5 * len(_MEASURES), 0.6 + sum(heights)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )
    for row, (name, cases) in zip(axes, groups.items(), strict=True):
        servers = [case["server"] for case in cases]
        colors = [color(server) for server in servers]
        for axis, (key, title) in zip(row, _MEASURES, strict=True):
            bars = axis.barh(servers, [case["median"][key] for case in cases], color=colors)
            axis.bar_label(bars, fmt=label, padding=3, fontsize=8)
            axis.set_title(f"{name}, {callers} callers: {title}", fontsize=9)
            axis.invert_yaxis()
            axis.margins(x=0.18)
            axis.spines[["top", "right"]].set_visible(False)
        for axis in row[1:]:
            axis.set_yticklabels([])
    machine = document["machine"]
    figure.text(
        0.01,
        0.005,
        f"make bench, {document['taken_at'][:10]}, {machine['cores']} shared cores, medians of runs"
        f" of {document['seconds_a_run']:g} s; every answer checked",
        fontsize=8,
        color="#495057",
    )
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)
    return True


def wanted(document: Mapping[str, Any], workload: str, callers: int) -> list[dict[str, Any]]:
    """The servers with so many callers; below them the limit, where the model computes."""
    cases = [case for case in document["cases"] if case["workload"] == workload]
    limits = [
        case for case in cases if case["share_of_limit"] is not None and case["load"] == "bare"
    ]
    best = max(limits, key=lambda case: float(case["median"]["requests_per_s"]), default=None)
    return [case for case in cases if case["callers"] == callers] + ([best] if best else [])


def label(value: float) -> str:
    """Three digits and no more."""
    return f"{value:,.0f}" if value >= 100.0 else f"{value:.3g}"


def color(server: str) -> str:
    """By server, so that set-ups of one look alike."""
    return next((value for name, value in COLORS.items() if server.startswith(name)), _OTHER_COLOR)


if __name__ == "__main__":
    given = sys.argv[1:]
    runs = sorted((ROOT / ".cache" / "bench").glob("*.json"))
    source = Path(given[0]) if given else runs[-1]
    target = Path(given[1]) if given[1:] else ROOT / "docs" / "pictures" / "benchmark.png"
    if not draw(json.loads(source.read_text()), target):
        sys.exit(f"{source} has no run with callers")
