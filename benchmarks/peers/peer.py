"""What every measured server offers to the benchmark."""

from typing import Protocol

from benchmarks.wire import Wire
from benchmarks.workloads import Feed, Workload


class Peer(Protocol):
    """A server that can be started with one model, called, weighed and stopped.

    `instances` are the processes that compute. `address` is HOST:PORT while it runs. `check`
    raises WrongAnswerError unless the bytes of a response are the right answer to what was sent.
    """

    @property
    def name(self) -> str: ...

    @property
    def instances(self) -> int: ...

    @property
    def address(self) -> str: ...

    def start(self, workload: Workload) -> None: ...

    def wire(self, workload: Workload) -> Wire: ...

    def check(self, workload: Workload, feed: Feed, response: bytes) -> None: ...

    def cpu_seconds(self) -> float: ...

    def pss_bytes(self) -> int: ...

    def stop(self) -> None: ...
