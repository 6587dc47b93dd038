"""What every measured server offers to the benchmark."""

from typing import Protocol

from benchmarks.workloads import Rows, Workload


class Peer(Protocol):
    """A server that can be started, called, weighed and stopped.

    `address` is HOST:PORT of its gRPC port while it runs. `check` raises WrongAnswerError
    unless the bytes of a response are the right answer to the row that was sent.
    """

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str: ...

    def start(self) -> None: ...

    def check(self, workload: Workload, row: Rows, response: bytes) -> None: ...

    def cpu_seconds(self) -> float: ...

    def stop(self) -> None: ...
