"""Bare ONNX Runtime, called directly in a loop: what a model costs before any serving.

`python -m benchmarks.peers.ort_loop MODEL ROWS SECONDS` prints the figures as JSON; it is
a process of its own so that the CPU time is the model's alone.
"""

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort

from benchmarks.errors import ServerFailedError, WrongAnswerError
from benchmarks.measure import CHECKED_SHARE, Figures
from benchmarks.workloads import MODELS, TOLERANCE, WORKLOADS, Rows

_WARM_UP_CALLS: Final = 50
_ROOT: Final = Path(__file__).resolve().parents[2]


def measure_ort(model: str, rows: int, seconds: float) -> Figures:
    """Figures of one thread that runs batches of `rows`; a request is a row, latency a call's."""
    arguments = [sys.executable, "-m", "benchmarks.peers.ort_loop", model, str(rows), str(seconds)]
    done = subprocess.run(
        arguments, cwd=_ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode != 0:
        raise ServerFailedError(f"ONNX Runtime's loop failed: {done.stderr[-2000:]}")
    return Figures(**json.loads(done.stdout))


def _loop(model: str, rows: int, seconds: float) -> Figures:
    workload = WORKLOADS[model]
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        MODELS / model / "1" / "model.onnx", options, providers=["CPUExecutionProvider"]
    )
    random = np.random.default_rng(1)
    singles = [workload.random_row(random) for _ in range(rows)]
    batch, expected = np.concatenate(singles), np.concatenate(list(map(workload.answer, singles)))
    feed, outputs = {workload.input_name: batch}, [workload.output_name]
    for _ in range(_WARM_UP_CALLS):
        session.run(outputs, feed)
    durations_s: list[float] = []
    kept: list[Rows] = []
    keep_every = round(1 / CHECKED_SHARE)
    cpu_before_s, now_s = time.process_time(), time.perf_counter()
    start_s = now_s
    while now_s < start_s + seconds:
        answer = session.run(outputs, feed)[0]
        began_s, now_s = now_s, time.perf_counter()
        durations_s.append(now_s - began_s)
        if len(durations_s) % keep_every == 0:
            kept.append(answer)
    cpu_s = time.process_time() - cpu_before_s
    for answer in kept:
        if not np.allclose(answer, expected, rtol=0.0, atol=TOLERANCE):
            raise WrongAnswerError(f"{model}: batches of {rows} differ from single rows")
    done = len(durations_s) * rows
    return Figures(
        requests_per_s=done / (now_s - start_s),
        p50_ms=float(np.percentile(durations_s, 50)) * 1e3,
        p99_ms=float(np.percentile(durations_s, 99)) * 1e3,
        cpu_us=cpu_s * 1e6 / done,
        requests=done,
        checked=len(kept) * rows,
    )


if __name__ == "__main__":
    print(json.dumps(asdict(_loop(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))))
