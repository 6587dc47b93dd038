"""The demo's picture: load, replicas, queue p95 against its target, decisions with reasons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl

mpl.use("Agg")

import itertools

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from examples.demo.recording import Moment
from examples.demo.scenario import Phase, starts

_LOAD, _READY, _STARTING, _TARGET = "#495057", "#0b7285", "#ffa94d", "#c92a2a"
_REASONS: Final = 8


def draw(
    moments: Sequence[Moment], phases: tuple[Phase, ...], target_s: float, note: str, out: Path
) -> None:
    """Writes a PNG."""
    at_s = [m.at_s for m in moments]
    figure, (load, replicas, queue) = plt.subplots(
        3, 1, figsize=(10, 7.5), sharex=True, height_ratios=(2, 3, 2)
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
    _annotate(replicas, moments)
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
    figure.text(0.01, 0.005, note, fontsize=8, color="#495057")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    plt.close(figure)


def _annotate(axis: Axes, moments: Sequence[Moment]) -> None:
    """The reasons of the largest changes of desired, where they were made."""
    changes = [
        (abs(new.desired - old.desired), new)
        for old, new in itertools.pairwise(moments)
        if new.desired != old.desired
    ]
    largest = sorted(changes, key=lambda change: -change[0])[:_REASONS]
    top = max((m.desired for m in moments), default=1)
    for number, (_, moment) in enumerate(sorted(largest, key=lambda change: change[1].at_s)):
        text = moment.reason if len(moment.reason) < 60 else f"{moment.reason[:57]}..."
        axis.annotate(
            f"{moment.desired}: {text}",
            (moment.at_s, moment.desired),
            xytext=(moment.at_s + 0.4, top * (1.05 + 0.11 * (number % 4))),
            fontsize=6.5,
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "#868e96"},
        )
