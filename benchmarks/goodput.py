"""`python -m benchmarks.goodput`: the same load in modes eager, window and slo, on the real server
and in the simulator.

The model is accelerator_standin, which sleeps as long as an accelerator would compute: a machine
without one has no other way to be compared. Requests are sent when they are due, whether answers
came or not. What is in time is counted by the server, from arrival to answer, as its target is
meant; the caller's own share beside it, with its client and its waiting for a core.
"""

import argparse
import asyncio
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import httpx
import numpy as np
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from rich.table import Table

from benchmarks.batching_rules import CASES, table_of
from benchmarks.process import ServerProcess
from tideserve.client import NO_RETRY, TideserveClientError
from tideserve.client.aio import Client
from tideserve.server.core.settings import BatchingMode, OnLate
from tideserve.sim.arrivals import Poisson
from tideserve.sim.hardware import BatchTimes, Hardware
from tideserve.sim.scenario import Scenario, run_fixed

MODEL: Final = "accelerator_standin"
_SOURCE: Final = Path(__file__).parents[1] / "examples" / "models" / MODEL
# A tenth of the speed of the figures: 250 requests a second leave the machine idle enough
# for the caller to keep time. The target is a bound of the server's histogram.
A_MS, C_MS, TARGET_S = 10.53, 50.72, 0.25
MAX_ROWS: Final = 32
# Of simulated batch times. How much of it hardly matters, 0.001 and 0.01 give the same; without any,
# replicas keep step for ever, and one trajectory is taken for what is to be expected. Where queues
# are long, as in the modes that know no target, one run of 20 s differs from the next by 1 to 2
# points: so the forecast is the mean of several.
SPREAD: Final = 0.003
RUNS: Final = 8
WINDOW_S: Final = 0.025
COLUMNS: Final = (
    "load",
    "mode",
    "in time",
    "simulated",
    "by the caller",
    "mean batch",
    "simulated",
    "p99",
    "simulated",
    "link",
)
_READY: Final = re.compile(r"^ready grpc=(\S+) http=(\S+)", re.MULTILINE)
_TIMEOUT_S: Final = 30.0
_LONE: Final = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """`attainment`: share of arrivals answered within the target, by the server's count;
    `seen`: by the caller's clock, as the quantile is. `batch_s`: what a batch took on average.
    `link_s`: from the frontend to a replica, or back."""

    attainment: float
    seen: float
    batch_s: float
    link_s: float
    p99_s: float
    mean_batch_rows: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Goodput of the batching modes, and its forecast.")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--loads", default="0.7,0.9,1.0", help="shares of N b*/l(b*)")
    parser.add_argument(
        "--modes", default=",".join(mode.value for mode in BatchingMode), help="of them"
    )
    parser.add_argument(
        "--simulated",
        action="store_true",
        help="8 replicas and 25 ms in the simulator only, late requests dropped",
    )
    parser.add_argument(
        "--cases",
        default=",".join(str(number) for number in range(1, len(CASES) + 1)),
        help="with --simulated: lines of its table, from 1",
    )
    options = parser.parse_args()
    if options.simulated:
        cases = [CASES[int(number) - 1] for number in options.cases.split(",")]
        print(table_of(cases, options.seconds))
        return
    table = Table(*COLUMNS)
    worst_points, worst_batch = 0.0, 0.0
    for load in map(float, options.loads.split(",")):
        for mode in map(BatchingMode, options.modes.split(",")):
            scenario = scenario_of(mode, load, options.replicas, options.seconds)
            real = measure(scenario, options.replicas)
            batch = batch_times(scenario, real)
            found = forecast(scenario, batch, real.link_s, options.replicas)
            table.add_row(f"{load:g}", mode.value, *cells_of(real, found))
            worst_points = max(worst_points, abs(real.attainment - found.attainment) * 100.0)
            ratio = real.mean_batch_rows / found.mean_batch_rows
            worst_batch = max(worst_batch, abs(ratio - 1.0))
    console = Console(width=120)
    console.print(table)
    console.print(
        f"largest difference: {worst_points:.1f} points in time, {worst_batch:.0%} in mean batch"
    )


def scenario_of(mode: BatchingMode, load: float, replicas: int, seconds: float) -> Scenario:
    """Poisson arrivals at that share of what the replicas can do in time."""
    hardware = Hardware(BatchTimes.linear(A_MS / 1e3, C_MS / 1e3))
    empty = Scenario(np.empty(0), seconds, TARGET_S, hardware, MAX_ROWS)
    rows = empty.best_rows(replicas)
    rate = load * replicas * rows / hardware.batch.mean_s(rows)
    arrived_s = Poisson(rate).times_s(seconds, np.random.default_rng(11))
    return Scenario(
        arrived_s,
        seconds,
        TARGET_S,
        hardware,
        MAX_ROWS,
        mode,
        OnLate.SERVE,
        WINDOW_S if mode is BatchingMode.WINDOW else 0.0,
    )


@dataclass(frozen=True, slots=True)
class Forecast:
    """The means of several simulated runs. `chance`: the standard deviation of one's attainment."""

    attainment: float
    chance: float
    p99_s: float
    mean_batch_rows: float


def batch_times(scenario: Scenario, real: Measured) -> BatchTimes:
    """Those of the stand-in, as much longer than its sleep as they were measured to be, which is
    Python and the machine, and spread a little."""
    more_s = (
        real.batch_s - scenario.hardware.batch.mean_s(1) - A_MS / 1e3 * (real.mean_batch_rows - 1.0)
    )
    return BatchTimes.linear(A_MS / 1e3, C_MS / 1e3 + more_s, SPREAD)


def forecast(scenario: Scenario, batch: BatchTimes, link_s: float, replicas: int) -> Forecast:
    """Of the simulator."""
    scenario = replace(scenario, hardware=Hardware(batch, link_s=link_s))
    found = [run_fixed(scenario, replicas, seed).figures for seed in range(1, RUNS + 1)]
    return Forecast(
        attainment=float(np.mean([one.attainment for one in found])),
        chance=float(np.std([one.attainment for one in found])),
        p99_s=float(np.mean([one.p99_s for one in found])),
        mean_batch_rows=float(np.mean([one.mean_batch_rows for one in found])),
    )


def measure(scenario: Scenario, replicas: int) -> Measured:
    """On a server of its own."""
    with tempfile.TemporaryDirectory(prefix="tideserve-goodput-") as name:
        folder = Path(name)
        write_model(folder / "models", scenario)
        server = ServerProcess(
            [
                sys.executable,
                "-m",
                "tideserve.server",
                str(folder / "models"),
                f"--replicas={replicas}",
                "--grpc-port=0",
                "--http-port=0",
            ],
            {"XDG_RUNTIME_DIR": name, "XDG_STATE_HOME": name},
            folder / "log",
        )
        server.start(lambda log: _READY.search(log) is not None)
        try:
            found = _READY.search((folder / "log").read_text())
            assert found is not None
            return asyncio.run(_drive(found[1], found[2], scenario, replicas))
        finally:
            server.stop()


def write_model(repository: Path, scenario: Scenario) -> None:
    """The stand-in with this scenario's times and mode."""
    shutil.copytree(_SOURCE, repository / MODEL)
    config = repository / MODEL / "config.pbtxt"
    text = config.read_text()
    text = re.sub(r"max_batch_size: \d+", f"max_batch_size: {MAX_ROWS}", text)
    text = text.replace('string_value: "0.5"', f'string_value: "{A_MS}"')
    text = text.replace('string_value: "5.0"', f'string_value: "{C_MS}"')
    window_us = round(scenario.window_s * 1e6)
    text = text.replace(
        "dynamic_batching { }",
        f"dynamic_batching {{ max_queue_delay_microseconds: {window_us} }}" if window_us else "",
    )
    more = {"tideserve.batching": scenario.mode.value}
    if scenario.mode is BatchingMode.SLO:
        more["tideserve.latency_target"] = f"{scenario.target_s:g}"
    text += "".join(
        f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'
        for key, value in more.items()
    )
    config.write_text(text)


async def _drive(address: str, http: str, scenario: Scenario, replicas: int) -> Measured:
    async with Client(address, timeout_s=_TIMEOUT_S, retry=NO_RETRY) as client:
        await _warm(client, replicas)
        link_s = await _link_s(client, http)
        before, early = (await client.statistics(MODEL))[0], counters(http)
        took_s = await _send(client, scenario.arrived_s)
        after, late = (await client.statistics(MODEL))[0], counters(http)
    rows = after.inference_count - before.inference_count
    batches = after.execution_count - before.execution_count
    answered = took_s[np.isfinite(took_s)]
    return Measured(
        attainment=(late.in_time - early.in_time) / len(took_s),
        seen=float(np.mean(took_s <= scenario.target_s)),
        batch_s=(late.busy_s - early.busy_s) / batches,
        link_s=link_s,
        p99_s=float(np.quantile(answered, 0.99)),
        mean_batch_rows=rows / batches,
    )


@dataclass(slots=True)
class Counters:
    """What the server exported: answers within the target, seconds of batches, of answers from
    their arrival and of these in the queue."""

    in_time: float = 0.0
    busy_s: float = 0.0
    latency_s: float = 0.0
    queued_s: float = 0.0


def counters(http: str) -> Counters:
    """As of now."""
    return read_counters(httpx.get(f"http://{http}/metrics", timeout=_TIMEOUT_S).text)


def read_counters(text: str) -> Counters:
    """Of the stand-in, which is the only model."""
    found = Counters()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            match sample.name:
                case "tideserve_latency_seconds_bucket":
                    if float(sample.labels["le"]) == TARGET_S:
                        found.in_time += sample.value
                case "tideserve_compute_seconds_sum":
                    found.busy_s += sample.value
                case "tideserve_latency_seconds_sum":
                    found.latency_s += sample.value
                case "tideserve_queue_wait_seconds_sum":
                    found.queued_s += sample.value
    return found


async def _link_s(client: Client, http: str) -> float:
    """Of one request at a time, what is neither its wait nor its batch: the way there and back."""
    row = np.zeros((1, 16), np.float32)
    early = counters(http)
    for _ in range(_LONE):
        await client.infer(MODEL, {"IN": row})
    late = counters(http)
    both_s = (
        (late.latency_s - early.latency_s)
        - (late.queued_s - early.queued_s)
        - (late.busy_s - early.busy_s)
    )
    return max(0.0, both_s / _LONE / 2.0)


async def _warm(client: Client, replicas: int) -> None:
    """Until every replica is there and batch times are known."""
    row = np.zeros((1, 16), np.float32)
    for _ in range(6):
        await asyncio.gather(*(client.infer(MODEL, {"IN": row}) for _ in range(8 * replicas)))


async def _send(client: Client, arrived_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Seconds from when each was due to its answer; inf without one."""
    took_s = np.full(len(arrived_s), np.inf)
    rows = np.random.default_rng(2).random((64, 1, 16), dtype=np.float32)

    async def call(number: int, due_s: float) -> None:
        row = rows[number % len(rows)]
        try:
            found = await client.infer(MODEL, {"IN": row})
        except TideserveClientError:
            return
        assert np.array_equal(found["OUT"], row), "another caller's answer"
        took_s[number] = time.monotonic() - due_s

    began_s = time.monotonic() + 0.1
    async with asyncio.TaskGroup() as calls:
        for number, due_s in _due(arrived_s, began_s):
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            calls.create_task(call(number, due_s))
    return took_s


def _due(arrived_s: NDArray[np.float64], began_s: float) -> Iterator[tuple[int, float]]:
    for number, at_s in enumerate(arrived_s.tolist()):
        yield number, began_s + at_s


def cells_of(real: Measured, found: Forecast) -> tuple[str, ...]:
    return (
        f"{real.attainment:.1%}",
        f"{found.attainment:.1%} ± {found.chance * 100.0:.1f}",
        f"{real.seen:.1%}",
        f"{real.mean_batch_rows:.2f}",
        f"{found.mean_batch_rows:.2f}",
        f"{real.p99_s * 1e3:.0f} ms",
        f"{found.p99_s * 1e3:.0f} ms",
        f"{real.link_s * 1e3:.1f} ms",
    )


if __name__ == "__main__":
    main()
