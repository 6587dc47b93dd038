"""The load generator: nghttp2's h2load, which knows HTTP/2 and nothing of gRPC.

It is told how many requests to send, not how long: at the end of a timed run it drops the
calls in flight, which no server counts the same way (and which ends Triton 2.51 with a
segmentation fault).
"""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.errors import LoadFailedError, NotInstalledError
from benchmarks.workloads import INFER_PATH, frame

_SUCCEEDED: Final = re.compile(r"requests: (\d+) total, .* (\d+) succeeded, (\d+) failed")
_DATA_BYTES: Final = re.compile(r"\((\d+)\) data")
_TIMEOUT_S: Final = 300


@dataclass(frozen=True, slots=True)
class Callers:
    """Concurrent callers: `connections` with `streams` requests in flight on each."""

    connections: int
    streams: int

    @property
    def count(self) -> int:
        return self.connections * self.streams


ONE_CALLER: Final = Callers(1, 1)
MANY_CALLERS: Final = Callers(8, 8)
CALLERS: Final = {callers.count: callers for callers in (ONE_CALLER, MANY_CALLERS)}


@dataclass(frozen=True, slots=True)
class Load:
    """What a run of h2load saw. `data_bytes` are the bodies of all answers with their gRPC
    frame heads; h2load takes an HTTP 200 for a success, so right answers are for others to
    count. Latency is from sending a request to the end of its answer."""

    requests: int
    seconds: float
    data_bytes: int
    p50_s: float
    p99_s: float

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds


def send(address: str, message: bytes, requests: int, callers: Callers) -> Load:
    """Sends `requests` ModelInfer calls, all with `message`, and waits for every answer.

    Raises NotInstalledError without h2load, LoadFailedError when any request failed.
    """
    program = shutil.which("h2load")
    if program is None:
        raise NotInstalledError("h2load is not installed: apt-get install nghttp2-client")
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(frame(message))
        arguments = [
            program,
            f"--requests={requests}",
            f"--clients={min(callers.connections, requests)}",
            f"--max-concurrent-streams={callers.streams}",
            "--threads=1",
            f"--data={body}",
            f"--log-file={log}",
            "--header=content-type: application/grpc",
            "--header=te: trailers",
            f"http://{address}{INFER_PATH}",
        ]
        try:
            done = subprocess.run(
                arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise LoadFailedError(
                f"{requests} requests to {address} were not answered in {_TIMEOUT_S} s"
            ) from None
        if done.returncode != 0:
            raise LoadFailedError(f"h2load ended with {done.returncode}: {done.stderr.strip()}")
        return parse(done.stdout, log.read_text(), requests)


def parse(output: str, log: str, requests: int) -> Load:
    """Reads h2load's closing lines and its log (start in us, HTTP status, duration in us)."""
    counted, data = _SUCCEEDED.search(output), _DATA_BYTES.search(output)
    if counted is None or data is None:
        raise LoadFailedError(f"h2load printed no closing lines:\n{output[-2000:]}")
    total, succeeded, failed = map(int, counted.groups())
    lines = np.array([line.split("\t") for line in log.splitlines()], dtype=np.int64)
    if (total, succeeded, failed) != (requests, requests, 0) or len(lines) != requests:
        raise LoadFailedError(
            f"expected {requests} requests with HTTP 200, got {succeeded} succeeded,"
            f" {failed} failed of {total}, {len(lines)} in the log"
        )
    starts_us, _, durations_us = lines.T
    p50_us, p99_us = np.percentile(durations_us, [50, 99])
    return Load(
        requests=requests,
        seconds=float((starts_us + durations_us).max() - starts_us.min()) / 1e6,
        data_bytes=int(data.group(1)),
        p50_s=float(p50_us) / 1e6,
        p99_s=float(p99_us) / 1e6,
    )
