"""An open-loop load generator: requests are due at random times, whether answers came or not.

Latency is from when a request was due: what a server makes wait is counted, whoever holds it.
"""

import select
import time
from collections import deque
from typing import Final

import numpy as np

from benchmarks.connection import Connection, Http1Connection, Http2Connection
from benchmarks.errors import LoadFailedError
from benchmarks.h2load import SAMPLES_OF_P999, Load
from benchmarks.wire import Target

_HTTP2_CONNECTIONS: Final = 8
# One request at a time on each: enough for a tenth of a second at 2,000 a second.
_HTTP1_CONNECTIONS: Final = 200
_LONGEST_WAIT_S: Final = 0.05
# After the last was due.
_TIMEOUT_S: Final = 30.0


def send_open(target: Target, rate_per_s: float, seconds: float, seed: int) -> Load:
    """Sends about `seconds` of requests, `rate_per_s` on average with exponential gaps, and waits
    for every answer. What finds no connection free waits, and its waiting counts.

    Raises LoadFailedError when a request failed or is not answered in time.
    """
    requests = max(1, round(rate_per_s * seconds))
    due_s = np.random.default_rng(seed).exponential(1.0 / rate_per_s, requests).cumsum()
    loop = _run(target, due_s.tolist(), requests)
    latency_s = np.array(loop.answered_s) - due_s
    p50_s, p99_s, p999_s = map(float, np.percentile(latency_s, [50, 99, 99.9]))
    return Load(
        requests=requests,
        seconds=max(loop.answered_s),
        data_bytes=loop.data_bytes,
        p50_s=p50_s,
        p99_s=p99_s,
        p999_s=p999_s if requests >= SAMPLES_OF_P999 else None,
    )


def capacity(target: Target, requests: int, callers: int) -> float:
    """Requests a second with so many always in flight. This generator takes CPU too, on the same
    cores and more than h2load: a share of what h2load reaches would be more of what is left."""
    loop = _run(target, [0.0] * requests, callers)
    return requests / max(loop.answered_s)


def _run(target: Target, due_s: list[float], most_in_flight: int) -> "_Loop":
    if target.is_http1:
        connections: list[Connection] = [Http1Connection(target) for _ in range(_HTTP1_CONNECTIONS)]
    else:
        connections = [Http2Connection(target) for _ in range(_HTTP2_CONNECTIONS)]
    loop = _Loop(connections, due_s, most_in_flight)
    try:
        loop.run()
    finally:
        loop.close()
    return loop


class _Loop:
    """Owns the connections; times are seconds since `run`."""

    def __init__(
        self, connections: list[Connection], due_s: list[float], most_in_flight: int
    ) -> None:
        self._due_s = due_s
        self._most_in_flight = most_in_flight
        self._by_file = {connection.socket.fileno(): connection for connection in connections}
        self._free = deque(connections)
        self._epoll = select.epoll()
        self.answered_s = [0.0] * len(due_s)
        self.data_bytes = 0

    def run(self) -> None:
        """Until all are answered."""
        for file in self._by_file:
            self._epoll.register(file, select.EPOLLIN)
        due_s, begun, answered = self._due_s, 0, 0
        began_s = time.perf_counter()
        give_up_s = due_s[-1] + _TIMEOUT_S
        while answered < len(due_s):
            now_s = time.perf_counter() - began_s
            if now_s > give_up_s:
                raise LoadFailedError(
                    f"{len(due_s) - answered} of {len(due_s)} requests were not answered in"
                    f" {_TIMEOUT_S:.0f} s after the last was due"
                )
            touched: set[Connection] = set()
            most = min(len(due_s), answered + self._most_in_flight)
            while begun < most and due_s[begun] <= now_s and self._free:
                touched.add(self._begin(begun))
                begun += 1
            self._flush(touched)
            waits_for_clock = begun < most and bool(self._free)
            wait_s = max(0.0, due_s[begun] - now_s) if waits_for_clock else _LONGEST_WAIT_S
            answered += self._receive(min(wait_s, _LONGEST_WAIT_S), began_s)

    def close(self) -> None:
        for connection in self._by_file.values():
            connection.socket.close()
        self._epoll.close()

    def _begin(self, number: int) -> Connection:
        """On the connection that has waited longest."""
        connection = self._free.popleft()
        connection.begin(number)
        if connection.has_room():
            self._free.append(connection)
        return connection

    def _receive(self, wait_s: float, began_s: float) -> int:
        # An epoll waits in whole ms, a select on it in us.
        ready, _, _ = select.select([self._epoll], [], [], wait_s)
        if not ready:
            return 0
        answered = 0
        touched: set[Connection] = set()
        for file, _ in self._epoll.poll(0):
            connection = self._by_file[file]
            had_room = connection.has_room()
            done = connection.receive()
            now_s = time.perf_counter() - began_s
            for number, body_bytes in done:
                self.answered_s[number] = now_s
                self.data_bytes += body_bytes
            answered += len(done)
            if done and not had_room:
                self._free.append(connection)
            touched.add(connection)
        self._flush(touched)
        return answered

    def _flush(self, connections: set[Connection]) -> None:
        for connection in connections:
            is_left = connection.flush()
            events = select.EPOLLIN | (select.EPOLLOUT if is_left else 0)
            self._epoll.modify(connection.socket.fileno(), events)
