"""One measurement: load on one model of one running server, with every answer accounted for."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from benchmarks.checker import Checker
from benchmarks.errors import WrongAnswerError
from benchmarks.h2load import Callers, Load, send
from benchmarks.peers.peer import Peer
from benchmarks.workloads import Workload

CHECKED_SHARE: Final = 0.01
# Requests of the first calibration, by caller: enough to see a rate, over in under a second.
_CALIBRATION_REQUESTS: Final = 100


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run gave. `cpu_us` is CPU microseconds a request of all the server's processes;
    `checked` answers were compared value by value."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float
    requests: int
    checked: int


def measure(peer: Peer, workload: Workload, callers: Callers, seconds: float, seed: int) -> Figures:
    """Warms up, then sends about `seconds` of load and counts.

    Raises WrongAnswerError unless every answer has the length of a right one, the server's
    own success counter grew by exactly what was sent, and every checked answer is right.
    """
    with Checker(peer, workload, seed) as checker:
        row = checker.random_row()
        message = workload.request(row)
        answer_bytes = checker.answer_bytes(row)
        rate = _calibrate(peer.address, message, callers, seconds)
        requests = max(callers.count, round(rate * seconds))
        checked = math.ceil(requests * CHECKED_SHARE)
        counted_before = checker.success_count()
        cpu_before_s = peer.cpu_seconds()
        load = _load_with_checks(checker, peer, message, requests, callers, checked, seconds)
        cpu_s = peer.cpu_seconds() - cpu_before_s
        counted = checker.success_count() - counted_before
    if load.data_bytes != requests * answer_bytes:
        raise WrongAnswerError(
            f"{peer.name}, {workload.model}: expected {requests} answers of {answer_bytes} bytes,"
            f" got {load.data_bytes} bytes"
        )
    if counted != requests + checked:
        raise WrongAnswerError(
            f"{peer.name}, {workload.model}: sent {requests + checked} requests, its own success"
            f" counter grew by {counted}"
        )
    return Figures(
        requests_per_s=load.requests_per_s,
        p50_ms=load.p50_s * 1e3,
        p99_ms=load.p99_s * 1e3,
        cpu_us=cpu_s * 1e6 / (requests + checked),
        requests=requests,
        checked=checked,
    )


def _calibrate(address: str, message: bytes, callers: Callers, seconds: float) -> float:
    """Requests a second, after a warm-up as long as a fifth of the run."""
    rate = send(address, message, _CALIBRATION_REQUESTS * callers.count, callers).requests_per_s
    warm_up = max(callers.count, round(rate * seconds / 5))
    return send(address, message, warm_up, callers).requests_per_s


def _load_with_checks(
    checker: Checker,
    peer: Peer,
    message: bytes,
    requests: int,
    callers: Callers,
    checked: int,
    seconds: float,
) -> Load:
    """Checked calls run beside many callers, but before and after a single one, whose latency
    a second caller would change."""
    if callers.count == 1:
        checker.calls(checked // 2)
        load = send(peer.address, message, requests, callers)
        checker.calls(checked - checked // 2)
        return load
    with ThreadPoolExecutor(max_workers=1) as pool:
        checks = pool.submit(checker.calls_over, checked, seconds)
        load = send(peer.address, message, requests, callers)
        checks.result()
    return load
