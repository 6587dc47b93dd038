"""A server of one identity model, run under load, and what its clocks say of a request."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.accounting.threads import thread_cpu_s
from benchmarks.h2load import Callers, send
from benchmarks.models.onnx_file import Graph
from benchmarks.telling import TellingServer, telling
from benchmarks.wire import infer_target
from tideserve.client import Client
from tideserve.v1.inference_pb2 import ModelInferRequest

_WARM_UP_REQUESTS: Final = 1000
_WARM_UP_BYTES: Final = 1 << 29


@dataclass(frozen=True, slots=True)
class Account:
    """CPU us a request by part, in the order in which a request meets them."""

    requests_per_s: float
    mean_batch: float
    parts_us: dict[str, float]
    replica_times_us: dict[str, float]
    """What the replica says its steps took."""

    @property
    def total_us(self) -> float:
        return sum(self.parts_us.values())


@dataclass(frozen=True, slots=True)
class _Reading:
    stages_s: dict[str, float]
    dispatcher_s: float
    stopwatch_s: float
    frontend_s: float
    replica_s: float
    batches: int
    input_s: float
    infer_s: float
    output_s: float


class AccountedServer:
    """A server of one identity model with one replica, and its clocks."""

    def __init__(self, server: TellingServer, model: str, elements: int) -> None:
        self._server = server
        self._model = model
        self._elements = elements

    def account(self, callers: Callers, seconds: float) -> Account:
        """Loads it for about so many seconds."""
        message = self._request()
        target = infer_target(self._server.address, message)
        warm_up = max(callers.count, min(_WARM_UP_REQUESTS, _WARM_UP_BYTES // len(message)))
        rate = send(target, warm_up, callers).requests_per_s
        requests = max(callers.count, round(rate * seconds))
        before = self._read()
        load = send(target, requests, callers)
        after = self._read()
        return _account(before, after, requests, load.requests_per_s)

    def _request(self) -> bytes:
        request = ModelInferRequest(model_name=self._model)
        request.inputs.add(name="IN", datatype="FP32", shape=(1, self._elements))
        row = np.random.default_rng(0).standard_normal(self._elements, dtype=np.float32)
        request.raw_input_contents.append(row.tobytes())
        return request.SerializeToString()

    def _read(self) -> _Reading:
        server = self._server
        said = server.tell()
        frontend, replica = thread_cpu_s(server.frontend), thread_cpu_s(server.replica)
        with Client(server.address) as client:
            (stats,) = client.statistics(self._model)
        return _Reading(
            stages_s=said["stages"],
            dispatcher_s=frontend[said["thread"]],
            stopwatch_s=said["stopwatch"],
            frontend_s=sum(frontend.values()),
            replica_s=sum(replica.values()),
            batches=stats.execution_count,
            input_s=stats.compute_input.total_s,
            infer_s=stats.compute_infer.total_s,
            output_s=stats.compute_output.total_s,
        )


def _account(before: _Reading, after: _Reading, requests: int, requests_per_s: float) -> Account:
    def us(name: str) -> float:
        spent: float = getattr(after, name) - getattr(before, name)
        return spent / requests * 1e6

    stages_us = {
        stage: (after.stages_s[stage] - before.stages_s[stage]) / requests * 1e6
        for stage in after.stages_s
    }
    # What the dispatcher's thread does outside its turns is the loop's, too.
    dispatcher_us = us("dispatcher_s") - us("stopwatch_s")
    stages_us["loop"] += dispatcher_us - sum(stages_us.values())
    parts = {"frontend: other threads": us("frontend_s") - us("dispatcher_s")}
    parts |= {f"frontend: {stage}": spent for stage, spent in stages_us.items()}
    parts["replica"] = us("replica_s")
    # Time, not CPU: another process may have had the core meanwhile.
    replica_times = {"input": us("input_s"), "backend": us("infer_s"), "output": us("output_s")}
    batches = max(1, after.batches - before.batches)
    return Account(requests_per_s, requests / batches, parts, replica_times)


@contextmanager
def accounted(model: str, elements: int, folder: Path) -> Iterator[AccountedServer]:
    """Serves `IN` FP32 [elements] -> `OUT`, in batches of up to 64 rows, until the end."""
    graph = Graph()
    graph.node("Identity", "IN", name="OUT")
    tensor = ("FP32", [elements])
    graph.write(folder / "models" / model / "1" / "model.onnx", {"IN": tensor}, {"OUT": tensor})
    with telling("benchmarks.accounting.server", folder) as server:
        yield AccountedServer(server, model, elements)
