"""Whether memory stays flat over a million requests.

    python -m benchmarks.memory --requests 1000000

`identity` with one replica, 64 callers by h2load: the resident sizes of the frontend and of
the replica after each step. Then a shorter run with tracemalloc in the frontend, which tells
growth exactly, and where it is. Prints Markdown.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import numpy as np
import typer

from benchmarks.errors import ServerFailedError
from benchmarks.h2load import MANY_CALLERS, send
from benchmarks.models.repository import EXAMPLES
from benchmarks.process import ServerProcess, free_port
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
        readings = [server.resident(0)]
        for sent in range(0, requests, step):
            now = min(step, requests - sent)
            send(infer_target(server.address, message), now, MANY_CALLERS)
            readings.append(server.resident(sent + now))
            typer.echo(f"{readings[-1]}", err=True)
    typer.echo(table(readings))
    if traced:
        with _serving(front) as server:
            server.tell()
            # Until the windows of learned latencies are full, of rare batch sizes too.
            send(infer_target(server.address, message), traced, MANY_CALLERS)
            server.tell()
            send(infer_target(server.address, message), traced, MANY_CALLERS)
            grown, lines = server.tell()
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


class _Server:
    """One server with one replica of `identity`."""

    def __init__(self, process: ServerProcess, address: str, told: Path) -> None:
        self.address = address
        self._told = told
        self._frontend = process.pid
        self._replica = self._replica_pid()

    def resident(self, requests: int) -> Resident:
        return Resident(requests, _resident_bytes(self._frontend), _resident_bytes(self._replica))

    def tell(self) -> tuple[int, list[str]]:
        """Growth in bytes and the lines with most of it, as the frontend says them."""
        self._told.unlink(missing_ok=True)
        os.kill(self._frontend, signal.SIGUSR1)
        give_up_s = time.monotonic() + _TELL_TIMEOUT_S
        while not self._told.exists():
            if time.monotonic() > give_up_s:
                raise ServerFailedError(f"the server told nothing within {_TELL_TIMEOUT_S} s")
            time.sleep(0.01)
        said = json.loads(self._told.read_text())
        return said["bytes"], said["lines"]

    def _replica_pid(self) -> int:
        out = subprocess.run(
            [_tideserve(), "replicas", "--json", "--address", self.address],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        (replica,) = json.loads(out)
        pid: int = replica["pid"]
        return pid


@contextmanager
def _serving(front: str) -> Iterator[_Server]:
    with tempfile.TemporaryDirectory(prefix="tideserve-memory-") as name:
        folder = Path(name)
        shutil.copytree(EXAMPLES / IDENTITY.model, folder / "models" / IDENTITY.model)
        address = f"127.0.0.1:{free_port()}"
        arguments = [
            *(sys.executable, "-m", "benchmarks.memory.server", str(folder / "told.json"), "serve"),
            str(folder / "models"),
            f"--grpc-port={address.rpartition(':')[2]}",
            f"--http-port={free_port()}",
            f"--front={front}",
            "--replicas=1",
        ]
        process = ServerProcess(arguments, {}, folder / "log")
        process.start(lambda printed: "ready grpc=" in printed)
        try:
            yield _Server(process, address, folder / "told.json")
        finally:
            process.stop()


def _tideserve() -> str:
    return str(Path(sys.executable).with_name("tideserve"))


def _resident_bytes(pid: int) -> int:
    """From /proc/PID/statm, whose second field is in pages."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


if __name__ == "__main__":
    typer.run(main)
