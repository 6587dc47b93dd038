"""Tideserve itself: frontend, autoscaler and replicas, as a user starts them."""

import shutil
import sys
from pathlib import Path
from typing import Final

from benchmarks.process import ServerProcess, free_port
from benchmarks.workloads import MODELS, WORKLOADS, Rows, Workload

_READY: Final = "ready grpc="


class Tideserve:
    """`tideserve serve` with `replicas` of each measured model, all other settings default."""

    def __init__(self, replicas: int, folder: Path) -> None:
        self.name = f"Tideserve, {replicas} {'replica' if replicas == 1 else 'replicas'}"
        self._replicas = replicas
        self._folder = folder / f"tideserve-{replicas}"
        self._process: ServerProcess | None = None
        self.address = ""

    def start(self) -> None:
        repository = self._folder / "models"
        shutil.rmtree(repository, ignore_errors=True)
        for model in WORKLOADS:
            shutil.copytree(MODELS / model, repository / model)
        self.address = f"127.0.0.1:{free_port()}"
        arguments = [
            str(Path(sys.executable).with_name("tideserve")),
            "serve",
            str(repository),
            f"--grpc-port={self.address.rpartition(':')[2]}",
            f"--http-port={free_port()}",
            f"--replicas={self._replicas}",
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
