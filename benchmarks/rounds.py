"""Interleaved rounds: every peer is started, measured and stopped once a round, in turns, so
that what the machine does in the meantime meets all of them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from statistics import median
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.h2load import Callers
from benchmarks.measure import Figures, measure, measure_capacity, measure_open
from benchmarks.peers.echo import GrpcioEcho
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


@dataclass(slots=True)
class Run:
    """Owns what is measured: figures of every case, one a round of about `seconds`, and what
    failed, after which the next server has its turn. `say` is told what comes next."""

    seconds: float
    say: Callable[[str], None]
    measured: Measured = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def closed(self, entries: Sequence[Entry], rounds: int) -> None:
        """Callers that send when they have got their answer; bare ONNX Runtime before them."""
        for number in range(1, rounds + 1):
            for entry in entries:
                where = f"round {number}/{rounds}, {entry.workload.model}"
                for processes in entry.ort_processes:
                    self.say(f"{where}: ONNX Runtime, {processes}")
                    with self._noted(f"ONNX Runtime, {processes}", entry.workload):
                        self._bare(entry.workload, processes)
                for peer, callers in entry.peers:
                    self.say(f"{where}: {peer.name}")
                    with self._noted(peer.name, entry.workload), _started(peer, entry.workload):
                        for group in callers:
                            case = _case(entry.workload, peer, callers=group.count)
                            figures = measure(peer, entry.workload, group, self.seconds, number)
                            self._keep(case, figures)

    def open(self, entries: Sequence[Entry], percents: Sequence[int], rounds: int) -> None:
        """Requests by the clock, at these percents of each server's capacity: what its best set-up
        so far does with the most callers, measured right before with the same generator."""
        for number in range(1, rounds + 1):
            for entry in entries:
                workload = entry.workload
                for peer, callers in best_setups(entry, self.measured):
                    self.say(f"open loop {number}/{rounds}, {workload.model}: {peer.name}")
                    most = max(callers, key=lambda group: group.count)
                    with self._noted(peer.name, workload), _started(peer, workload):
                        capacity = measure_capacity(peer, workload, most, self.seconds, number)
                        for percent in percents:
                            rate = capacity * percent / 100.0
                            figures = measure_open(peer, workload, rate, self.seconds, number)
                            self._keep(_case(workload, peer, open_percent=percent), figures)

    def _bare(self, workload: Workload, processes: int) -> None:
        for rows in workload.ort_rows:
            case = Case(workload.model, 0, ort_name(processes, rows), processes)
            self._keep(case, measure_ort(workload, rows, processes, self.seconds))

    @contextmanager
    def _noted(self, server: str, workload: Workload) -> Iterator[None]:
        """What fails within is kept and said, and ends no more than that."""
        try:
            yield
        except BenchmarkError as error:
            self.failures.append(f"{workload.model}, {server}: {error}")
            self.say(f"failed: {error}")

    def _keep(self, case: Case, figures: Figures) -> None:
        self.measured.setdefault(case, []).append(figures)


@contextmanager
def _started(peer: Peer, workload: Workload) -> Iterator[None]:
    peer.start(workload)
    try:
        yield
    finally:
        peer.stop()


def _case(workload: Workload, peer: Peer, callers: int = 0, open_percent: int = 0) -> Case:
    return Case(workload.model, callers, peer.name, peer.instances, open_percent)


def best_setups(entry: Entry, measured: Measured) -> list[tuple[Peer, Sequence[Callers]]]:
    """Of each kind of server the one with the highest rate with the most callers; where nothing
    is measured yet, the last of each kind. The echo is left out: it waits for nothing."""

    def rate(peer: Peer, callers: Sequence[Callers]) -> float:
        most = max(group.count for group in callers)
        rounds = measured.get(Case(entry.workload.model, most, peer.name, peer.instances))
        return medians(rounds).requests_per_s if rounds else 0.0

    best: dict[type[Peer], tuple[Peer, Sequence[Callers]]] = {}
    for peer, callers in entry.peers:
        known = best.get(type(peer))
        if (
            callers
            and not isinstance(peer, GrpcioEcho)
            and (known is None or rate(peer, callers) >= rate(*known))
        ):
            best[type(peer)] = (peer, callers)
    return list(best.values())


def ort_name(processes: int, rows: int) -> str:
    several = f"{processes} processes, " if processes > 1 else ""
    return f"ONNX Runtime, {several}batches of {rows}"


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of every figure by itself, None where a round has none; counts add up."""
    middle: Mapping[str, Any] = {
        each.name: _median([getattr(figures, each.name) for figures in rounds])
        for each in fields(Figures)
    }
    counts = {
        "requests": sum(figures.requests for figures in rounds),
        "checked": sum(figures.checked for figures in rounds),
    }
    return Figures(**{**middle, **counts})


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if len(known) == len(values) else None
