"""Triton's perf_analyzer, unmodified, against a running server: does it work, without errors?

It takes a third of the CPU itself, so its rates are not compared, but for tensors in shared memory:
no other load generator has those.
"""

import csv
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.checker import Checker
from benchmarks.errors import LoadFailedError, NotInstalledError
from benchmarks.peers.peer import Peer
from benchmarks.workloads import Workload

ENVIRONMENT: Final = Path(__file__).resolve().parents[1] / ".cache" / "bench-perf"
CONCURRENCIES: Final = (1, 16, 64)
# Of the runs whose tensors lie in shared memory.
SHARED_CONCURRENCIES: Final = (16, 1)
_WINDOW_MS: Final = 1000
_TIMEOUT_S: Final = 60
_ATTEMPTS: Final = 3
_UNSTEADY: Final = "Failed to obtain stable measurement"
_TROUBLE: Final = re.compile(r"error|fail|exception", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Analysis:
    """One run that ended without an error. `answered` is by the server's own counter."""

    server: str
    model: str
    concurrency: int
    streaming: bool
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    answered: int
    shared_memory: bool = False


def is_installed() -> bool:
    return (ENVIRONMENT / "bin" / "perf_analyzer").exists()


def analyze(
    peer: Peer,
    workload: Workload,
    concurrency: int,
    streaming: bool,
    *,
    shared_memory: bool = False,
) -> Analysis:
    """Runs it, again where only its rate was unsteady. Raises LoadFailedError when it reports any error or answers are missing."""
    if not is_installed():
        raise NotInstalledError(f"no perf_analyzer in {ENVIRONMENT}: make bench-setup")
    with (
        tempfile.TemporaryDirectory() as folder,
        Checker(peer, workload, seed=concurrency) as checker,
    ):
        report = Path(folder) / "report.csv"
        arguments = _arguments(peer.address, workload.model, concurrency, streaming, report)
        arguments += shared_arguments(workload) if shared_memory else []
        for _ in range(_ATTEMPTS):
            before = checker.success_count()
            code, output = _run(arguments)
            if not is_unsteady(code, output):
                break
        answered = checker.success_count() - before
        trouble = [line for line in output.splitlines() if _TROUBLE.search(line)]
        if code != 0 or trouble or not report.exists() or answered == 0:
            raise LoadFailedError(
                f"perf_analyzer on {peer.name}, {workload.model}, concurrency {concurrency}"
                f"{', streaming' if streaming else ''}{', shared memory' if shared_memory else ''}: exit code {code},"
                f" {answered} answered:\n{output[-2000:]}"
            )
        rate, p50_ms, p99_ms = parse_report(report.read_text())
    return Analysis(
        peer.name,
        workload.model,
        concurrency,
        streaming,
        rate,
        p50_ms,
        p99_ms,
        answered,
        shared_memory,
    )


def shared_arguments(workload: Workload) -> list[str]:
    """With a place that holds the output of a row."""
    room = str(workload.output.row_bytes)
    return ["--shared-memory", "system", "--output-shared-memory-size", room]


def is_unsteady(code: int, output: str) -> bool:
    """It gave up for the machine's sake: its windows differed too much, and nothing else."""
    trouble = [line for line in output.splitlines() if _TROUBLE.search(line)]
    return code != 0 and bool(trouble) and all(_UNSTEADY in line for line in trouble)


def parse_report(text: str) -> tuple[float, float, float]:
    """Requests a second, p50 and p99 in ms, from the one line of its CSV report."""
    lines = list(csv.DictReader(text.splitlines()))
    if len(lines) != 1:
        raise LoadFailedError(f"expected one line in perf_analyzer's report, got:\n{text}")
    line = lines[0]
    try:
        return (
            float(line["Inferences/Second"]),
            float(line["p50 latency"]) / 1e3,
            float(line["p99 latency"]) / 1e3,
        )
    except KeyError as error:
        raise LoadFailedError(f"perf_analyzer's report has no column {error}:\n{text}") from None


def _run(arguments: list[str]) -> tuple[int, str]:
    """Its exit code and all it printed; -SIGKILL where it did not end by itself."""
    process = subprocess.Popen(
        arguments,
        env={**os.environ, "LD_LIBRARY_PATH": _library_path()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        output, _ = process.communicate()
        output += f"\ndid not end in {_TIMEOUT_S} s"
    return process.returncode, output


def _arguments(
    address: str, model: str, concurrency: int, streaming: bool, report: Path
) -> list[str]:
    # Three windows, whatever they show: rates are not compared, and no shared machine is steady.
    return [
        str(ENVIRONMENT / "bin" / "perf_analyzer"),
        *("-m", model, "-u", address, "-i", "grpc"),
        *("--concurrency-range", str(concurrency)),
        *("-p", str(_WINDOW_MS), "-r", "3", "-s", "1000"),
        *("-f", str(report)),
        *(["--streaming"] if streaming else []),
    ]


def _library_path() -> str:
    """The wheel's program is linked to the CUDA runtime, which comes from a wheel as well."""
    folders = ENVIRONMENT.glob("lib/python3*/site-packages/nvidia/cuda_runtime/lib")
    return ":".join(map(str, folders))
