"""Interleaved rounds: every peer is started, measured and stopped once a round, in turns, so
that what the machine does in the meantime meets all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any

from benchmarks.h2load import Callers
from benchmarks.measure import Figures, measure, measure_capacity, measure_open
from benchmarks.peers.ort_processes import measure_ort
from benchmarks.peers.peer import Peer
from benchmarks.workloads import Workload


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One line of the table. `callers` is 0 where nothing calls (bare ONNX Runtime) and where
    requests come by the clock: at `open_percent` of the server's capacity. `instances` are the
    processes that compute."""

    workload: str
    callers: int
    peer: str
    instances: int = 1
    open_percent: int = 0

    @property
    def is_bare(self) -> bool:
        return self.callers == self.open_percent == 0


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


def run_open(
    entries: Sequence[Entry],
    percents: Sequence[int],
    rounds: int,
    seconds: float,
    measured: Measured,
    say: Callable[[str], None],
) -> None:
    """Adds the figures of open loops at these percents of each server's capacity: what its
    best set-up so far does with the most callers, measured right before with the generator of the
    open loop."""
    for number in range(1, rounds + 1):
        for entry in entries:
            workload = entry.workload
            for peer, callers in best_setups(entry, measured):
                say(f"round {number}/{rounds}, {workload.model}, open loop: {peer.name}")
                peer.start(workload)
                try:
                    most = max(callers, key=lambda group: group.count)
                    capacity = measure_capacity(peer, workload, most, seconds, seed=number)
                    for percent in percents:
                        case = Case(workload.model, 0, peer.name, peer.instances, percent)
                        rate = capacity * percent / 100.0
                        figures = measure_open(peer, workload, rate, seconds, seed=number)
                        measured.setdefault(case, []).append(figures)
                finally:
                    peer.stop()


def best_setups(entry: Entry, measured: Measured) -> list[tuple[Peer, Sequence[Callers]]]:
    """Of each kind of server the one with the highest rate with the most callers; where nothing
    is measured yet, the last of each kind."""

    def rate(peer: Peer, callers: Sequence[Callers]) -> float:
        most = max(group.count for group in callers)
        rounds = measured.get(Case(entry.workload.model, most, peer.name, peer.instances))
        return medians(rounds).requests_per_s if rounds else 0.0

    best: dict[type[Peer], tuple[Peer, Sequence[Callers]]] = {}
    for peer, callers in entry.peers:
        known = best.get(type(peer))
        if callers and (known is None or rate(peer, callers) >= rate(*known)):
            best[type(peer)] = (peer, callers)
    return list(best.values())


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
