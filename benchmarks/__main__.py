"""`python -m benchmarks`: measures, prints the tables, writes JSON, Markdown and a chart; see README.md."""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from rich.console import Console
from rich.markup import escape

from benchmarks import perf_analyzer
from benchmarks.errors import BenchmarkError
from benchmarks.h2load import CALLERS, Callers
from benchmarks.models.repository import is_available
from benchmarks.peers import mosec, triton
from benchmarks.peers.echo import GrpcioEcho
from benchmarks.peers.mosec import Mosec
from benchmarks.peers.peer import Peer
from benchmarks.peers.setup import LONE_CALLERS, Setup, default_setups
from benchmarks.peers.tideserve import Tideserve
from benchmarks.peers.triton import Triton
from benchmarks.perf_analyzer import CONCURRENCIES, SHARED_CONCURRENCIES, Analysis, analyze
from benchmarks.picture import draw
from benchmarks.report import analysis_table, document, load_table, write
from benchmarks.rounds import Entry, Run
from benchmarks.workloads import WORKLOADS, Workload

FOLDER: Final = Path(__file__).resolve().parents[1] / ".cache" / "bench"
PEERS: Final = ("tideserve", "triton", "mosec", "grpcio", "ort")
# digits_onnx costs as little as identity, intake_600k is half of tensor_600k: left to those who ask.
DEFAULT_WORKLOADS: Final = ("identity", "tensor_600k", "convolutional", "sentence")
PARTS: Final = ("load", "open", "perf_analyzer")
# Those whose replicas and delay are varied.
_BATCHING: Final[Mapping[str, Callable[[Setup, Path], Peer]]] = {
    "tideserve": Tideserve,
    "triton": Triton,
    "mosec": Mosec,
}
# Wide enough for the table where the output goes to a file.
_FILE_COLUMNS: Final = 180


def main(arguments: Sequence[str]) -> int:
    """Returns 0 when all that was asked for was measured and every answer was right."""
    console = Console(width=None if sys.stdout.isatty() else _FILE_COLUMNS)
    options = parse(arguments)
    for name in _left_out(options):
        console.print(f"left out, not installed: {name} (make bench-setup)", style="yellow")
    run = Run(options.seconds, console.log)
    analyses: list[Analysis] = []
    entries = [entry(WORKLOADS[name], options) for name in options.workloads]
    try:
        if "load" in options.parts:
            run.closed(entries, options.rounds)
        if "open" in options.parts:
            run.open(entries, options.open, options.open_rounds)
        if "perf_analyzer" in options.parts:
            for name in options.analyzed:
                _analyze(WORKLOADS[name], options, analyses, console)
    except BenchmarkError as error:
        run.failures.append(str(error))
    finally:
        _report(run, analyses, console)
    for failure in run.failures:
        console.print(f"[bold red]failed:[/] {escape(failure)}", highlight=False)
    return 1 if run.failures else 0


def _report(run: Run, analyses: list[Analysis], console: Console) -> None:
    """Prints and writes what there is, also of a run that was stopped."""
    if run.measured:
        console.print(load_table(run.measured))
    if analyses:
        console.print(analysis_table(analyses))
    now = datetime.now(UTC)
    about = document(run.measured, analyses, run.seconds, now)
    path = write(FOLDER, run.measured, about, now, analyses)
    written = [path, path.with_suffix(".md")]
    if draw(about, path.with_suffix(".png")):
        written.append(path.with_suffix(".png"))
    console.print("every round: " + ", ".join(map(str, written)), highlight=False, soft_wrap=True)


def _analyze(
    workload: Workload, options: argparse.Namespace, analyses: list[Analysis], console: Console
) -> None:
    """All ways to call ours, and tensors in shared memory of ours and of Triton; all of Triton only
    where ours is left out. Adds to `analyses`, so that those before a failed one are kept."""
    peers = [peer for peer, _ in entry(workload, options).peers]
    chosen: list[Peer] = []
    for kind in (Tideserve, Triton):
        chosen += [peer for peer in peers if isinstance(peer, kind)][:1]
    for place, peer in enumerate(chosen):
        peer.start(workload)
        try:
            for case in analysis_cases(is_first=place == 0):
                console.log(f"perf_analyzer: {peer.name}, {workload.model}, {case}")
                analyses.append(
                    analyze(
                        peer,
                        workload,
                        case.concurrency,
                        case.streaming,
                        shared_memory=case.shared_memory,
                    )
                )
        finally:
            peer.stop()


class AnalysisCase(NamedTuple):
    """One run of perf_analyzer."""

    concurrency: int
    streaming: bool = False
    shared_memory: bool = False

    def __str__(self) -> str:
        shared = ", shared memory" if self.shared_memory else ""
        return f"{self.concurrency} {'stream' if self.streaming else 'unary'}{shared}"


def analysis_cases(*, is_first: bool) -> list[AnalysisCase]:
    """Of one server: the first has all."""
    calls = [AnalysisCase(count, it) for it in (False, True) for count in CONCURRENCIES]
    shared = [AnalysisCase(count, shared_memory=True) for count in SHARED_CONCURRENCIES]
    return [*(calls if is_first else []), *shared]


def entry(workload: Workload, options: argparse.Namespace) -> Entry:
    """What the options ask of one workload."""
    callers = [CALLERS[count] for count in options.callers]
    peers: list[tuple[Peer, Sequence[Callers]]] = []
    instances: set[int] = set()
    for name, kind in _BATCHING.items():
        if name in options.peers:
            given = getattr(options, name)
            setups = given or default_setups(workload.computes)
            if name == "tideserve" and given is None and not workload.computes:
                setups = [*setups, LONE_CALLERS]
            for setup in setups:
                groups = [
                    group for group in callers if given or _is_for(setup, is_lone=group.count == 1)
                ]
                peers.append((kind(setup, FOLDER), groups))
                instances.add(setup.instances)
    # It shows what a call costs; beside a model that computes that says nothing.
    if "grpcio" in options.peers and workload.echoes:
        peers.append((GrpcioEcho(FOLDER), callers))
    bare = sorted(instances or {1}) if "ort" in options.peers else []
    return Entry(workload, peers, bare)


def _is_for(setup: Setup, *, is_lone: bool) -> bool:
    """Whether it is measured where it was not asked for: a lone caller would only wait for a delay
    to pass."""
    return not setup.queue_delay_us if is_lone else not setup.busy_poll_us


def _left_out(options: argparse.Namespace) -> list[str]:
    """Drops what is not installed from what runs by default; what was named must be there."""
    left_out = []
    if options.peers is None:
        options.peers = list(PEERS)
        if not triton.is_installed():
            options.peers.remove("triton")
            left_out.append("Triton")
        if not mosec.is_installed():
            options.peers.remove("mosec")
            left_out.append("mosec")
    if options.workloads is None:
        options.workloads = [name for name in DEFAULT_WORKLOADS if is_available(name)]
        left_out += sorted(set(DEFAULT_WORKLOADS) - set(options.workloads))
    if options.parts is None:
        options.parts = list(PARTS)
        if not perf_analyzer.is_installed():
            options.parts.remove("perf_analyzer")
            left_out.append("perf_analyzer")
    return left_out


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options; those of what may be missing are None where they were not given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=_positive_int, default=2)
    parser.add_argument("--seconds", type=_positive_float, default=1.0, help="of each run")
    parser.add_argument("--peers", type=_names(PEERS), help=",".join(PEERS))
    parser.add_argument("--parts", type=_names(PARTS), help=",".join(PARTS))
    parser.add_argument(
        "--workloads", type=_names(tuple(WORKLOADS)), help=f"default {','.join(DEFAULT_WORKLOADS)}"
    )
    parser.add_argument(
        "--analyzed",
        type=_names(tuple(WORKLOADS)),
        default=["identity"],
        help="workloads of perf_analyzer, default identity",
    )
    parser.add_argument("--callers", type=_counts, default=[64, 16, 1], help="64,16,1")
    parser.add_argument(
        "--open", type=_counts, default=[50, 80, 95], help="percents of capacity, 50,80,95"
    )
    parser.add_argument("--open-rounds", type=_positive_int, default=1)
    light, computing = (",".join(map(str, default_setups(computes))) for computes in (False, True))
    for name in _BATCHING:
        parser.add_argument(
            f"--{name}",
            type=_setups if name == "tideserve" else _plain_setups,
            help=f"INSTANCES:QUEUE_DELAY_US, default {light}; {computing} for models that compute"
            + ("; and :BUSY_POLL_US" if name == "tideserve" else ""),
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
        numbers = part.split(":")
        if not (2 <= len(numbers) <= 3 and all(map(str.isdecimal, numbers)) and int(numbers[0])):
            raise argparse.ArgumentTypeError(
                f"expected INSTANCES:QUEUE_DELAY_US[:BUSY_POLL_US], got {part!r}"
            )
        setups.append(Setup(*map(int, numbers)))
    return setups


def _plain_setups(text: str) -> list[Setup]:
    setups = _setups(text)
    if any(setup.busy_poll_us for setup in setups):
        raise argparse.ArgumentTypeError(f"expected no BUSY_POLL_US, got {text!r}")
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
