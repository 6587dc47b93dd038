"""`python -m benchmarks`: measures, prints the tables, writes the JSON; see README.md."""

import argparse
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from benchmarks import perf_analyzer
from benchmarks.errors import BenchmarkError
from benchmarks.h2load import CALLERS
from benchmarks.peers import triton
from benchmarks.peers.echo import GrpcioEcho
from benchmarks.peers.peer import Peer
from benchmarks.peers.setup import TIDESERVE_SETUPS, TRITON_SETUPS, Setup
from benchmarks.peers.tideserve import Tideserve
from benchmarks.peers.triton import Triton
from benchmarks.perf_analyzer import CONCURRENCIES, SHARED_CONCURRENCY, Analysis, analyze
from benchmarks.report import analysis_table, load_table, write_json
from benchmarks.rounds import Measured, run_rounds
from benchmarks.workloads import WORKLOADS

FOLDER: Final = Path(__file__).resolve().parents[1] / ".cache" / "bench"
PEERS: Final = ("tideserve", "triton", "grpcio", "ort")
PARTS: Final = ("load", "perf_analyzer")
# Wide enough for the table where the output goes to a file.
_FILE_COLUMNS: Final = 132


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when all that was asked for was measured and every answer was right."""
    console = Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS)
    options = _parse(arguments)
    for name in _left_out(options):
        console.print(f"left out, not installed: {name} (make bench-setup)", style="yellow")
    peers = _peers(options)
    measured: Measured = {}
    analyses: list[Analysis] = []
    try:
        if "load" in options.parts:
            run_rounds(
                peers,
                [WORKLOADS[name] for name in options.workloads],
                [CALLERS[count] for count in options.callers],
                options.rounds,
                options.seconds,
                "ort" in options.peers,
                measured,
                console.log,
            )
        if "perf_analyzer" in options.parts:
            analyzed = [peer for peer in peers if _is_analyzed(peer, options.peers)]
            for peer in analyzed[:1]:
                _analyze_all(peer, options.workloads, analyses, console)
    except BenchmarkError as error:
        console.print(f"[bold red]failed:[/] {escape(str(error))}", highlight=False)
        return 1
    finally:
        if measured:
            console.print(load_table(measured))
        if analyses:
            console.print(analysis_table(analyses))
        path = write_json(FOLDER, measured, analyses, options.seconds, datetime.now(UTC))
        console.print(f"every round: {path}", highlight=False, soft_wrap=True)
    return 0


def _analyze_all(
    peer: Peer, workloads: Sequence[str], analyses: list[Analysis], console: Console
) -> None:
    """Adds to `analyses`, so that those before a failed one are kept."""
    peer.start()
    try:
        for name in workloads:
            for streaming in (False, True):
                for concurrency in CONCURRENCIES:
                    calls = "stream" if streaming else "unary"
                    console.log(f"perf_analyzer: {peer.name}, {name}, {concurrency} {calls}")
                    analyses.append(analyze(peer, WORKLOADS[name], concurrency, streaming))
            if isinstance(peer, Tideserve):
                console.log(f"perf_analyzer: {peer.name}, {name}, shared memory")
                analyses.append(
                    analyze(
                        peer,
                        WORKLOADS[name],
                        SHARED_CONCURRENCY,
                        streaming=False,
                        shared_memory=True,
                    )
                )
    finally:
        peer.stop()


def _is_analyzed(peer: Peer, names: Sequence[str]) -> bool:
    """Ours; Triton itself only where ours is left out. The echo answers no metadata."""
    return isinstance(peer, Tideserve if "tideserve" in names else Triton)


def _peers(options: argparse.Namespace) -> list[Peer]:
    peers: list[Peer] = []
    if "tideserve" in options.peers:
        peers += [Tideserve(setup, FOLDER) for setup in options.tideserve]
    if "triton" in options.peers:
        peers += [Triton(setup, FOLDER) for setup in options.triton]
    if "grpcio" in options.peers:
        peers.append(GrpcioEcho(FOLDER))
    return peers


def _left_out(options: argparse.Namespace) -> list[str]:
    """Drops what is not installed from what runs by default; what was named must be there."""
    left_out = []
    if options.peers is None:
        options.peers = list(PEERS)
        if not triton.is_installed():
            options.peers.remove("triton")
            left_out.append("Triton")
    if options.parts is None:
        options.parts = list(PARTS)
        if not perf_analyzer.is_installed():
            options.parts.remove("perf_analyzer")
            left_out.append("perf_analyzer")
    return left_out


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=_positive_int, default=3)
    parser.add_argument("--seconds", type=_positive_float, default=5.0, help="of each run")
    parser.add_argument("--peers", type=_names(PEERS), help=",".join(PEERS))
    parser.add_argument("--parts", type=_names(PARTS), help=",".join(PARTS))
    parser.add_argument("--workloads", type=_names(tuple(WORKLOADS)), default=list(WORKLOADS))
    parser.add_argument("--callers", type=_counts, default=[64, 1], help="64,1")
    for name, setups in (("--tideserve", TIDESERVE_SETUPS), ("--triton", TRITON_SETUPS)):
        parser.add_argument(
            name,
            type=_setups,
            default=list(setups),
            help=f"INSTANCES:QUEUE_DELAY_US, default {','.join(map(str, setups))}",
        )
    options = parser.parse_args(arguments)
    unknown = set(options.callers) - set(CALLERS)
    if unknown:
        parser.error(f"--callers: expected some of {sorted(CALLERS)}, got {sorted(unknown)}")
    return options


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Reads a comma-separated list of some of `known`."""

    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(
                    f"expected some of {', '.join(known)}, got {name!r}"
                )
        return names

    return read


def _counts(text: str) -> list[int]:
    return [_positive_int(part) for part in text.split(",")]


def _setups(text: str) -> list[Setup]:
    setups = []
    for part in text.split(","):
        instances, colon, delay_us = part.partition(":")
        if not (colon and instances.isdecimal() and delay_us.isdecimal() and int(instances) > 0):
            raise argparse.ArgumentTypeError(f"expected INSTANCES:QUEUE_DELAY_US, got {part!r}")
        setups.append(Setup(int(instances), int(delay_us)))
    return setups


def _positive_int(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {value}")
    return value


def _positive_float(text: str) -> float:
    value = float(text)
    if not value > 0.0:
        raise argparse.ArgumentTypeError(f"expected more than 0, got {value}")
    return value


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
