"""The demo's picture: load, replicas, queue p95 against its target, decisions with reasons."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("Agg")


from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from examples.demo.recording import Moment
from examples.demo.scenario import Phase, starts

_LOAD, _READY, _STARTING, _TARGET = "#495057", "#0b7285", "#ffa94d", "#c92a2a"
_REASONS: Final = 12


def draw(
    moments: Sequence[Moment], phases: tuple[Phase, ...], target_s: float, note: str, out: Path
) -> None:
    """Writes a PNG."""
    at_s = [m.at_s for m in moments]
    changes = _changes(moments)
    figure, (load, replicas, queue) = plt.subplots(
        3, 1, figsize=(10, 7.5 + 0.17 * len(changes)), sharex=True, height_ratios=(2, 3, 2)
    )
    load.plot(at_s, [m.rate for m in moments], color=_LOAD)
    load.set_ylabel("requests/s")
    for begin_s, phase in starts(phases):
        load.axvline(begin_s, color="#dee2e6", zorder=0)
        load.annotate(
            phase.name,
            (begin_s, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(3, -10),
            textcoords="offset points",
            fontsize=8,
        )
    ready = [m.ready for m in moments]
    both = [m.ready + m.starting for m in moments]
    replicas.fill_between(at_s, ready, step="post", color=_READY, alpha=0.8, label="ready")
    replicas.fill_between(
        at_s, ready, both, step="post", color=_STARTING, alpha=0.9, label="starting"
    )
    replicas.step(at_s, [m.desired for m in moments], where="post", color="black", label="desired")
    replicas.set_ylabel("replicas")
    replicas.legend(loc="upper right", fontsize=8, frameon=False)
    _number(replicas, changes)
    waits = [(m.at_s, m.queue_p95_s * 1e3) for m in moments if m.queue_p95_s is not None]
    queue.plot([at for at, _ in waits], [wait for _, wait in waits], ".", ms=3, color=_READY)
    queue.axhline(target_s * 1e3, color=_TARGET, lw=1, label=f"target {target_s * 1e3:.0f} ms")
    queue.set_yscale("symlog", linthresh=10)
    queue.set_ylabel("queue wait p95, ms")
    queue.set_xlabel("seconds")
    queue.legend(loc="upper right", fontsize=8, frameon=False)
    for axis in (load, replicas, queue):
        axis.spines[["top", "right"]].set_visible(False)
        axis.margins(x=0.01)
        axis.set_ylim(bottom=0)
    lines = [
        f"{number}  {moment.at_s:4.1f} s: desired {moment.desired}: {moment.reason}"
        for number, moment in enumerate(changes, start=1)
    ]
    figure.text(0.02, 0.005, "\n".join([*lines, "", note]), fontsize=7.5, color="#495057")
    below = (0.17 * (len(lines) + 2)) / (7.5 + 0.17 * len(changes))
    figure.tight_layout(rect=(0, below, 1, 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _changes(moments: Sequence[Moment]) -> list[Moment]:
    """Where desired became another, the largest changes only."""
    found = [
        (abs(new.desired - old.desired), new)
        for old, new in pairwise(moments)
        if new.desired != old.desired
    ]
    largest = sorted(found, key=lambda change: -change[0])[:_REASONS]
    return sorted((moment for _, moment in largest), key=lambda moment: moment.at_s)


def _number(axis: Axes, changes: Sequence[Moment]) -> None:
    for number, moment in enumerate(changes, start=1):
        axis.annotate(
            str(number),
            (moment.at_s, moment.desired),
            xytext=(0, 5),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color="#c92a2a",
        )
