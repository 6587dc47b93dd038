"""Tideserve itself: frontend, autoscaler and replicas, as a user starts them."""

import shutil
import sys
from pathlib import Path
from typing import Final

from google.protobuf import text_format

from benchmarks.peers.setup import Setup
from benchmarks.process import ServerProcess, free_port
from benchmarks.workloads import MODELS, WORKLOADS, Rows, Workload
from tideserve.v1.model_config_pb2 import ModelConfig

_READY: Final = "ready grpc="


class Tideserve:
    """`tideserve serve` with the measured models; all settings but `setup` are the default."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        count = f"{setup.instances} {'replica' if setup.instances == 1 else 'replicas'}"
        self.name = f"Tideserve, {count}, {setup.queue_delay_us} us delay"
        self._setup = setup
        self._folder = folder / f"tideserve-{setup.instances}-{setup.queue_delay_us}"
        self._process: ServerProcess | None = None
        self.address = ""

    def start(self) -> None:
        repository = self._folder / "models"
        shutil.rmtree(repository, ignore_errors=True)
        for model in WORKLOADS:
            shutil.copytree(MODELS / model, repository / model)
            self._set_delay(repository / model / "config.pbtxt")
        self.address = f"127.0.0.1:{free_port()}"
        arguments = [
            str(Path(sys.executable).with_name("tideserve")),
            "serve",
            str(repository),
            f"--grpc-port={self.address.rpartition(':')[2]}",
            f"--http-port={free_port()}",
            f"--replicas={self._setup.instances}",
        ]
        self._process = ServerProcess(arguments, {}, self._folder / "log")
        self._process.start(lambda printed: _READY in printed)

    def check(self, workload: Workload, row: Rows, response: bytes) -> None:
        workload.check(row, response)

    def cpu_seconds(self) -> float:
        assert self._process is not None
        return self._process.cpu_seconds()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()

    def _set_delay(self, path: Path) -> None:
        config = text_format.Parse(path.read_text(), ModelConfig())
        config.dynamic_batching.max_queue_delay_microseconds = self._setup.queue_delay_us
        path.write_text(text_format.MessageToString(config))
