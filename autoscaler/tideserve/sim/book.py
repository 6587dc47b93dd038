"""What a simulated run comes to: every request's outcome, every replica's time."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

# Bounds of the histograms that the autoscaler sees, as the frontend has them: 0.1 ms to 102 s.
WAIT_BOUNDS_S: Final = tuple(0.0001 * 2.0**power for power in range(21))


@dataclass(slots=True)
class Book:
    """Owns the records of one model in one run. Times are virtual seconds; `finished_s` inf: no
    answer."""

    arrived_s: NDArray[np.float64]
    finished_s: NDArray[np.float64] = field(init=False)
    rejected: int = 0
    expired: int = 0
    failed: int = 0
    succeeded: int = 0
    rows: int = 0
    batches: int = 0
    wait_counts: list[int] = field(default_factory=lambda: [0] * (len(WAIT_BOUNDS_S) + 1))
    replica_s: float = 0.0
    starts: int = 0
    deaths: int = 0
    desired: list[tuple[float, int]] = field(default_factory=list)
    """(when, how many): each change of the desired count."""
    counts: list[tuple[float, int, int]] = field(default_factory=list)
    """(when, READY, starting), at every tick."""
    idle_at_least: dict[int, float] = field(default_factory=dict)
    """Seconds in which so many replicas or more had empty hands."""

    def __post_init__(self) -> None:
        self.finished_s = np.full(len(self.arrived_s), inf)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run. `attainment`: share of arrivals answered within the target, rejected ones
    missed. Latencies are of answers; inf without any. A reversal is a change of the desired
    count against the direction of the one before."""

    arrivals: int
    attainment: float
    answered: float
    p50_s: float
    p99_s: float
    mean_batch_rows: float
    replica_s: float
    starts: int
    reversals_per_hour: float
    most_replicas: int


def in_time(book: Book, target_s: float) -> NDArray[np.bool_]:
    """Of each request, whether it was answered within the target."""
    # Sums of floats: an answer on the target's very end is in time.
    return book.finished_s - book.arrived_s <= target_s + 1e-9


def work_attainment(book: Book, target_s: float, work: NDArray[np.float64] | None) -> float:
    """Share in time by each request's work, which a replica's capacity is counted in; None: all
    are the same."""
    served = in_time(book, target_s)
    return float(np.average(served, weights=work)) if len(served) else 1.0


def figures(book: Book, target_s: float, duration_s: float) -> Figures:
    """The summary of a run of `duration_s`."""
    latency_s = book.finished_s - book.arrived_s
    answers = latency_s[np.isfinite(latency_s)]
    arrivals = len(book.arrived_s)
    return Figures(
        arrivals=arrivals,
        attainment=float(np.mean(in_time(book, target_s))) if arrivals else 1.0,
        answered=len(answers) / arrivals if arrivals else 1.0,
        p50_s=float(np.quantile(answers, 0.5)) if len(answers) else inf,
        p99_s=float(np.quantile(answers, 0.99)) if len(answers) else inf,
        mean_batch_rows=book.rows / book.batches if book.batches else 0.0,
        replica_s=book.replica_s,
        starts=book.starts,
        reversals_per_hour=reversals([count for _, count in book.desired]) * 3600.0 / duration_s,
        most_replicas=max((ready + starting for _, ready, starting in book.counts), default=0),
    )


def figures_of_all(books: Sequence[Book], targets_s: Sequence[float], duration_s: float) -> Figures:
    """The summary of several models' together, each in time by its own target."""
    each = [figures(*one, duration_s) for one in zip(books, targets_s, strict=True)]
    latency_s = np.concatenate([book.finished_s - book.arrived_s for book in books])
    answers = latency_s[np.isfinite(latency_s)]
    arrivals, batches = latency_s.size, sum(book.batches for book in books)
    served = sum(
        int(in_time(book, target_s).sum()) for book, target_s in zip(books, targets_s, strict=True)
    )
    looks = zip(*(book.counts for book in books), strict=True)
    return Figures(
        arrivals=arrivals,
        attainment=served / arrivals if arrivals else 1.0,
        answered=answers.size / arrivals if arrivals else 1.0,
        p50_s=float(np.quantile(answers, 0.5)) if answers.size else inf,
        p99_s=float(np.quantile(answers, 0.99)) if answers.size else inf,
        mean_batch_rows=sum(book.rows for book in books) / batches if batches else 0.0,
        replica_s=sum(one.replica_s for one in each),
        starts=sum(one.starts for one in each),
        reversals_per_hour=sum(one.reversals_per_hour for one in each),
        most_replicas=max(
            (sum(ready + starting for _, ready, starting in look) for look in looks), default=0
        ),
    )


def reversals(counts: list[int]) -> int:
    """Changes against the direction of the change before."""
    steps = [after - before for before, after in pairwise(counts)]
    steps = [step for step in steps if step]
    return sum((before > 0) != (after > 0) for before, after in pairwise(steps))
