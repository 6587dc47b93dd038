"""One thread of ONNX Runtime in a loop over one batch, in a process that loads nothing else.

`python -m benchmarks.peers.ort_loop MODEL.onnx FEED.npz EXPECTED.npy SECONDS` prints "warm", waits
for a line on stdin, and then prints one JSON object: calls, seconds, cpu_s, pss_bytes and the
percentiles p50_s, p99_s and p999_s of a call; `checked` calls gave what was expected.
"""

import json
import sys
import time

import numpy as np
import onnxruntime as ort

from benchmarks.pss import pss_bytes

_WARM_UP_CALLS = 3
_CHECKED_EVERY = 100
_TOLERANCE = 1e-5


def loop(model: str, feed: str, expected: str, seconds: float) -> dict[str, float]:
    """The figures of one loop, which begins at a line on stdin."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    run = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run
    inputs, right = dict(np.load(feed)), np.load(expected)
    for _ in range(_WARM_UP_CALLS):
        run(None, inputs)
    print("warm", flush=True)
    sys.stdin.readline()
    durations_s: list[float] = []
    cpu_before_s, now_s = time.process_time(), time.perf_counter()
    start_s = now_s
    while now_s < start_s + seconds:
        (answer,) = run(None, inputs)
        began_s, now_s = now_s, time.perf_counter()
        durations_s.append(now_s - began_s)
        is_checked = len(durations_s) % _CHECKED_EVERY == 1
        if is_checked and not np.allclose(answer, right, rtol=0.0, atol=_TOLERANCE):
            sys.exit(f"{model}: call {len(durations_s)} gave another answer than single rows")
    cpu_s = time.process_time() - cpu_before_s
    p50_s, p99_s, p999_s = map(float, np.percentile(durations_s, [50, 99, 99.9]))
    return {
        "calls": len(durations_s),
        "checked": -(-len(durations_s) // _CHECKED_EVERY),
        "seconds": now_s - start_s,
        "cpu_s": cpu_s,
        "pss_bytes": pss_bytes(["self"]),
        "p50_s": p50_s,
        "p99_s": p99_s,
        "p999_s": p999_s,
    }


if __name__ == "__main__":
    model_file, feed_file, expected_file, seconds_text = sys.argv[1:]
    print(json.dumps(loop(model_file, feed_file, expected_file, float(seconds_text))))
