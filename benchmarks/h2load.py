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
from benchmarks.wire import Target

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
SOME_CALLERS: Final = Callers(4, 4)
MANY_CALLERS: Final = Callers(8, 8)
CALLERS: Final = {callers.count: callers for callers in (ONE_CALLER, SOME_CALLERS, MANY_CALLERS)}
# A 99.9th percentile of fewer is the slowest of them.
SAMPLES_OF_P999: Final = 1000


@dataclass(frozen=True, slots=True)
class Load:
    """What a run of h2load saw. `data_bytes` are the bodies of all answers with their gRPC
    frame heads; h2load takes an HTTP 200 for a success, so right answers are for others to
    count. Latency is from sending a request to the end of its answer; `p999_s` is None where
    there were fewer than 1,000."""

    requests: int
    seconds: float
    data_bytes: int
    p50_s: float
    p99_s: float
    p999_s: float | None

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds


def send(target: Target, requests: int, callers: Callers) -> Load:
    """Sends `requests` calls, all the same, and waits for every answer. Over HTTP/1.1, which
    answers a connection's requests in turn, every caller has a connection of its own.

    Raises NotInstalledError without h2load, LoadFailedError when any request failed.
    """
    program = shutil.which("h2load")
    if program is None:
        raise NotInstalledError("h2load is not installed: apt-get install nghttp2-client")
    connections = callers.count if target.is_http1 else callers.connections
    with tempfile.TemporaryDirectory() as folder:
        body, log = Path(folder) / "body", Path(folder) / "log"
        body.write_bytes(target.body)
        arguments = [
            program,
            f"--requests={requests}",
            f"--clients={min(connections, requests)}",
            f"--max-concurrent-streams={1 if target.is_http1 else callers.streams}",
            "--threads=1",
            f"--data={body}",
            f"--log-file={log}",
            *(f"--header={header}" for header in target.headers),
            *(["--h1"] if target.is_http1 else []),
            target.url,
        ]
        try:
            done = subprocess.run(
                arguments, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired:
            raise LoadFailedError(
                f"{requests} requests to {target.url} were not answered in {_TIMEOUT_S} s"
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
    p50_us, p99_us, p999_us = np.percentile(durations_us, [50, 99, 99.9])
    return Load(
        requests=requests,
        seconds=float((starts_us + durations_us).max() - starts_us.min()) / 1e6,
        data_bytes=int(data.group(1)),
        p50_s=float(p50_us) / 1e6,
        p99_s=float(p99_us) / 1e6,
        p999_s=float(p999_us) / 1e6 if requests >= SAMPLES_OF_P999 else None,
    )
