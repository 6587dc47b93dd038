"""Whether memory stays flat over a million requests.

    python -m benchmarks.memory --requests 1000000

`identity` with one replica, 64 callers by h2load: the resident sizes of the frontend and of
the replica after each step. Then a shorter run with tracemalloc in the frontend, which tells
growth exactly, and where it is. Prints Markdown.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from benchmarks.h2load import MANY_CALLERS, send
from benchmarks.models.repository import EXAMPLES
from benchmarks.telling import TellingServer, telling
from benchmarks.wire import infer_target
from benchmarks.workloads import IDENTITY

_TELL_TIMEOUT_S: Final = 30.0
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Resident:
    """After so many requests."""

    requests: int
    frontend_bytes: int
    replica_bytes: int


def main(
    requests: Annotated[int, typer.Option(min=1)] = 1_000_000,
    step: Annotated[int, typer.Option(min=1, help="Requests between two readings.")] = 100_000,
    traced: Annotated[
        int,
        typer.Option(min=0, help="With tracemalloc, several times slower, after as many; 0: none."),
    ] = 100_000,
    front: Annotated[str, typer.Option(help="native or grpcio.")] = "native",
) -> None:
    """Measures and prints."""
    message = IDENTITY.request(IDENTITY.random_feed(np.random.default_rng(0)))
    with _serving(front) as server:
        readings = [_resident(server, 0)]
        for sent in range(0, requests, step):
            now = min(step, requests - sent)
            send(infer_target(server.address, message), now, MANY_CALLERS)
            readings.append(_resident(server, sent + now))
            typer.echo(f"{readings[-1]}", err=True)
    typer.echo(table(readings))
    if traced:
        with _serving(front) as server:
            server.tell()
            # Until the windows of learned latencies are full, of rare batch sizes too.
            send(infer_target(server.address, message), traced, MANY_CALLERS)
            server.tell()
            send(infer_target(server.address, message), traced, MANY_CALLERS)
            said = server.tell()
        grown, lines = said["bytes"], said["lines"]
        typer.echo(
            f"\nfrontend, tracemalloc: {grown:,} bytes more after {traced:,} more requests "
            f"({grown / traced:.3f} bytes a request)"
        )
        for line in lines:
            typer.echo(f"- {line}")


def table(readings: Sequence[Resident]) -> str:
    """Markdown, with the growth a request over the second half, in which nothing warms up."""
    rows = ["| requests | frontend MiB | replica MiB |", "| ---: | ---: | ---: |"]
    rows += [
        f"| {one.requests:,} | {one.frontend_bytes / 2**20:.1f} | {one.replica_bytes / 2**20:.1f} |"
        for one in readings
    ]
    frontend = slope([(one.requests, one.frontend_bytes) for one in readings])
    replica = slope([(one.requests, one.replica_bytes) for one in readings])
    rows.append(f"| bytes a request, second half | {frontend:.2f} | {replica:.2f} |")
    return "\n".join(rows)


def slope(points: Sequence[tuple[int, int]]) -> float:
    """Of the line through the second half of them, by least squares; 0 for fewer than two."""
    last = np.array(points[len(points) // 2 :], dtype=np.float64)
    if len(last) < 2:
        return 0.0
    return float(np.polyfit(last[:, 0], last[:, 1], 1)[0])


def _resident(server: TellingServer, requests: int) -> Resident:
    return Resident(requests, _resident_bytes(server.frontend), _resident_bytes(server.replica))


@contextmanager
def _serving(front: str) -> Iterator[TellingServer]:
    with tempfile.TemporaryDirectory(prefix="tideserve-memory-") as name:
        folder = Path(name)
        shutil.copytree(EXAMPLES / IDENTITY.model, folder / "models" / IDENTITY.model)
        with telling("benchmarks.memory.server", folder, [f"--front={front}"]) as server:
            yield server


def _resident_bytes(pid: int) -> int:
    """From /proc/PID/statm, whose second field is in pages."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


if __name__ == "__main__":
    typer.run(main)
