"""Mosec, over HTTP: raw bytes in and out, no names and shapes, which is generous to it."""

import json
import re
from pathlib import Path
from typing import Final

import httpx

from benchmarks.errors import NotInstalledError
from benchmarks.models.repository import model_file
from benchmarks.peers.setup import Setup
from benchmarks.process import ServerProcess, free_port
from benchmarks.wire import HttpWire, Wire
from benchmarks.workloads import Feed, Workload

ENVIRONMENT: Final = Path(__file__).resolve().parents[2] / ".cache" / "bench-mosec"
_SERVER: Final = Path(__file__).resolve().parents[1] / "mosec_models" / "raw_bytes.py"
_PATH: Final = "/inference"
_COUNTER: Final = re.compile(
    rf'^mosec_service_throughput_total\{{code="200",endpoint="{_PATH}"\}} (\S+)$', re.MULTILINE
)
# As long as the others: by default it gives up a request after 3 s.
_TIMEOUT_MS: Final = 60_000
_NUMPY_TYPES: Final = {"FP32": "float32", "INT64": "int64"}


def is_installed() -> bool:
    return (ENVIRONMENT / "bin" / "mosec").exists()


class Mosec:
    """Its own server with workers in Python. Its wait for a batch to fill is in whole ms; a delay
    of 0 is no batching at all, which answers one caller soonest."""

    def __init__(self, setup: Setup, folder: Path) -> None:
        count = f"{setup.instances} {'worker' if setup.instances == 1 else 'workers'}"
        self._wait_ms = -(-setup.queue_delay_us // 1000)
        batches = f"{self._wait_ms * 1000} us delay" if self._wait_ms else "no batching"
        self.name = f"mosec, {count}, {batches}"
        self.instances = setup.instances
        self._setup = setup
        self._log = folder / f"mosec-{setup.instances}-{setup.queue_delay_us}" / "log"
        self._process: ServerProcess | None = None
        self.address = ""

    def start(self, workload: Workload) -> None:
        """Raises NotInstalledError without mosec, ServerFailedError when it fails."""
        if not is_installed():
            raise NotInstalledError(f"no mosec in {ENVIRONMENT}: make bench-setup")
        self.address = f"127.0.0.1:{free_port()}"
        environment = {
            "BENCH_INSTANCES": str(self._setup.instances),
            "BENCH_MAX_BATCH_ROWS": str(workload.max_batch_rows),
            "BENCH_WAIT_MS": str(self._wait_ms),
        }
        if not workload.exact:
            environment |= {
                "BENCH_MODEL_FILE": str(model_file(workload.model)),
                "BENCH_INPUTS": json.dumps(
                    [[t.name, _NUMPY_TYPES[t.datatype], list(t.dims)] for t in workload.inputs]
                ),
                "BENCH_OUTPUT": workload.output.name,
            }
        elif not workload.echoes:
            environment["BENCH_ANSWERED"] = str(*workload.output.dims)
        arguments = [
            str(ENVIRONMENT / "bin" / "python"),
            str(_SERVER),
            "--address=127.0.0.1",
            f"--port={self.address.rpartition(':')[2]}",
            "--log-level=warning",
            f"--timeout={_TIMEOUT_MS}",
        ]
        self._process = ServerProcess(arguments, environment, self._log)
        zeros = bytes(workload.input_bytes)
        self._process.start(lambda _: _answers(self.address, zeros))

    def wire(self, workload: Workload) -> Wire:
        return HttpWire(self.address, _PATH, workload, _COUNTER)

    def check(self, workload: Workload, feed: Feed, response: bytes) -> None:
        workload.check_raw(feed, response)

    def cpu_seconds(self) -> float:
        assert self._process is not None
        return self._process.cpu_seconds()

    def pss_bytes(self) -> int:
        assert self._process is not None
        return self._process.pss_bytes()

    def stop(self) -> None:
        if self._process is not None:
            self._process.stop()


def _answers(address: str, body: bytes) -> bool:
    """It listens before its workers are there."""
    try:
        return httpx.post(f"http://{address}{_PATH}", content=body, timeout=5.0).is_success
    except httpx.HTTPError:
        return False
