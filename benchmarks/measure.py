"""One measurement: load on one model of one running server, with every answer accounted for."""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from benchmarks.checker import Checker
from benchmarks.errors import WrongAnswerError
from benchmarks.h2load import Callers, Load, send
from benchmarks.open_loop import capacity, send_open
from benchmarks.peers.peer import Peer
from benchmarks.wire import Target
from benchmarks.workloads import Workload

CHECKED_SHARE: Final = 0.01
# A warm-up lasts so much of a run. It begins with a few requests a caller and grows, as rates
# differ by a thousand between models.
_WARM_UP_SHARE: Final = 0.2
_FIRST_REQUESTS: Final = 2
_GROWTH: Final = 10.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What one run gave. `cpu_us` is CPU microseconds a request of all the server's processes,
    `pss_mb` their memory in 10**6 bytes after it; `checked` answers were compared value by value.
    `p999_ms` is None where there were too few requests to tell."""

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    p999_ms: float | None
    cpu_us: float
    pss_mb: float
    requests: int
    checked: int


def measure(peer: Peer, workload: Workload, callers: Callers, seconds: float, seed: int) -> Figures:
    """Warms up, then sends about `seconds` of load and counts: each caller sends when it has got
    its answer.

    Raises WrongAnswerError unless every answer has the length of a right one, the server's
    own success counter grew by exactly what was sent, and every checked answer is right.
    """
    with Checker(peer, workload, seed) as checker:
        target, answer_bytes = checker.random_target()
        rate = warm_up(target, callers, seconds)
        requests = max(callers.count, round(rate * seconds))
        checked = math.ceil(requests * CHECKED_SHARE)

        def load() -> Load:
            return _load_with_checks(checker, target, requests, callers, checked, seconds)

        return _accounted(peer, workload, checker, load, checked, answer_bytes)


def measure_open(
    peer: Peer, workload: Workload, rate_per_s: float, seconds: float, seed: int
) -> Figures:
    """Sends `rate_per_s` for about `seconds`, whether answers came or not, to a server that is
    warm, and counts as `measure` does. Checked calls come before and after."""
    with Checker(peer, workload, seed) as checker:
        target, answer_bytes = checker.random_target()
        checked = math.ceil(rate_per_s * seconds * CHECKED_SHARE)

        def load() -> Load:
            checker.calls(checked // 2)
            done = send_open(target, rate_per_s, seconds, seed)
            checker.calls(checked - checked // 2)
            return done

        return _accounted(peer, workload, checker, load, checked, answer_bytes)


def measure_capacity(
    peer: Peer, workload: Workload, callers: Callers, seconds: float, seed: int
) -> float:
    """Warms up, then returns the requests a second that the open loop's generator gets answered
    with so many in flight."""
    with Checker(peer, workload, seed) as checker:
        target, _ = checker.random_target()
        rate = warm_up(target, callers, seconds)
        return capacity(target, max(callers.count, round(rate * seconds)), callers.count)


def _accounted(
    peer: Peer,
    workload: Workload,
    checker: Checker,
    load: Callable[[], Load],
    checked: int,
    answer_bytes: int,
) -> Figures:
    """Runs `load`, with `checked` calls of its own, and weighs the server over it."""
    counted_before = checker.success_count()
    cpu_before_s = peer.cpu_seconds()
    seen = load()
    cpu_s = peer.cpu_seconds() - cpu_before_s
    pss_bytes = peer.pss_bytes()
    counted = checker.success_count() - counted_before
    if seen.data_bytes != seen.requests * answer_bytes:
        raise WrongAnswerError(
            f"{peer.name}, {workload.model}: expected {seen.requests} answers of {answer_bytes}"
            f" bytes, got {seen.data_bytes} bytes"
        )
    if counted != seen.requests + checked:
        raise WrongAnswerError(
            f"{peer.name}, {workload.model}: sent {seen.requests + checked} requests, its own"
            f" success counter grew by {counted}"
        )
    return Figures(
        requests_per_s=seen.requests_per_s,
        p50_ms=seen.p50_s * 1e3,
        p99_ms=seen.p99_s * 1e3,
        p999_ms=None if seen.p999_s is None else seen.p999_s * 1e3,
        cpu_us=cpu_s * 1e6 / (seen.requests + checked),
        pss_mb=pss_bytes / 1e6,
        requests=seen.requests,
        checked=checked,
    )


def warm_up(target: Target, callers: Callers, seconds: float) -> float:
    """Sends until a single run of it took a fifth of `seconds`; returns its requests a second."""
    requests = _FIRST_REQUESTS * callers.count
    while True:
        load = send(target, requests, callers)
        missing = _WARM_UP_SHARE * seconds / load.seconds
        if missing <= 1.0:
            return load.requests_per_s
        requests = math.ceil(requests * min(_GROWTH, 1.2 * missing))


def _load_with_checks(
    checker: Checker,
    target: Target,
    requests: int,
    callers: Callers,
    checked: int,
    seconds: float,
) -> Load:
    """Checked calls run beside many callers, but before and after a single one, whose latency
    a second caller would change."""
    if callers.count == 1:
        checker.calls(checked // 2)
        load = send(target, requests, callers)
        checker.calls(checked - checked // 2)
        return load
    with ThreadPoolExecutor(max_workers=1) as pool:
        checks = pool.submit(checker.calls_over, checked, seconds)
        load = send(target, requests, callers)
        checks.result()
    return load
