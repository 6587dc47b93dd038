"""A measurement counts right answers only."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from benchmarks import measure as measured_module
from benchmarks.errors import WrongAnswerError
from benchmarks.h2load import MANY_CALLERS, ONE_CALLER, Callers, Load
from benchmarks.measure import measure
from benchmarks.wire import GrpcWire, Target, Wire
from benchmarks.workloads import IDENTITY, INFER_PATH, Feed, Workload
from tideserve.v1.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStatisticsRequest,
    ModelStatisticsResponse,
)

Answer = Callable[[ModelInferRequest, int], ModelInferResponse]


def right(request: ModelInferRequest, _: int) -> ModelInferResponse:
    response = ModelInferResponse(model_name=request.model_name, model_version="1")
    response.outputs.add(name="OUT", datatype="FP32", shape=[1, 16])
    response.raw_output_contents.append(request.raw_input_contents[0])
    return response


@dataclass
class Server:
    """A gRPC server in this process whose answers and counter a test decides."""

    answer: Answer = right
    uncounted: int = 0
    answered: int = 0
    name: str = "Fake"
    address: str = ""
    cpu_s: float = 0.0

    instances: int = 1

    def start(self, workload: Workload) -> None:
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "ModelInfer": grpc.unary_unary_rpc_method_handler(
                self._infer,
                ModelInferRequest.FromString,
                ModelInferResponse.SerializeToString,
            ),
            "ModelStatistics": grpc.unary_unary_rpc_method_handler(
                self._statistics,
                ModelStatisticsRequest.FromString,
                ModelStatisticsResponse.SerializeToString,
            ),
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler("inference.GRPCInferenceService", handlers)]
        )
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(grace=None).wait()

    def wire(self, workload: Workload) -> Wire:
        return GrpcWire(self.address, workload)

    def check(self, workload: Workload, feed: Feed, response: bytes) -> None:
        workload.check(feed, response)

    def cpu_seconds(self) -> float:
        self.cpu_s += 0.5
        return self.cpu_s

    def pss_bytes(self) -> int:
        return 2_000_000

    def _infer(self, request: ModelInferRequest, _: grpc.ServicerContext) -> ModelInferResponse:
        self.answered += 1
        return self.answer(request, self.answered)

    def _statistics(
        self, request: ModelStatisticsRequest, _: grpc.ServicerContext
    ) -> ModelStatisticsResponse:
        response = ModelStatisticsResponse()
        model = response.model_stats.add(name=request.name)
        model.inference_stats.success.count = self.answered - min(self.answered, self.uncounted)
        return response


def send_in_turn(target: Target, requests: int, callers: Callers) -> Load:
    """Stands in for h2load: one call after the other, as if each took 10 ms."""
    with grpc.insecure_channel(target.url.removeprefix("http://").partition("/")[0]) as channel:
        infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(INFER_PATH)
        # The body is a gRPC frame; its head is the channel's to write.
        sent = target.body[5:]
        responses: list[bytes] = [infer(sent, timeout=10.0) for _ in range(requests)]
    data_bytes = sum(len(response) + 5 for response in responses)
    return Load(requests, requests * 0.01, data_bytes, p50_s=0.01, p99_s=0.02, p999_s=None)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(measured_module, "send", send_in_turn)
    server = Server()
    server.start(IDENTITY)
    yield server
    server.stop()


@pytest.mark.parametrize("callers", [ONE_CALLER, MANY_CALLERS])
def test_right_answers_give_figures(server: Server, callers: Callers) -> None:
    figures = measure(server, IDENTITY, callers, seconds=2.0, seed=1)
    assert figures.requests == 200
    assert figures.checked == 2
    assert figures.requests_per_s == pytest.approx(100.0)
    assert figures.p50_ms == pytest.approx(10.0)
    assert figures.p99_ms == pytest.approx(20.0)
    assert figures.p999_ms is None
    assert figures.pss_mb == pytest.approx(2.0)
    assert figures.cpu_us == pytest.approx(0.5e6 / 202)


def test_an_answer_without_its_bytes_gives_no_figures(server: Server) -> None:
    def empty_later(request: ModelInferRequest, count: int) -> ModelInferResponse:
        response = right(request, count)
        # The last of the load, after the checked calls before it.
        if count == 200:
            response.raw_output_contents[0] = b""
        return response

    server.answer = empty_later
    with pytest.raises(WrongAnswerError, match=r"expected 200 answers of \d+ bytes, got"):
        measure(server, IDENTITY, ONE_CALLER, seconds=2.0, seed=1)


def test_an_answer_that_is_wrong_from_the_start_is_shown(server: Server) -> None:
    def zeros(request: ModelInferRequest, count: int) -> ModelInferResponse:
        response = right(request, count)
        response.raw_output_contents[0] = bytes(64)
        return response

    server.answer = zeros
    with pytest.raises(WrongAnswerError, match=r"identity: expected \[.*got \[0.0, 0.0"):
        measure(server, IDENTITY, ONE_CALLER, seconds=2.0, seed=1)


def test_an_answer_that_the_server_does_not_count_gives_no_figures(server: Server) -> None:
    # All before the load is uncounted, and one request of the load.
    server.uncounted = 1 + 2 + 20 + 48 + 1
    with pytest.raises(WrongAnswerError, match="sent 202 requests, its own success counter"):
        measure(server, IDENTITY, ONE_CALLER, seconds=2.0, seed=1)


def test_a_failed_checked_call_gives_no_figures(server: Server) -> None:
    def fail(request: ModelInferRequest, count: int) -> ModelInferResponse:
        raise RuntimeError("no model here")

    server.answer = fail
    with pytest.raises(WrongAnswerError, match="Fake failed a checked call"):
        measure(server, IDENTITY, ONE_CALLER, seconds=2.0, seed=1)
