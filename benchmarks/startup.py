"""`python -m benchmarks.startup [--containers IMAGE]`: how long replicas take from launch to READY.

20 starts of each tier, by the phases that replicas report: a new one, and a standby that is given
its model (what it did before is not counted).
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import grpc
from rich.console import Console
from rich.table import Table

from examples.demo import repository
from examples.demo.server import Running, serving
from tideserve.client import Client
from tideserve.v1.control_pb2 import READY, STANDBY, Snapshot, WatchRequest
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import CONTROL_SERVICE

STARTS: Final = 20
_TIMEOUT_S: Final = 60.0
# A standby has these behind it when it is given a model.
_BEFORE: Final = ("launch", "import")


def main() -> None:
    parser = argparse.ArgumentParser(description="How long replicas take to become READY.")
    parser.add_argument("--containers", metavar="IMAGE", help="replicas as containers of it")
    options = parser.parse_args()
    table = Table("tier", "median ms", "worst ms", "by phase, median ms")
    for tier, standby in (("new", 0), ("standby", 1)):
        found = _measure(options.containers, standby)
        totals = [sum(phases.values()) * 1e3 for phases in found]
        by_phase = ", ".join(
            f"{name} {statistics.median(phases[name] for phases in found) * 1e3:.0f}"
            for name in found[0]
        )
        table.add_row(tier, f"{statistics.median(totals):.0f}", f"{max(totals):.0f}", by_phase)
    Console().print(table)


def _measure(image: str | None, standby: int) -> list[dict[str, float]]:
    """Start-ups by phase, in seconds."""
    with tempfile.TemporaryDirectory(prefix="tideserve-startup-") as name:
        folder = Path(name)
        models, autoscaler = repository.write(folder)
        more = repository.add_containers(image, folder, models, autoscaler) if image else []
        text = autoscaler.read_text(encoding="utf-8")
        # A prepared one cannot say when it was launched.
        text = text.replace("standby: 1", f"standby: {standby}").replace(
            "prepared: 2", "prepared: 0"
        )
        autoscaler.write_text(text, encoding="utf-8")
        with serving(models, autoscaler, folder, more) as server:
            return list(_starts(server, standby))


def _starts(server: Running, standby: int) -> Iterator[dict[str, float]]:
    with Client(server.address, token=server.token) as client:
        for _ in range(STARTS):
            client.scale(repository.MODEL, 0, duration_s=600.0)
            _wait(
                server,
                lambda s: not _ready(s) and sum(r.state == STANDBY for r in s.replicas) == standby,
            )
            client.scale(repository.MODEL, 1, duration_s=600.0)
            (phases,) = _ready(_wait(server, lambda s: bool(_ready(s))))
            yield {
                name: seconds
                for name, seconds in phases.items()
                if not (standby and name in _BEFORE)
            }


def _ready(snapshot: Snapshot) -> list[dict[str, float]]:
    return [
        {phase.name: phase.duration_s for phase in replica.phases}
        for replica in snapshot.replicas
        if replica.state == READY
    ]


def _wait(server: Running, is_true: Callable[[Snapshot], bool]) -> Snapshot:
    """The first snapshot of which it is."""
    ends_s = time.monotonic() + _TIMEOUT_S
    with grpc.insecure_channel(server.address) as channel:
        watch = channel.unary_stream(
            f"/{CONTROL_SERVICE}/Watch",
            request_serializer=WatchRequest.SerializeToString,
            response_deserializer=Snapshot.FromString,
        )
        call = watch(WatchRequest(interval_s=0.2), metadata=((TOKEN_METADATA_KEY, server.token),))
        for snapshot in call:
            if is_true(snapshot):
                call.cancel()
                return snapshot
            assert time.monotonic() < ends_s, server.log.read_text(encoding="utf-8")
    raise AssertionError("the server ended the Watch")


if __name__ == "__main__":
    main()
