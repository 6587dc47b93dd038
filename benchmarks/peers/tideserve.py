"""Tideserve itself: frontend, autoscaler and replicas, as a user starts them.

The compiled wheel where `make bench` has built it, as users install it; else the sources.
"""

import shutil
import sys
from pathlib import Path
from typing import Final

from benchmarks.models.repository import model_file
from benchmarks.peers.setup import Setup
from benchmarks.process import ServerProcess, free_port
from benchmarks.wire import GrpcWire, Wire
from benchmarks.workloads import Feed, Workload

_READY: Final = "ready grpc="
_COMPILED: Final = Path(".cache/compiled/bin/tideserve")
_CACHE: Final = Path(".cache/bench-cache")


class Tideserve:
    """`tideserve serve` with one measured model; all settings but `setup` are the default."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        count = f"{setup.instances} {'replica' if setup.instances == 1 else 'replicas'}"
        is_compiled = _COMPILED.exists()
        self._program = _COMPILED if is_compiled else Path(sys.executable).with_name("tideserve")
        kind = "Tideserve" if is_compiled else "Tideserve (not compiled)"
        busy = f", {setup.busy_poll_us} us busy poll" if setup.busy_poll_us else ""
        self.name = f"{kind}, {count}, {setup.queue_delay_us} us delay{busy}"
        self.instances = setup.instances
        self._setup = setup
        self._folder = folder / f"tideserve-{str(setup).replace(':', '-')}"
        self._process: ServerProcess | None = None
        self.address = ""

    def start(self, workload: Workload) -> None:
        repository = self._folder / "models"
        shutil.rmtree(repository, ignore_errors=True)
        model = repository / workload.model
        model.mkdir(parents=True)
        # Not a copy: of the same file weights are shared from one start to the next, as users have it.
        (model / "1").symlink_to(model_file(workload.model).resolve().parent)
        # Names and shapes are completed from the model file.
        (model / "config.pbtxt").write_text(
            f"max_batch_size: {workload.max_batch_rows}\n"
            f"dynamic_batching {{ max_queue_delay_microseconds: {self._setup.queue_delay_us} }}\n"
        )
        self.address = f"127.0.0.1:{free_port()}"
        arguments = [
            str(self._program),
            "serve",
            str(repository),
            f"--grpc-port={self.address.rpartition(':')[2]}",
            f"--http-port={free_port()}",
            f"--replicas={self._setup.instances}",
            f"--busy-poll-us={self._setup.busy_poll_us}",
        ]
        environment = {"XDG_CACHE_HOME": str(_CACHE.resolve())}
        self._process = ServerProcess(arguments, environment, self._folder / "log")
        self._process.start(lambda printed: _READY in printed)

    def wire(self, workload: Workload) -> Wire:
        return GrpcWire(self.address, workload)

    def check(self, workload: Workload, feed: Feed, response: bytes) -> None:
        workload.check(feed, response)

    def cpu_seconds(self) -> float:
        assert self._process is not None
        return self._process.cpu_seconds()

    def pss_bytes(self) -> int:
        assert self._process is not None
        return self._process.pss_bytes()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()
