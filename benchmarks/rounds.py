"""Interleaved rounds: every peer is started, measured and stopped once a round, in turns, so
that what the machine does in the meantime meets all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from statistics import median

from benchmarks.h2load import Callers
from benchmarks.measure import Figures, measure
from benchmarks.peers.ort_loop import measure_ort
from benchmarks.peers.peer import Peer
from benchmarks.workloads import Workload

# Batches of bare ONNX Runtime: a single row, and max_batch_size of the examples.
ORT_ROWS = (1, 64)


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """One line of the table. `callers` is 0 where nothing calls (bare ONNX Runtime)."""

    workload: str
    callers: int
    peer: str


Measured = dict[Case, list[Figures]]


def run_rounds(
    peers: Sequence[Peer],
    workloads: Sequence[Workload],
    callers: Sequence[Callers],
    rounds: int,
    seconds: float,
    with_ort: bool,
    measured: Measured,
    say: Callable[[str], None],
) -> None:
    """Adds to `measured` the figures of every case, one a round, so that those taken before a
    failure are kept. `say` is told what is measured next."""
    for round_number in range(1, rounds + 1):
        if with_ort:
            say(f"round {round_number}/{rounds}: ONNX Runtime")
            for workload in workloads:
                for rows in ORT_ROWS:
                    case = Case(workload.model, 0, f"ONNX Runtime, batches of {rows}")
                    measured.setdefault(case, []).append(measure_ort(workload.model, rows, seconds))
        for peer in peers:
            say(f"round {round_number}/{rounds}: {peer.name}")
            peer.start()
            try:
                for workload in workloads:
                    for group in callers:
                        case = Case(workload.model, group.count, peer.name)
                        figures = measure(peer, workload, group, seconds, seed=round_number)
                        measured.setdefault(case, []).append(figures)
            finally:
                peer.stop()


def medians(rounds: Sequence[Figures]) -> Figures:
    """The median of every figure by itself; counts add up."""
    middle = {
        field.name: median(getattr(figures, field.name) for figures in rounds)
        for field in fields(Figures)
    }
    middle["requests"] = sum(figures.requests for figures in rounds)
    middle["checked"] = sum(figures.checked for figures in rounds)
    return Figures(**middle)
