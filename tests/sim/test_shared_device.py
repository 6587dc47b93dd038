"""Models that share a device: what one learns of its batches includes what the other does to them."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from tideserve.server.core.settings import BatchingMode, BatchSettings, ModelSettings
from tideserve.sim.arrivals import Poisson
from tideserve.sim.engine import Engine
from tideserve.sim.hardware import BatchTimes, Hardware
from tideserve.sim.served import Served, Workload

DURATION_S = 20.0
TARGET_S = 0.1
ALONE = BatchTimes.linear(0.002, 0.018)
# Batches that meet the neighbour's take so much longer.
SLOWDOWN = 1.8
Spans = tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class Shared(BatchTimes):
    """Batches beside a neighbour on the device, who computes in the times given."""

    busy_s: Spans = ()
    engines: list[Engine] = field(default_factory=list)

    def draw_s(self, rows: float, generator: np.random.Generator) -> float:
        now_s = self.engines[0].now_s
        meets = any(begin_s <= now_s < end_s for begin_s, end_s in self.busy_s)
        return self.mean_s(rows) * (SLOWDOWN if meets else 1.0)


@pytest.fixture(scope="module")
def neighbour() -> Spans:
    """Half of the time, in pieces of 10 to 60 ms."""
    ends_s = np.cumsum(np.random.default_rng(7).uniform(0.01, 0.06, 2000))
    return tuple(zip(ends_s[0::2].tolist(), ends_s[1::2].tolist(), strict=True))


def share_in_time(rate: float, busy_s: Spans, mode: BatchingMode = BatchingMode.SLO) -> float:
    """Of the later half: the first one is there to learn. One replica."""
    times = Shared(ALONE.points, busy_s=busy_s)
    arrived_s = Poisson(rate).times_s(DURATION_S, np.random.default_rng(3))
    batch = BatchSettings(mode, 32, target_s=TARGET_S if mode is BatchingMode.SLO else None)
    workload = Workload(arrived_s, DURATION_S)
    served = Served("m", ModelSettings(batch=batch), Hardware(times), workload)
    engine = Engine([served], seed=1)
    times.engines.append(engine)
    assert engine.begin("r0", "m", "gpu:0").ready
    engine.run()
    late = arrived_s >= DURATION_S / 2
    return float(np.mean(served.book.finished_s[late] - arrived_s[late] <= TARGET_S))


def test_a_model_keeps_its_target_beside_a_neighbour(neighbour: Spans) -> None:
    assert share_in_time(100.0, ()) > 0.99
    assert share_in_time(100.0, neighbour) > 0.97


def test_where_the_device_is_too_slow_for_both_more_is_in_time_than_without_a_target(
    neighbour: Spans,
) -> None:
    """Alone the replica could take 300 rows/s in time, beside the neighbour some 200."""
    assert share_in_time(250.0, ()) > 0.99
    eager = share_in_time(250.0, neighbour, BatchingMode.EAGER)
    assert share_in_time(250.0, neighbour) > eager + 0.2
