"""Bare ONNX Runtime, called directly in loops: what a model costs before any serving, and the limit
of what as many replicas could do."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Final

import numpy as np

from benchmarks.errors import ServerFailedError
from benchmarks.h2load import SAMPLES_OF_P999
from benchmarks.measure import Figures
from benchmarks.models.repository import model_file
from benchmarks.workloads import Workload

_TIMEOUT_S: Final = 300.0
_ROOT: Final = Path(__file__).resolve().parents[2]


def measure_ort(workload: Workload, rows: int, processes: int, seconds: float) -> Figures:
    """Figures of `processes` one-thread loops over batches of `rows` at the same time. A request
    is a row, latency a call's; rates and memory are sums.

    Raises ServerFailedError when a loop fails or its batches differ from single rows.
    """
    random = np.random.default_rng(1)
    feeds = [workload.random_feed(random) for _ in range(rows)]
    with tempfile.TemporaryDirectory() as name:
        feed, expected = Path(name) / "feed.npz", Path(name) / "expected.npy"
        joined = {
            tensor.name: np.concatenate([single[tensor.name] for single in feeds])
            for tensor in workload.inputs
        }
        np.savez(feed, **joined)  # type: ignore[arg-type]  # its stubs take names for options
        np.save(expected, np.concatenate(list(map(workload.answer, feeds))))
        arguments = [
            *(sys.executable, "-m", "benchmarks.peers.ort_loop"),
            *(str(model_file(workload.model)), str(feed), str(expected), str(seconds)),
        ]
        return together(_run(arguments, processes), rows)


def together(loops: Sequence[Mapping[str, float]], rows: int) -> Figures:
    """Of loops that ran at the same time: sums, and means of what is a call's."""
    calls = sum(loop["calls"] for loop in loops)
    known = all(loop["calls"] >= SAMPLES_OF_P999 for loop in loops)
    return Figures(
        requests_per_s=sum(loop["calls"] * rows / loop["seconds"] for loop in loops),
        p50_ms=fmean(loop["p50_s"] for loop in loops) * 1e3,
        p99_ms=fmean(loop["p99_s"] for loop in loops) * 1e3,
        p999_ms=fmean(loop["p999_s"] for loop in loops) * 1e3 if known else None,
        cpu_us=sum(loop["cpu_s"] for loop in loops) * 1e6 / (calls * rows),
        pss_mb=sum(loop["pss_bytes"] for loop in loops) / 1e6,
        requests=int(calls) * rows,
        checked=int(sum(loop["checked"] for loop in loops)) * rows,
    )


def _run(arguments: Sequence[str], processes: int) -> list[dict[str, float]]:
    """Starts all, lets them begin together once all are warm, returns what they printed."""
    pipe = subprocess.PIPE
    loops = [
        subprocess.Popen(arguments, cwd=_ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
        for _ in range(processes)
    ]
    try:
        for loop in loops:
            assert loop.stdout is not None
            if loop.stdout.readline() != "warm\n":
                raise ServerFailedError(f"ONNX Runtime's loop failed: {loop.communicate()[1]}")
        for loop in loops:
            assert loop.stdin is not None
            loop.stdin.write("begin\n")
            loop.stdin.flush()
        printed = [loop.communicate(timeout=_TIMEOUT_S) for loop in loops]
        for loop, (_, complaint) in zip(loops, printed, strict=True):
            if loop.returncode != 0:
                raise ServerFailedError(f"ONNX Runtime's loop failed: {complaint}")
        return [json.loads(output) for output, _ in printed]
    finally:
        for loop in loops:
            loop.kill()
            loop.communicate()
