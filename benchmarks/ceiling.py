"""`python -m benchmarks.ceiling`: how fast a server could be at all beside the load generator.

nghttpd, the HTTP/2 server of nghttp2 in C++, takes the same requests in and answers each from a file
with as many bytes as the right answer has: no gRPC, no batch, no model, no other process. In turns
with Tideserve and Triton, 64 callers by h2load, on the same cores.
"""

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Final, NamedTuple

import typer

from benchmarks.checker import Checker
from benchmarks.errors import BenchmarkError, NotInstalledError, WrongAnswerError
from benchmarks.h2load import MANY_CALLERS, send
from benchmarks.measure import warm_up
from benchmarks.peers.peer import Peer
from benchmarks.peers.setup import Setup
from benchmarks.peers.tideserve import Tideserve
from benchmarks.peers.triton import Triton, is_installed
from benchmarks.process import ServerProcess, free_port
from benchmarks.wire import Target
from benchmarks.workloads import WORKLOADS, Workload

NAME: Final = "nghttpd (no gRPC, no model)"
_FILE: Final = "answer"
# Both windows of 1 GiB: neither side waits for the other's leave.
_WINDOW_BITS: Final = 30
_SEED: Final = 1
# Which of Triton's is best with large requests and 64 callers differs from run to run; one instance
# without delay never was.
_TRITON: Final = (Setup(1, 1000), Setup(2, 0), Setup(2, 1000))
_TIDESERVE: Final = Setup(1, 0)


class Round(NamedTuple):
    """What one run of load gave; `cpu_us` of all the server's processes, a request."""

    requests_per_s: float
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Contender:
    """A running server: what it is sent, how long its answers are, and its CPU time so far."""

    name: str
    target: Target
    answer_bytes: int
    cpu_seconds: Callable[[], float]

    def run(self, seconds: float) -> Round:
        """Raises WrongAnswerError for answers of another length."""
        rate = warm_up(self.target, MANY_CALLERS, seconds)
        requests = max(MANY_CALLERS.count, round(rate * seconds))
        before_s = self.cpu_seconds()
        load = send(self.target, requests, MANY_CALLERS)
        cpu_s = self.cpu_seconds() - before_s
        if load.data_bytes != requests * self.answer_bytes:
            raise WrongAnswerError(
                f"{self.name}: expected {requests} answers of {self.answer_bytes} bytes, "
                f"got {load.data_bytes} bytes"
            )
        return Round(load.requests_per_s, cpu_s / requests * 1e6)


def main(
    workloads: Annotated[
        str, typer.Option(help=f"Of {', '.join(WORKLOADS)}.")
    ] = "tensor_600k,intake_600k",
    rounds: Annotated[int, typer.Option(min=1, help="Of all servers in turn.")] = 7,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of load, for each.")] = 1.0,
    triton: Annotated[
        bool | None,
        typer.Option("--triton/--no-triton", help="Beside Triton. Default: where it is installed."),
    ] = None,
) -> None:
    """Measures and prints a table in Markdown; exits with 1 where that failed."""
    unknown = set(workloads.split(",")) - set(WORKLOADS)
    if unknown:
        raise typer.BadParameter(f"expected some of {', '.join(WORKLOADS)}, got {unknown.pop()!r}")
    if triton is None:
        triton = is_installed()
        if not triton:
            typer.echo("left out, not installed: Triton (make bench-setup)", err=True)
    typer.echo("| workload | server | requests/s | CPU us | of the ceiling |")
    typer.echo("|---|---|---:|---:|---:|")
    try:
        for workload in map(WORKLOADS.__getitem__, workloads.split(",")):
            measured = measure(workload, rounds, seconds, beside_triton=triton)
            for line in table(workload.model, measured):
                typer.echo(line)
    except BenchmarkError as error:
        typer.echo(f"failed: {error}", err=True)
        raise typer.Exit(1) from None


def measure(
    workload: Workload, rounds: int, seconds: float, *, beside_triton: bool
) -> dict[str, list[Round]]:
    """By server, nghttpd first. Raises NotInstalledError where that or Triton is missing."""
    _nghttpd()  # before servers start for nothing
    measured: dict[str, list[Round]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tideserve-ceiling-")))
        peers: list[Peer] = [Tideserve(_TIDESERVE, folder)]
        peers += [Triton(setup, folder) for setup in _TRITON if beside_triton]
        served = [_serve(peer, workload, stack) for peer in peers]
        contenders = [serve_ceiling(served[0], folder, stack), *served]
        for number in range(rounds):
            # To and fro, so that no one always comes after the same other.
            for contender in contenders if number % 2 else reversed(contenders):
                measured.setdefault(contender.name, []).append(contender.run(seconds))
    return {contender.name: measured[contender.name] for contender in contenders}


def table(workload: str, measured: dict[str, list[Round]]) -> list[str]:
    """Rows of Markdown, of medians."""
    middle = {name: _medians(rounds) for name, rounds in measured.items()}
    ceiling = middle[NAME].requests_per_s
    return [
        f"| {workload} | {name} | {rate:,.0f} | {cpu_us:.0f} | {rate / ceiling:.2f} |"
        for name, (rate, cpu_us) in middle.items()
    ]


def _medians(rounds: Sequence[Round]) -> Round:
    return Round(
        median(each.requests_per_s for each in rounds), median(each.cpu_us for each in rounds)
    )


def find_nghttpd() -> str | None:
    """Debian puts it where only root looks."""
    return shutil.which("nghttpd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def _nghttpd() -> str:
    """Raises NotInstalledError."""
    program = find_nghttpd()
    if program is None:
        raise NotInstalledError("nghttpd is not installed: apt-get install nghttp2-server")
    return program


def _serve(peer: Peer, workload: Workload, stack: ExitStack) -> Contender:
    """Until the stack ends. One answer is checked."""
    peer.start(workload)
    stack.callback(peer.stop)
    with Checker(peer, workload, _SEED) as checker:
        target, answer_bytes = checker.random_target()
    return Contender(peer.name, target, answer_bytes, peer.cpu_seconds)


def serve_ceiling(like: Contender, folder: Path, stack: ExitStack) -> Contender:
    """nghttpd until the stack ends, asked and answering with as many bytes as `like`. Raises
    NotInstalledError."""
    program = _nghttpd()
    documents = folder / "documents"
    documents.mkdir()
    (documents / _FILE).write_bytes(os.urandom(like.answer_bytes))
    port = free_port()
    process = ServerProcess(
        [
            *(program, "--no-tls", "--address=127.0.0.1", f"--htdocs={documents}"),
            *(f"--window-bits={_WINDOW_BITS}", f"--connection-window-bits={_WINDOW_BITS}"),
            str(port),
        ],
        {},
        folder / "nghttpd.log",
    )
    process.start(lambda _: _accepts(port))
    stack.callback(process.stop)
    target = replace(like.target, url=f"http://127.0.0.1:{port}/{_FILE}")
    return Contender(NAME, target, like.answer_bytes, process.cpu_seconds)


def _accepts(port: int) -> bool:
    """It prints nothing."""
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


if __name__ == "__main__":
    typer.run(main)
