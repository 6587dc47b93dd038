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

from benchmarks.process import ServerProcess
from tideserve.client import NO_RETRY, TideserveClientError
from tideserve.client.aio import Client
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
from tideserve.sim.book import Figures
from tideserve.sim.bound import most_in_time
from tideserve.sim.hardware import BatchTimes, Hardware
from tideserve.sim.scenario import Scenario, run_fixed

MODEL: Final = "accelerator_standin"
_SOURCE: Final = Path(__file__).parents[1] / "examples" / "models" / MODEL
# A tenth of the speed of the figures: 250 requests a second leave the machine idle enough
# for the caller to keep time. The target is a bound of the server's histogram.
A_MS, C_MS, TARGET_S = 10.53, 50.72, 0.25
MAX_ROWS: Final = 32
WINDOW_S: Final = 0.025
_READY: Final = re.compile(r"^ready grpc=(\S+) http=(\S+)", re.MULTILINE)
_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Measured:
    """`attainment`: share of arrivals answered within the target, by the server's count;
    `seen`: by the caller's clock, as the quantiles are. `batch_s`: what a batch took on
    average."""

    attainment: float
    seen: float
    batch_s: float
    p99_s: float
    mean_batch_rows: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Goodput of the batching modes, and its forecast.")
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--loads", default="0.7,0.9,1.0", help="shares of N b*/l(b*)")
    parser.add_argument(
        "--simulated",
        action="store_true",
        help="the issue's 8 replicas and 25 ms in the simulator only, late requests dropped",
    )
    options = parser.parse_args()
    if options.simulated:
        print(simulated(options.seconds))
        return
    table = Table(
        "load",
        "mode",
        "in time",
        "simulated",
        "mean batch",
        "simulated",
        "p50",
        "p99",
        "p99 simulated",
    )
    worst_points, worst_batch = 0.0, 0.0
    for load in map(float, options.loads.split(",")):
        for mode in BatchingMode:
            scenario = scenario_of(mode, load, options.replicas, options.seconds)
            real = measure(scenario, options.replicas)
            found = forecast(scenario, real, options.replicas)
            table.add_row(f"{load:g}", mode.value, *_cells(real, found))
            worst_points = max(worst_points, abs(real.attainment - found.attainment) * 100.0)
            ratio = real.mean_batch_rows / found.mean_batch_rows
            worst_batch = max(worst_batch, abs(ratio - 1.0))
    console = Console(width=120)
    console.print(table)
    console.print(
        f"largest difference: {worst_points:.1f} points in time, {worst_batch:.0%} in mean batch"
    )


def simulated(seconds: float) -> str:
    """A table: share in time of each rule, by load, and the most that any could have."""
    batch = BatchTimes.linear(1.053e-3, 5.072e-3)
    rules = "slo | eager | window 3 ms | Clipper, better of 12.5 and 25 ms | b\\*, 3 ms | Nexus"
    lines = [
        f"| replicas | arrivals | load | {rules} | most there is | slo idle >= 3 |",
        "|---" * 11 + "|",
    ]
    for replicas, cv, load in (
        (8, 1.0, 0.4),
        (8, 1.0, 0.7),
        (8, 1.0, 0.9),
        (8, 1.0, 1.0),
        (8, 1.0, 1.2),
        (8, 3.0, 0.7),
        (1, 1.0, 0.9),
    ):
        empty = Scenario(
            np.empty(0), seconds, 0.025, Hardware(batch), 64, on_late=OnLate.DROP, window_s=0.003
        )
        rows = empty.best_rows(replicas)
        rate = load * replicas * rows / batch.mean_s(rows)
        arrivals = Poisson(rate) if cv == 1.0 else Gamma(rate, cv)
        scenario = replace(empty, arrived_s=arrivals.times_s(seconds, np.random.default_rng(1)))
        runs = [
            run_fixed(replace(scenario, mode=mode), replicas, 1, assignment=rule)
            for mode, rule in (
                (BatchingMode.SLO, None),
                (BatchingMode.EAGER, None),
                (BatchingMode.WINDOW, None),
                (BatchingMode.EAGER, ClipperAssignment(ClipperSettings(target_s=0.0125))),
                (BatchingMode.EAGER, ClipperAssignment(ClipperSettings(target_s=0.025))),
                (BatchingMode.EAGER, FixedAssignment(FixedSettings(rows, timeout_s=0.003))),
                (BatchingMode.SLO, NexusAssignment(NexusSettings(target_s=0.025))),
            )
        ]
        slo, eager, window, half, whole, size, nexus = (run.figures.attainment for run in runs)
        most = most_in_time(
            scenario.arrived_s,
            replicas=replicas,
            batch=batch,
            target_s=scenario.target_s,
            max_rows=scenario.max_batch_rows,
        )
        shares = (slo, eager, window, max(half, whole), size, nexus, most)
        cells = " | ".join(f"{share:.2%}" for share in shares)
        idle = runs[0].book.idle_at_least.get(3, 0.0) / seconds
        kind = "Poisson" if cv == 1.0 else f"Gamma CV {cv:g}"
        lines.append(f"| {replicas} | {kind} | {load:g} | {cells} | {idle:.0%} of the time |")
    return "\n".join(lines)


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


def forecast(scenario: Scenario, real: Measured, replicas: int) -> Figures:
    """Of the simulator, with batches that take as much longer than the stand-in's sleep as they
    were measured to: Python and the link are not in its times."""
    more_s = (
        real.batch_s - scenario.hardware.batch.mean_s(1) - A_MS / 1e3 * (real.mean_batch_rows - 1.0)
    )
    batch = BatchTimes.linear(A_MS / 1e3, C_MS / 1e3 + more_s)
    return run_fixed(replace(scenario, hardware=Hardware(batch)), replicas, seed=1).figures


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
        before, early = (await client.statistics(MODEL))[0], counters(http)
        took_s = await _send(client, scenario.arrived_s)
        after, late = (await client.statistics(MODEL))[0], counters(http)
    rows = after.inference_count - before.inference_count
    batches = after.execution_count - before.execution_count
    answered = took_s[np.isfinite(took_s)]
    return Measured(
        attainment=(late["in_time"] - early["in_time"]) / len(took_s),
        seen=float(np.mean(took_s <= scenario.target_s)),
        batch_s=(late["busy_s"] - early["busy_s"]) / batches,
        p99_s=float(np.quantile(answered, 0.99)),
        mean_batch_rows=rows / batches,
    )


def counters(http: str) -> dict[str, float]:
    """Answers within the target and seconds of batches so far, as the server exports them."""
    text = httpx.get(f"http://{http}/metrics", timeout=_TIMEOUT_S).text
    found = {"in_time": 0.0, "busy_s": 0.0}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            bound = float(sample.labels.get("le", "nan"))
            if sample.name == "tideserve_latency_seconds_bucket" and bound == TARGET_S:
                found["in_time"] += sample.value
            if sample.name == "tideserve_compute_seconds_sum":
                found["busy_s"] += sample.value
    return found


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


def _cells(real: Measured, found: Figures) -> tuple[str, ...]:
    return (
        f"{real.attainment:.1%}",
        f"{found.attainment:.1%}",
        f"{real.seen:.1%}",
        f"{real.mean_batch_rows:.2f}",
        f"{found.mean_batch_rows:.2f}",
        f"{real.p99_s * 1e3:.0f} ms",
        f"{found.p99_s * 1e3:.0f} ms",
    )


if __name__ == "__main__":
    main()
