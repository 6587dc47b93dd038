"""Checked calls beside the load: random inputs, every answer compared."""

import threading
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import grpc
import numpy as np

from benchmarks.errors import ServerFailedError, WrongAnswerError
from benchmarks.peers.peer import Peer
from benchmarks.workloads import INFER_PATH, Rows, Workload
from tideserve.v1.inference_pb2 import ModelStatisticsRequest, ModelStatisticsResponse

_STATISTICS_PATH: Final = "/inference.GRPCInferenceService/ModelStatistics"
_CALL_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class _Sent:
    row: Rows
    answer: "grpc.Future[bytes]"  # generic in its stubs only


class Checker:
    """Owns one channel to a peer and calls one workload on it."""

    def __init__(self, peer: Peer, workload: Workload, seed: int) -> None:
        self._peer = peer
        self._workload = workload
        self._random = np.random.default_rng(seed)
        self._channel = grpc.insecure_channel(peer.address)
        self._infer: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            INFER_PATH
        )
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._channel.close()

    def random_row(self) -> Rows:
        return self._workload.random_row(self._random)

    def answer_bytes(self, row: Rows) -> int:
        """Sends one row, checks the answer, returns the length of its gRPC frame."""
        response = self._collect(self._send(row))
        return len(response) + 5

    def calls(self, count: int) -> None:
        """Sends `count` checked calls one after the other."""
        for _ in range(count):
            self._collect(self._send(self.random_row()))

    def calls_over(self, count: int, seconds: float) -> None:
        """Sends `count` calls evenly over `seconds`, checks the answers when all are sent."""
        sent: list[_Sent] = []
        for _ in range(count):
            sent.append(self._send(self.random_row()))
            self._ended.wait(seconds / count)
        for call in sent:
            self._collect(call)

    def success_count(self) -> int:
        """Requests of the model that the server counted as answered, since it started."""
        ask = self._channel.unary_unary(
            _STATISTICS_PATH,
            request_serializer=ModelStatisticsRequest.SerializeToString,
            response_deserializer=ModelStatisticsResponse.FromString,
        )
        request = ModelStatisticsRequest(name=self._workload.model)
        try:
            answer: ModelStatisticsResponse = ask(request, timeout=_CALL_TIMEOUT_S)
        except grpc.RpcError as error:
            raise ServerFailedError(f"{self._peer.name} gave no statistics: {error}") from error
        return sum(model.inference_stats.success.count for model in answer.model_stats)

    def _send(self, row: Rows) -> _Sent:
        call = self._infer.future(self._workload.request(row), timeout=_CALL_TIMEOUT_S)
        return _Sent(row, call)

    def _collect(self, sent: _Sent) -> bytes:
        try:
            response: bytes = sent.answer.result()
        except grpc.RpcError as error:
            raise WrongAnswerError(f"{self._peer.name} failed a checked call: {error}") from error
        self._peer.check(self._workload, sent.row, response)
        return response
