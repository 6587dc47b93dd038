"""`python -m examples.demo`: starts a server, drives the load, checks every answer.

Ends with a summary, a picture and a JSON file; with exit code 1 where a call failed, an answer
was wrong, or replicas did not follow. `--containers IMAGE` has them run as containers of the local
Docker Engine (`.ci/engine` makes the image), reached by the address of its bridge.
"""

import argparse
import asyncio
import json
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.live import Live
from rich.table import Table

from examples.demo import picture, repository
from examples.demo.load import Load
from examples.demo.recording import Figures, Moment, Recorder, ended, figures
from examples.demo.scenario import PHASES, Phase, arrivals, duration_s, starts
from examples.demo.server import DemoFailed, Running, serving

_SETTLE_S: Final = 1.0  # of the recording, after the last answer
_SEED: Final = 7


def main() -> int:
    options = _options()
    console = Console()
    with tempfile.TemporaryDirectory(prefix="tideserve-demo-") as name:
        folder = Path(name)
        models, autoscaler = repository.write(folder)
        more: list[str] = []
        if options.containers:
            more = repository.add_containers(options.containers, folder, models, autoscaler)
        try:
            with serving(models, autoscaler, folder, more) as server:
                console.print(f"serving at {server.address}; {duration_s(PHASES):.0f} s of load")
                moments, load = asyncio.run(_run(server, console))
        except DemoFailed as error:
            console.print(f"failed: {error}")
            return 1
    found = figures(moments, load.answers, PHASES)
    options.out.mkdir(parents=True, exist_ok=True)
    what = "replicas as containers" if options.containers else "replicas as processes"
    note = (
        f"make demo, {time.strftime('%Y-%m-%d')}, {what}: digits model behind a stand-in that sleeps "
        f"10 ms a row and 20 ms a batch; {found.requests} requests, {found.failed} failed"
    )
    picture.draw(moments, PHASES, repository.TARGET_S, note, options.out / "demo.png")
    (options.out / "demo.json").write_text(
        json.dumps(
            {
                "figures": asdict(found),
                "failures": load.answers.failures,
                "moments": [asdict(moment) for moment in moments],
            },
            indent=1,
        ),
        encoding="utf-8",
    )
    console.print(_summary(found))
    for sentence, count in load.answers.failures.most_common(5):
        console.print(f"{count} x {sentence}")
    console.print(f"picture: {options.out / 'demo.png'}")
    missing = _missing(found)
    for sentence in missing:
        console.print(f"failed: {sentence}")
    return 1 if missing else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Replicas that follow a scripted load.")
    parser.add_argument("--out", type=Path, default=Path(".cache/demo"), help="folder for results")
    parser.add_argument("--containers", metavar="IMAGE", help="replicas as containers of it")
    return parser.parse_args()


async def _run(server: Running, console: Console) -> tuple[list[Moment], Load]:
    load = Load(server.address)
    began_s = time.monotonic() + 0.5
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        recorder = Recorder(
            server.address,
            server.token,
            PHASES,
            lambda moment: live.update(_now(moment, load), refresh=False),
        )
        recording = asyncio.create_task(recorder.run(began_s))
        await load.run(arrivals(PHASES, _SEED), began_s)
        await asyncio.sleep(max(_SETTLE_S, began_s + duration_s(PHASES) - time.monotonic()))
        await ended(recording)
    return recorder.moments, load


def _now(moment: Moment, load: Load) -> Table:
    table = Table("second", "phase", "requests/s", "ready", "starting", "desired", "queue p95")
    p95_s = moment.queue_p95_s
    table.add_row(
        f"{moment.at_s:.0f}",
        _phase_at(moment.at_s).name,
        f"{moment.rate:.0f}",
        "#" * moment.ready or "0",
        "+" * moment.starting or "0",
        str(moment.desired),
        "-" if p95_s is None else f"{p95_s * 1e3:.0f} ms",
    )
    table.caption = (
        f"{len(load.answers.latencies)} answers, {sum(load.answers.failures.values())} failed, "
        f"{load.answers.waiting} waiting; {moment.reason}"
    )
    return table


def _phase_at(at_s: float) -> Phase:
    found = PHASES[0]
    for begin_s, phase in starts(PHASES):
        if at_s >= begin_s:
            found = phase
    return found


def _summary(found: Figures) -> Table:
    table = Table("figure", "value", title="one to N to one, to zero and back")
    table.add_row("requests, failed", f"{found.requests}, {found.failed}")
    table.add_row("most READY replicas", str(found.most_ready))
    table.add_row("step to one READY more", _seconds(found.first_ready_s))
    table.add_row("first answer after zero", _seconds(found.wake_s))
    table.add_row("replica-seconds", f"{found.replica_s:.0f}")
    for phase, latency_s in found.latency_p95_s.items():
        table.add_row(f"latency p95, {phase}", f"{latency_s * 1e3:.0f} ms")
    return table


def _seconds(value: float | None) -> str:
    return "never" if value is None else f"{value * 1e3:.0f} ms"


def _missing(found: Figures) -> list[str]:
    """What the demo promises and this run did not show."""
    promises = (
        (found.failed == 0, f"expected no failed call, got {found.failed}"),
        (found.most_ready >= 3, f"expected 3 or more replicas, got {found.most_ready}"),
        (found.fewest_ready_after == 0, "expected no replica left in the phase without load"),
        (found.last_ready >= 1, "expected a replica again at the end"),
    )
    return [sentence for kept, sentence in promises if not kept]


if __name__ == "__main__":
    sys.exit(main())
