"""One connection to a server, and calls on it whose bytes the test chooses."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from tideserve.v1.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from tideserve.v1.methods import INFERENCE_SERVICE

TIMEOUT_S = 20.0
INFER_PATH = f"/{INFERENCE_SERVICE}/ModelInfer"
STREAM_PATH = f"/{INFERENCE_SERVICE}/ModelStreamInfer"
Metadata = tuple[tuple[str, str], ...]


class Refusal(NamedTuple):
    """What a caller is told."""

    code: grpc.StatusCode
    sentence: str


class Caller:
    """Owns nothing but the channel it is given."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def call(self, path: str, payload: bytes, metadata: Metadata = ()) -> bytes:
        """A unary call. Raises `grpc.RpcError`."""
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
        return method(payload, timeout=TIMEOUT_S, metadata=metadata)

    def infer(self, message: ModelInferRequest) -> ModelInferResponse:
        return ModelInferResponse.FromString(self.call(INFER_PATH, message.SerializeToString()))

    def refusal(
        self, path: str, message: Message | bytes, metadata: Metadata = (), *, streams: bool = False
    ) -> Refusal:
        """How a call fails, which it must; `streams`: its answer is a stream."""
        payload = message if isinstance(message, bytes) else message.SerializeToString()
        try:
            if streams:
                method: grpc.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(
                    path
                )
                got = list(method(payload, timeout=TIMEOUT_S, metadata=metadata))
            else:
                got = [self.call(path, payload, metadata)]
        except grpc.RpcError as error:
            return refusal_of(error)
        raise AssertionError(f"expected {path} to fail, got {got}")

    def stream(
        self, messages: Iterable[ModelInferRequest | bytes]
    ) -> Iterator[ModelStreamInferResponse]:
        """The answers of a ModelStreamInfer. Raises `grpc.RpcError`."""
        payloads = iter(
            [item if isinstance(item, bytes) else item.SerializeToString() for item in messages]
        )
        method: grpc.StreamStreamMultiCallable[bytes, bytes] = self._channel.stream_stream(
            STREAM_PATH
        )
        for answer in method(payloads, timeout=TIMEOUT_S):
            yield ModelStreamInferResponse.FromString(answer)


@contextmanager
def connect(address: str) -> Iterator[Caller]:
    """A connection of its own that sends messages of any size."""
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(address, options) as channel:
        yield Caller(channel)


def refusal_of(error: Any) -> Refusal:
    """The status of a failed call: its `RpcError`, which is a `Call` too."""
    return Refusal(error.code(), error.details() or "")
