"""`python -m benchmarks.losses`: where mode slo loses requests, in the simulator.

Replica time is what there is too little of. If all of it went into batches of b*, p = b*/l(b*) rows
a second, `full` of the arrivals would be answered. Less what batches under b* serve too few, what
idle replicas would have served and what was answered late, and more what batches over b* serve
beyond that, this is what was in time. Who is dropped costs nothing by itself: where replicas are
short somebody has to be. *Early* are those that a batch which began later could have taken as one
row more, everybody in time still.
"""

import argparse
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np

from benchmarks.batching_rules import BATCH, TARGET_S, Case
from tideserve.server.core.actions import Action, Dispatch, Expire
from tideserve.server.core.assignment import Assignment
from tideserve.server.core.leases import Lease
from tideserve.server.core.model import Model
from tideserve.server.core.replicas import Replica
from tideserve.sim.book import in_time
from tideserve.sim.scenario import run_fixed

CASES: Final = (
    Case(8, 1.0, 0.9),
    Case(8, 1.0, 1.0),
    Case(8, 1.0, 1.2),
    Case(8, 3.0, 0.7),
    Case(1, 1.0, 0.9),
)
_ROUNDING_S: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Batch:
    """`due_s`: of its first request. `late`: its requests that were answered late."""

    started_s: float
    rows: int
    due_s: float
    late: int


@dataclass(frozen=True, slots=True)
class Losses:
    """Shares of the arrivals. `full` - `under` + `over` - `idle` - `late` = `in_time`."""

    in_time: float
    full: float
    under: float
    over: float
    idle: float
    late: float
    early: float


class Witness(Assignment):
    """The core's own rule, and what it did. Batch times have no noise, so that when a batch begins
    follows from when it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []
        self.dropped: list[tuple[float, float]] = []
        """(when, due)"""
        self._free_s: dict[str, float] = {}

    def assign(
        self, key: Hashable, model: Model, replicas: Iterable[Replica], now_s: float
    ) -> list[Action]:
        actions = super().assign(key, model, replicas, now_s)
        for action in actions:
            match action:
                case Dispatch(_, _, lease):
                    self._begin(lease, now_s)
                case Expire(request):
                    self.dropped.append((now_s, request.due_s))
        return actions

    def _begin(self, lease: Lease, now_s: float) -> None:
        started_s = max(now_s, self._free_s.get(lease.replica_id, 0.0))
        ends_s = self._free_s[lease.replica_id] = started_s + BATCH.mean_s(lease.rows)
        due_s = [request.due_s for request in lease.requests]
        late = sum(ends_s > due + _ROUNDING_S for due in due_s)
        self.batches.append(Batch(started_s, lease.rows, min(due_s), late))


def losses_of(case: Case, seconds: float) -> Losses:
    """Of one run."""
    scenario, witness = case.scenario(seconds), Witness()
    book = run_fixed(scenario, case.replicas, 1, assignment=witness).book
    rows = scenario.best_rows(case.replicas)
    per_s = rows / BATCH.mean_s(rows)
    batches = witness.batches
    gains = [batch.rows - per_s * BATCH.mean_s(batch.rows) for batch in batches]
    ends_s = max(batch.started_s + BATCH.mean_s(batch.rows) for batch in batches)
    there_s = case.replicas * ends_s
    busy_s = sum(BATCH.mean_s(batch.rows) for batch in batches)
    count = len(scenario.arrived_s)
    return Losses(
        in_time=float(np.mean(in_time(book, TARGET_S))),
        full=per_s * there_s / count,
        under=-sum(gain for gain, batch in zip(gains, batches, strict=True) if batch.rows < rows)
        / count,
        over=sum(gain for gain, batch in zip(gains, batches, strict=True) if batch.rows > rows)
        / count,
        idle=per_s * (there_s - busy_s) / count,
        late=sum(batch.late for batch in batches) / count,
        early=early_of(batches, witness.dropped) / count,
    )


def early_of(batches: list[Batch], dropped: list[tuple[float, float]]) -> int:
    """How many of the dropped a later batch had room for; each in the first one that has."""
    batches = sorted(batches, key=lambda batch: batch.started_s)
    starts_s = [batch.started_s for batch in batches]
    more: Counter[int] = Counter()
    for when_s, due_s in sorted(dropped):
        at = bisect_left(starts_s, when_s - _ROUNDING_S)
        while at < len(batches) and starts_s[at] < due_s:
            batch = batches[at]
            ends_s = batch.started_s + BATCH.mean_s(batch.rows + more[at] + 1)
            if ends_s <= min(batch.due_s, due_s) + _ROUNDING_S:
                more[at] += 1
                break
            at += 1
    return more.total()


def main() -> None:
    parser = argparse.ArgumentParser(description="Where mode slo loses requests.")
    parser.add_argument("--seconds", type=float, default=20.0)
    seconds = parser.parse_args().seconds
    print(
        "| replicas | arrivals | load | full batches all the time | under b\\* | replicas idle "
        "| late answers | over b\\* | in time | dropped early |\n" + "|---" * 10 + "|"
    )
    for case in CASES:
        found = losses_of(case, seconds)
        kind = "Poisson" if case.cv == 1.0 else f"Gamma CV {case.cv:g}"
        print(
            f"| {case.replicas} | {kind} | {case.load:g} | {found.full:.2%} | -{found.under:.2%} "
            f"| -{found.idle:.2%} | -{found.late:.2%} | +{found.over:.2%} | {found.in_time:.2%} "
            f"| {found.early:.2%} |"
        )


if __name__ == "__main__":
    main()
