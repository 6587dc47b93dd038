"""What the goodput benchmark reads of a server, and what it makes the simulator's batches of."""

import pytest

from benchmarks.goodput import (
    A_MS,
    C_MS,
    COLUMNS,
    Measured,
    batch_times,
    cells_of,
    forecast,
    read_counters,
    scenario_of,
)
from tideserve.server.core.settings import BatchingMode

METRICS = """
# TYPE tideserve_latency_seconds histogram
tideserve_latency_seconds_bucket{model="m",version="1",le="0.1"} 3
tideserve_latency_seconds_bucket{model="m",version="1",le="0.25"} 8
tideserve_latency_seconds_bucket{model="m",version="1",le="+Inf"} 9
tideserve_latency_seconds_count{model="m",version="1"} 9
tideserve_latency_seconds_sum{model="m",version="1"} 2.5
# TYPE tideserve_queue_wait_seconds histogram
tideserve_queue_wait_seconds_sum{model="m",version="1"} 0.5
# TYPE tideserve_compute_seconds histogram
tideserve_compute_seconds_sum{model="m",version="1"} 1.75
"""


def measured() -> Measured:
    return Measured(
        attainment=0.9,
        seen=0.88,
        batch_s=(A_MS * 12.5 + C_MS + 2.0) / 1e3,
        link_s=0.0005,
        p99_s=0.24,
        mean_batch_rows=12.5,
    )


def test_the_servers_counters_are_read() -> None:
    found = read_counters(METRICS)
    assert (found.in_time, found.busy_s) == (8.0, 1.75)
    assert (found.latency_s, found.queued_s) == (2.5, 0.5)


def test_the_forecast_is_of_batches_as_long_as_they_were_and_of_several_runs() -> None:
    scenario = scenario_of(BatchingMode.EAGER, 0.9, replicas=4, seconds=4.0)
    real = measured()
    batch = batch_times(scenario, real)
    assert batch.mean_s(16) == pytest.approx((A_MS * 16 + C_MS + 2.0) / 1e3)
    found = forecast(scenario, batch, real.link_s, 4)
    assert found == forecast(scenario, batch, real.link_s, 4)
    assert found.chance > 0.0
    slower = forecast(scenario, batch, 0.05, 4)
    assert slower.attainment < found.attainment
    cells = dict(zip(COLUMNS[2:], cells_of(real, found), strict=True))
    assert (cells["by the caller"], cells["link"]) == ("88.0%", "0.5 ms")
