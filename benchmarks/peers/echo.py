"""A bare grpcio asyncio server that answers with the bytes it got: what a gRPC call costs
before any serving is done."""

import sys
from pathlib import Path

from benchmarks.errors import WrongAnswerError
from benchmarks.process import ServerProcess, free_port
from benchmarks.wire import GrpcWire, Wire
from benchmarks.workloads import Feed, Workload


class GrpcioEcho:
    """Parses nothing, batches nothing, runs no model."""

    name = "grpcio asyncio echo (no model)"
    instances = 1

    def __init__(self, folder: Path) -> None:
        self._log = folder / "echo" / "log"
        self._process: ServerProcess | None = None
        self.address = ""

    def start(self, workload: Workload) -> None:
        """The same for every workload."""
        del workload
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        arguments = [sys.executable, "-m", "benchmarks.peers.echo_server", str(port)]
        self._process = ServerProcess(arguments, {}, self._log)
        self._process.start(lambda printed: "ready" in printed)

    def wire(self, workload: Workload) -> Wire:
        return GrpcWire(self.address, workload)

    def check(self, workload: Workload, feed: Feed, response: bytes) -> None:
        if response != workload.request(feed):
            raise WrongAnswerError("the echo server answered other bytes than it was sent")

    def cpu_seconds(self) -> float:
        assert self._process is not None
        return self._process.cpu_seconds()

    def pss_bytes(self) -> int:
        assert self._process is not None
        return self._process.pss_bytes()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
