"""One run from its description: what arrives, what serves, what scales; and what it comes to."""

from dataclasses import dataclass
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
from tideserve.sim.book import Book, Figures, figures, rows_attainment
from tideserve.sim.engine import Engine, Workload
from tideserve.sim.fleet import TICK_S, Fleet, FleetSettings
from tideserve.sim.hardware import Hardware
from tideserve.sim.optimum import cost_at

MODEL: Final = "model"
# Demand of shorter slots would be noise that a queue evens out, and long runs many slots.
_LEAST_SLOT_S: Final = 1.0
_MAX_QUEUED: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Scenario:
    """`arrived_s`: seconds from 0. `initial` replicas are READY at the start, and their start-up
    is paid for. `window_s`: the delay of mode WINDOW. `request_rows`: of each request, at most
    `max_batch_rows`; None: one."""

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
            ),
        )

    @property
    def rows_per_s(self) -> float:
        """Of one replica with the largest batch that meets the target."""
        rows = self.best_rows(inf)
        return rows / self.hardware.batch.mean_s(rows)

    def best_rows(self, replicas: float) -> int:
        """b* of so many replicas: the largest batch with l(b)(1 + 1/N) within the target."""
        fitting = [
            rows
            for rows in range(1, max(1, self.max_batch_rows) + 1)
            if self.hardware.batch.mean_s(rows) * (1.0 + 1.0 / replicas) <= self.target_s + 1e-9
        ]
        return max(fitting, default=1)

    @property
    def mean_request_rows(self) -> float:
        return 1.0 if self.request_rows is None else float(np.mean(self.request_rows))

    def optimum_s(self, attainment: float) -> float:
        """Replica-seconds of the clairvoyant optimum for that share of the rows in time."""
        slot_s = max(_LEAST_SLOT_S, self.target_s)
        slots = max(1, ceil(self.duration_s / slot_s - 1e-9))
        counts, _ = np.histogram(
            self.arrived_s, bins=slots, range=(0.0, slots * slot_s), weights=self.request_rows
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
    of the optimum that has as many in time; None for a fixed count."""

    system: str
    figures: Figures
    book: Book
    decisions: tuple[tuple[float, Decision], ...] = ()
    over_optimum: float | None = None


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
    engine = _engine(scenario, MODEL, seed, assignment)
    for number in range(replicas):
        replica_id = f"{scenario.name}-{number}"
        engine.scheduler.members.announce(replica_id, MODEL, 0.0)
        replica = engine.launch(replica_id)
        if engine.join(replica):
            engine.ready(replica)
    book = engine.run()
    summary = figures(book, scenario.target_s, scenario.duration_s)
    return Run(system or scenario.mode.value, summary, book)


def run_scaled(
    scenario: Scenario, policy: Policy, rules: Rules, seed: int, *, system: str = "tideserve"
) -> Run:
    """With an autoscaler."""
    engine = _engine(scenario, ModelKey(scenario.name, 1, "simulated"), seed)
    fleet = Fleet(
        engine,
        policy,
        FleetSettings(
            tick_s=scenario.tick_s,
            initial=scenario.initial,
            latency_target_s=scenario.target_s,
            rules=rules,
        ),
    )
    fleet.begin()
    book = engine.run()
    summary = figures(book, scenario.target_s, scenario.duration_s)
    optimum_s = scenario.optimum_s(rows_attainment(book, scenario.target_s))
    over = summary.replica_s / optimum_s if optimum_s > 0.0 else None
    return Run(system, summary, book, tuple(fleet.decisions), over)


def _engine(
    scenario: Scenario, key: object, seed: int, assignment: Assignment | None = None
) -> Engine:
    # A system that drops what is late stands beside others whose callers give up then.
    gives_up = scenario.on_late is OnLate.DROP and scenario.mode is not BatchingMode.SLO
    workload = Workload(
        scenario.arrived_s,
        scenario.duration_s,
        scenario.target_s if gives_up else inf,
        scenario.request_rows,
    )
    return Engine(key, scenario.settings(), scenario.hardware, workload, seed, assignment)
