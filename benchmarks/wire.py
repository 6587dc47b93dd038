"""How calls reach a server: gRPC with the Open Inference Protocol, or HTTP with raw bytes."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Protocol

import grpc
import httpx

from benchmarks.errors import ServerFailedError, WrongAnswerError
from benchmarks.workloads import INFER_PATH, Feed, Workload, frame
from tideserve.v1.inference_pb2 import ModelStatisticsRequest, ModelStatisticsResponse

_STATISTICS_PATH: Final = "/inference.GRPCInferenceService/ModelStatistics"
_CALL_TIMEOUT_S: Final = 30.0
# A message of 600 KB is far below; the limit is the server's to set.
_OPTIONS: Final = (("grpc.max_receive_message_length", -1),)


@dataclass(frozen=True, slots=True)
class Target:
    """What a load generator sends: `body` to `url`, over HTTP/2 or, where `is_http1`, HTTP/1.1."""

    url: str
    headers: tuple[str, ...]
    body: bytes
    is_http1: bool


def infer_target(address: str, message: bytes) -> Target:
    """A serialized ModelInferRequest to a gRPC server."""
    return Target(
        url=f"http://{address}{INFER_PATH}",
        headers=("content-type: application/grpc", "te: trailers"),
        body=frame(message),
        is_http1=False,
    )


class Wire(Protocol):
    """An open way to one workload on one server.

    `send` begins a call and returns what waits for the response's bytes, WrongAnswerError where
    it failed. A response is `head_bytes` longer in the load generator's count.
    """

    head_bytes: int

    def target(self, feed: Feed) -> Target: ...

    def send(self, feed: Feed) -> Callable[[], bytes]: ...

    def success_count(self) -> int:
        """Requests of the model that the server itself counted as answered, since it started."""
        ...

    def close(self) -> None: ...


class GrpcWire:
    """Owns one channel."""

    head_bytes = 5

    def __init__(self, address: str, workload: Workload) -> None:
        self._address = address
        self._workload = workload
        self._channel = grpc.insecure_channel(address, options=_OPTIONS)
        self._infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            INFER_PATH
        )

    def target(self, feed: Feed) -> Target:
        return infer_target(self._address, self._workload.request(feed))

    def send(self, feed: Feed) -> Callable[[], bytes]:
        call = self._infer.future(self._workload.request(feed), timeout=_CALL_TIMEOUT_S)

        def collect() -> bytes:
            try:
                return call.result()
            except grpc.RpcError as error:
                raise WrongAnswerError(str(error)) from error

        return collect

    def success_count(self) -> int:
        ask = self._channel.unary_unary(
            _STATISTICS_PATH,
            request_serializer=ModelStatisticsRequest.SerializeToString,
            response_deserializer=ModelStatisticsResponse.FromString,
        )
        request = ModelStatisticsRequest(name=self._workload.model)
        try:
            answer: ModelStatisticsResponse = ask(request, timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise ServerFailedError(f"{self._address} gave no statistics: {error}") from error
        return sum(model.inference_stats.success.count for model in answer.model_stats)

    def close(self) -> None:
        self._channel.close()


class HttpWire:
    """Owns a thread for the calls: httpx knows no futures. `counter` finds, in what `/metrics`
    says, the number of requests answered with success."""

    head_bytes = 0

    def __init__(
        self, address: str, path: str, workload: Workload, counter: re.Pattern[str]
    ) -> None:
        self._address = address
        self._path = path
        self._workload = workload
        self._counter = counter
        self._client = httpx.Client(base_url=f"http://{address}", timeout=_CALL_TIMEOUT_S)
        self._pool = ThreadPoolExecutor(max_workers=1)

    def target(self, feed: Feed) -> Target:
        return Target(
            url=f"http://{self._address}{self._path}",
            headers=("content-type: application/octet-stream",),
            body=self._workload.raw(feed),
            is_http1=True,
        )

    def send(self, feed: Feed) -> Callable[[], bytes]:
        call = self._pool.submit(self._client.post, self._path, content=self._workload.raw(feed))

        def collect() -> bytes:
            try:
                return call.result().raise_for_status().content
            except httpx.HTTPError as error:
                raise WrongAnswerError(str(error)) from error

        return collect

    def success_count(self) -> int:
        try:
            printed = self._client.get("/metrics").raise_for_status().text
        except httpx.HTTPError as error:
            raise ServerFailedError(f"{self._address} gave no metrics: {error}") from error
        return sum(int(float(found[1])) for found in self._counter.finditer(printed))

    def close(self) -> None:
        self._pool.shutdown()
        self._client.close()
