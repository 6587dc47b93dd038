"""Checked calls beside the load: random inputs, every answer compared."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import numpy as np

from benchmarks.errors import WrongAnswerError
from benchmarks.peers.peer import Peer
from benchmarks.wire import Target
from benchmarks.workloads import Feed, Workload

_COUNT_RESTS_S: Final = 0.05
_COUNT_ATTEMPTS: Final = 20


@dataclass(frozen=True, slots=True)
class _Sent:
    feed: Feed
    collect: Callable[[], bytes]


class Checker:
    """Owns one wire to a peer and calls one workload on it."""

    def __init__(self, peer: Peer, workload: Workload, seed: int) -> None:
        self._peer = peer
        self._workload = workload
        self._random = np.random.default_rng(seed)
        self._wire = peer.wire(workload)
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._wire.close()

    def random_target(self) -> tuple[Target, int]:
        """What a load generator is to send, and how many bytes it will count of an answer to
        it: that of one call, which is checked."""
        feed = self._random_feed()
        response = self._collect(self._send(feed))
        return self._wire.target(feed), len(response) + self._wire.head_bytes

    def calls(self, count: int) -> None:
        """Sends `count` checked calls one after the other."""
        for _ in range(count):
            self._collect(self._send(self._random_feed()))

    def calls_over(self, count: int, seconds: float) -> None:
        """Sends `count` calls evenly over `seconds`, checks the answers when all are sent."""
        sent: list[_Sent] = []
        for _ in range(count):
            sent.append(self._send(self._random_feed()))
            self._ended.wait(seconds / count)
        for call in sent:
            self._collect(call)

    def success_count(self) -> int:
        """Requests of the model that the server counted as answered, since it started.

        Triton counts a batch after it has answered it, so this waits until the count rests.
        """
        count = self._wire.success_count()
        for _ in range(_COUNT_ATTEMPTS):
            self._ended.wait(_COUNT_RESTS_S)
            earlier, count = count, self._wire.success_count()
            if count == earlier:
                break
        return count

    def _random_feed(self) -> Feed:
        return self._workload.random_feed(self._random)

    def _send(self, feed: Feed) -> _Sent:
        return _Sent(feed, self._wire.send(feed))

    def _collect(self, sent: _Sent) -> bytes:
        try:
            response = sent.collect()
        except WrongAnswerError as error:
            raise WrongAnswerError(f"{self._peer.name} failed a checked call: {error}") from error
        self._peer.check(self._workload, sent.feed, response)
        return response
