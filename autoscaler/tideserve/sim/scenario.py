"""One run from its description: what arrives, what serves, what scales; and what it comes to."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from math import ceil, inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tideserve.autoscaler.core.decision import Decision, Policy
from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.core.state import Rules
from tideserve.server.core.assignment import Assignment
from tideserve.server.core.settings import (
    BatchingMode,
    BatchSettings,
    ModelSettings,
    OnLate,
    QueueSettings,
)
from tideserve.sim.book import Book, Figures, figures, figures_of_all, work_attainment
from tideserve.sim.engine import Engine
from tideserve.sim.fleet import TICK_S, Fleet, FleetSettings
from tideserve.sim.hardware import Hardware
from tideserve.sim.optimum import cost_at
from tideserve.sim.served import Served, Workload

MODEL: Final = "model"
UNIX_S: Final = 1.7e9
"""Wall time at the start of a run that is of no certain day."""
ALL: Final = "all"
"""The name of what several models come to together."""
# Demand of shorter slots would be noise that a queue evens out, and long runs many slots.
_LEAST_SLOT_S: Final = 1.0
_MAX_QUEUED: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """Of one model. `arrived_s`: seconds from 0. `initial` replicas are READY at the start, and
    their start-up is paid for. `window_s`: the delay of mode WINDOW. `request_rows`: of each
    request, at most `max_batch_rows`; None: one. `row_costs`: what each of its rows costs, its
    length padded to one of `pad_edges`; None: one. `max_batch_cost`: of a batch, as of `tideserve.pad`. `unix_s`:
    wall time at the start, of which `day_speed` seconds go by in one."""

    arrived_s: NDArray[np.float64]
    duration_s: float
    target_s: float
    hardware: Hardware
    max_batch_rows: int
    mode: BatchingMode = BatchingMode.SLO
    on_late: OnLate = OnLate.SERVE
    window_s: float = 0.0
    initial: int = 1
    tick_s: float = TICK_S
    name: str = MODEL
    request_rows: NDArray[np.int64] | None = None
    row_costs: NDArray[np.int64] | None = None
    max_batch_cost: int | None = None
    pad_edges: tuple[int, ...] = ()
    unix_s: float = UNIX_S
    day_speed: float = 1.0

    def settings(self) -> ModelSettings:
        """Of the model's queue and batches."""
        target_s = self.target_s if self.mode is BatchingMode.SLO else None
        return ModelSettings(
            QueueSettings(max_requests=_MAX_QUEUED),
            BatchSettings(
                self.mode,
                self.max_batch_rows,
                max_queue_delay_s=self.window_s,
                target_s=target_s,
                on_late=self.on_late,
                max_batch_cost=self.max_batch_cost,
                row_costs=self.pad_edges,
            ),
        )

    @property
    def rows_per_s(self) -> float:
        """Of one replica with the largest batch that meets the target; rows that cost as much as
        the batch times are about."""
        return self._rows_per_s(self.hardware.row_cost)

    def _rows_per_s(self, row_cost: int) -> float:
        rows = self.best_rows(inf, row_cost)
        return rows / self.hardware.mean_batch_s(rows, row_cost)

    def best_rows(self, replicas: float, row_cost: int | None = None) -> int:
        """b* of so many replicas: the largest batch with l(b)(1 + 1/N) within the target. Of rows of
        that cost; None: of what the batch times are about."""
        cost = self.hardware.row_cost if row_cost is None else row_cost
        most_rows = self.settings().batch.capped_rows(max(1, self.max_batch_rows), cost)
        fitting = [
            rows
            for rows in range(1, most_rows + 1)
            if self.hardware.mean_batch_s(rows, cost) * (1.0 + 1.0 / replicas)
            <= self.target_s + 1e-9
        ]
        return max(fitting, default=1)

    @property
    def request_work(self) -> NDArray[np.float64] | None:
        """Of each request, as many rows of what the batch times are about as a replica serves in
        the time that it takes in a batch of its own length; None: one."""
        if self.row_costs is None:
            return None if self.request_rows is None else self.request_rows.astype(np.float64)
        costs, kind = np.unique(self.row_costs, return_inverse=True)
        each = np.array([self.rows_per_s / self._rows_per_s(cost) for cost in costs.tolist()])
        rows = 1.0 if self.request_rows is None else self.request_rows
        work: NDArray[np.float64] = each[kind] * rows
        return work

    @property
    def mean_request_work(self) -> float:
        work = self.request_work
        return 1.0 if work is None else float(np.mean(work))

    def optimum_s(self, attainment: float) -> float:
        """Replica-seconds of the clairvoyant optimum for that share of the work in time."""
        slot_s = max(_LEAST_SLOT_S, self.target_s)
        slots = max(1, ceil(self.duration_s / slot_s - 1e-9))
        counts, _ = np.histogram(
            self.arrived_s, bins=slots, range=(0.0, slots * slot_s), weights=self.request_work
        )
        return cost_at(
            (counts / slot_s).tolist(),
            attainment,
            slot_s=slot_s,
            mu=self.rows_per_s,
            startup_s=self.hardware.start_s.median_s,
        )


@dataclass(frozen=True, slots=True)
class Run:
    """What became of a scenario under one system. `over_optimum`: its replica-seconds over those
    of the optimum that has as many in time; None for a fixed count. `model` `ALL`: of several
    together, with an empty book."""

    system: str
    figures: Figures
    book: Book
    decisions: tuple[tuple[float, Decision], ...] = ()
    over_optimum: float | None = None
    model: str = MODEL


def run_fixed(
    scenario: Scenario,
    replicas: int,
    seed: int,
    *,
    system: str = "",
    assignment: Assignment | None = None,
) -> Run:
    """With so many replicas and no autoscaler. `assignment`: another batching rule, for this
    run alone."""
    served = _served(scenario, MODEL)
    engine = Engine([served], seed, assignment)
    for number in range(replicas):
        engine.begin(f"{scenario.name}-{number}", MODEL)
    engine.run()
    summary = figures(served.book, scenario.target_s, scenario.duration_s)
    return Run(system or scenario.mode.value, summary, served.book, model=scenario.name)


def run_scaled(
    scenario: Scenario, policy: Policy, rules: Rules, seed: int, *, system: str = "tideserve"
) -> Run:
    """With an autoscaler."""
    return run_together([scenario], policy, rules, seed, system=system)[0]


def run_together(
    scenarios: Sequence[Scenario],
    policy: Policy,
    rules: Rules,
    seed: int,
    *,
    system: str = "tideserve",
) -> list[Run]:
    """Several models with one autoscaler, on the devices of `rules`: a run for each, and of several
    one more for all together, which alone has what standbys cost. The first one's tick and time of
    day are everybody's."""
    served = [_served(one, ModelKey(one.name, 1, "simulated")) for one in scenarios]
    keys = [ModelKey(one.name, 1, "simulated") for one in scenarios]
    engine = Engine(served, seed)
    first = scenarios[0]
    fleet = Fleet(
        engine,
        policy,
        FleetSettings(
            initial={key: one.initial for key, one in zip(keys, scenarios, strict=True)},
            latency_target_s={key: one.target_s for key, one in zip(keys, scenarios, strict=True)},
            tick_s=first.tick_s,
            unix_s=first.unix_s,
            day_speed=first.day_speed,
            rules=rules,
        ),
    )
    fleet.begin()
    engine.run()
    books = [one.book for one in served]
    if len(books) == 1:
        books[0].replica_s += engine.spare.replica_s
        books[0].starts += engine.spare.starts
    runs, least_s = [], 0.0
    for key, scenario, book in zip(keys, scenarios, books, strict=True):
        summary = figures(book, scenario.target_s, scenario.duration_s)
        work = scenario.request_work
        optimum_s = scenario.optimum_s(work_attainment(book, scenario.target_s, work))
        least_s += optimum_s
        over = summary.replica_s / optimum_s if optimum_s > 0.0 else None
        runs.append(Run(system, summary, book, tuple(fleet.decisions[key]), over, scenario.name))
    if len(books) > 1:
        targets_s = [one.target_s for one in scenarios]
        summary = figures_of_all(books, targets_s, first.duration_s)
        summary = replace(
            summary,
            replica_s=summary.replica_s + engine.spare.replica_s,
            starts=summary.starts + engine.spare.starts,
        )
        over = summary.replica_s / least_s if least_s > 0.0 else None
        runs.append(Run(system, summary, Book(np.empty(0)), (), over, ALL))
    return runs


def _served(scenario: Scenario, key: Hashable) -> Served:
    # A system that drops what is late stands beside others whose callers give up then.
    gives_up = scenario.on_late is OnLate.DROP and scenario.mode is not BatchingMode.SLO
    workload = Workload(
        scenario.arrived_s,
        scenario.duration_s,
        scenario.target_s if gives_up else inf,
        scenario.request_rows,
        scenario.row_costs,
    )
    return Served(key, scenario.settings(), scenario.hardware, workload)
