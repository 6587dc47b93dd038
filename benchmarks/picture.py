"""`python -m benchmarks.picture [RUN.json] [OUT.png]`: the README's picture of a run."""

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt

ROOT = Path(__file__).resolve().parents[1]
COLORS = {"Tideserve": "#0b7285", "Triton": "#868e96", "bare": "#ced4da"}


def draw(document: dict[str, Any], out: Path) -> None:
    """Rates and CPU a request with 64 callers, one row a model."""
    groups = [
        (name, [case for case in document["cases"] if wanted(case, name)])
        for name in ("identity", "digits_onnx")
    ]
    groups = [(name, cases) for name, cases in groups if cases]
    figure, axes = plt.subplots(
        len(groups), 2, figsize=(11, 2.2 + 1.7 * len(groups)), squeeze=False
    )
    for row, (name, cases) in zip(axes, groups, strict=True):
        labels = [case["server"] for case in cases]
        colors = [color(label) for label in labels]
        for axis, key, title in (
            (row[0], "requests_per_s", "requests/s, more is better"),
            (row[1], "cpu_us", "CPU us a request, less is better"),
        ):
            values = [case["median"][key] for case in cases]
            bars = axis.barh(labels, values, color=colors)
            axis.bar_label(bars, fmt="{:,.0f}", padding=3)
            axis.set_title(f"{name}, 64 callers: {title}", fontsize=9)
            axis.invert_yaxis()
            axis.margins(x=0.18)
            axis.spines[["top", "right"]].set_visible(False)
        row[1].set_yticklabels([])
    machine = document["machine"]
    figure.text(
        0.01,
        0.01,
        f"make bench, {document['taken_at'][:10]}, {machine['cores']} shared cores, medians; "
        "every answer checked",
        fontsize=8,
        color="#495057",
    )
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)


def wanted(case: dict[str, Any], workload: str) -> bool:
    """Calls over the network with many callers."""
    return bool(case["workload"] == workload and case["callers"] == 64)


def color(label: str) -> str:
    """By server, so that set-ups of one look alike."""
    return next((value for name, value in COLORS.items() if label.startswith(name)), "#ced4da")


if __name__ == "__main__":
    given = sys.argv[1:]
    runs = sorted((ROOT / ".cache" / "bench").glob("*.json"))
    source = Path(given[0]) if given else runs[-1]
    target = Path(given[1]) if given[1:] else ROOT / "docs" / "pictures" / "benchmark.png"
    draw(json.loads(source.read_text()), target)
