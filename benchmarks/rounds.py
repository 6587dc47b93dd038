"""Interleaved rounds: every peer is started, measured and stopped once a round, in turns, so
that what the machine does in the meantime meets all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

from benchmarks.h2load import Callers
from benchmarks.measure import Figures, measure
from benchmarks.peers.ort_processes import measure_ort
from benchmarks.peers.peer import Peer
from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One line of the table. `callers` is 0 where nothing calls (bare ONNX Runtime).
    `instances` are the processes that compute."""

    workload: str
    callers: int
    peer: str
    instances: int = 1


@dataclass(frozen=True, slots=True)
class Entry:
    """What is measured of one workload: each peer with its groups of callers, and bare ONNX
    Runtime in each of so many processes."""

    workload: Workload
    peers: Sequence[tuple[Peer, Sequence[Callers]]]
    ort_processes: Sequence[int]


Measured = dict[Case, list[Figures]]


def run_rounds(
    entries: Sequence[Entry],
    rounds: int,
    seconds: float,
    measured: Measured,
    say: Callable[[str], None],
) -> None:
    """Adds to `measured` the figures of every case, one a round, so that those taken before a
    failure are kept. `say` is told what is measured next."""

    def keep(case: Case, figures: Figures) -> None:
        measured.setdefault(case, []).append(figures)

    for number in range(1, rounds + 1):
        for entry in entries:
            workload = entry.workload
            where = f"round {number}/{rounds}, {workload.model}"
            for processes in entry.ort_processes:
                say(f"{where}: ONNX Runtime, {processes}")
                for rows in workload.ort_rows:
                    case = Case(workload.model, 0, ort_name(processes, rows), processes)
                    keep(case, measure_ort(workload, rows, processes, seconds))
            for peer, callers in entry.peers:
                say(f"{where}: {peer.name}")
                peer.start(workload)
                try:
                    for group in callers:
                        case = Case(workload.model, group.count, peer.name, peer.instances)
                        keep(case, measure(peer, workload, group, seconds, seed=number))
                finally:
                    peer.stop()


def ort_name(processes: int, rows: int) -> str:
    several = f"{processes} processes, " if processes > 1 else ""
    return f"ONNX Runtime, {several}batches of {rows}"


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of every figure by itself, None where a round has none; counts add up."""
    middle: Mapping[str, Any] = {
        field.name: _median([getattr(figures, field.name) for figures in rounds])
        for field in fields(Figures)
    }
    counts = {
        "requests": sum(figures.requests for figures in rounds),
        "checked": sum(figures.checked for figures in rounds),
    }
    return Figures(**{**middle, **counts})


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if len(known) == len(values) else None
