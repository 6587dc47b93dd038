"""The rules of batching beside each other in the simulator: 8 replicas, 25 ms, a share in time each.

`python -m benchmarks.goodput --simulated` prints the table.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from tideserve.server.core.settings import BatchingMode, OnLate
from tideserve.sim.arrivals import Gamma, Poisson
from tideserve.sim.baselines.batching import (
    ClipperAssignment,
    ClipperSettings,
    FixedAssignment,
    FixedSettings,
    NexusAssignment,
    NexusSettings,
)
from tideserve.sim.bound import most_in_time
from tideserve.sim.hardware import BatchTimes, Hardware
from tideserve.sim.scenario import Scenario, run_fixed

BATCH: Final = BatchTimes.linear(1.053e-3, 5.072e-3)
TARGET_S: Final = 0.025
RULES: Final = "slo | eager | window 3 ms | Clipper, better of 12.5 and 25 ms | b\\*, 3 ms | Nexus"
_IDLE: Final = 3


@dataclass(frozen=True, slots=True)
class Case:
    """`cv`: of the gaps between arrivals, 1 is Poisson. `load`: a share of N b*/l(b*)."""

    replicas: int
    cv: float
    load: float

    def scenario(self, seconds: float) -> Scenario:
        """Late requests are dropped, or given up by their callers in modes without a target."""
        empty = Scenario(
            np.empty(0),
            seconds,
            TARGET_S,
            Hardware(BATCH),
            64,
            on_late=OnLate.DROP,
            window_s=0.003,
        )
        rows = empty.best_rows(self.replicas)
        rate = self.load * self.replicas * rows / BATCH.mean_s(rows)
        arrivals = Poisson(rate) if self.cv == 1.0 else Gamma(rate, self.cv)
        return replace(empty, arrived_s=arrivals.times_s(seconds, np.random.default_rng(1)))


CASES: Final = (
    Case(8, 1.0, 0.4),
    Case(8, 1.0, 0.7),
    Case(8, 1.0, 0.9),
    Case(8, 1.0, 1.0),
    Case(8, 1.0, 1.2),
    Case(8, 3.0, 0.7),
    Case(1, 1.0, 0.9),
)


def table_of(cases: Sequence[Case], seconds: float) -> str:
    """Share in time of each rule, a line a case, and the most that any could have."""
    lines = [
        f"| replicas | arrivals | load | {RULES} | most there is | slo idle >= {_IDLE} |",
        "|---" * 11 + "|",
    ]
    lines += [_line(case, seconds) for case in cases]
    return "\n".join(lines)


def _line(case: Case, seconds: float) -> str:
    scenario = case.scenario(seconds)
    rows = scenario.best_rows(case.replicas)
    runs = [
        run_fixed(replace(scenario, mode=mode), case.replicas, 1, assignment=rule)
        for mode, rule in (
            (BatchingMode.SLO, None),
            (BatchingMode.EAGER, None),
            (BatchingMode.WINDOW, None),
            (BatchingMode.EAGER, ClipperAssignment(ClipperSettings(target_s=TARGET_S / 2))),
            (BatchingMode.EAGER, ClipperAssignment(ClipperSettings(target_s=TARGET_S))),
            (BatchingMode.EAGER, FixedAssignment(FixedSettings(rows, timeout_s=0.003))),
            (BatchingMode.SLO, NexusAssignment(NexusSettings(target_s=TARGET_S))),
        )
    ]
    slo, eager, window, half, whole, size, nexus = (run.figures.attainment for run in runs)
    most = most_in_time(
        scenario.arrived_s,
        replicas=case.replicas,
        batch=BATCH,
        target_s=TARGET_S,
        max_rows=scenario.max_batch_rows,
    )
    shares = (slo, eager, window, max(half, whole), size, nexus, most)
    cells = " | ".join(f"{share:.2%}" for share in shares)
    idle = runs[0].book.idle_at_least.get(_IDLE, 0.0) / seconds
    kind = "Poisson" if case.cv == 1.0 else f"Gamma CV {case.cv:g}"
    return f"| {case.replicas} | {kind} | {case.load:g} | {cells} | {idle:.0%} of the time |"
