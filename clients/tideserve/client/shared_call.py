"""One inference that may go through shared memory: what it asks for, and what its answer means."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc

from tideserve.client import operations
from tideserve.client.errors import (
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    Disconnected,
    InvalidArgument,
    NotFound,
    StreamRequestError,
    TideserveClientError,
    Unavailable,
)
from tideserve.client.inference import InferOptions, outputs_of, request_from, shared_bytes
from tideserve.client.operations import Operation
from tideserve.client.output_room import OutputRoom
from tideserve.client.segments import Segment
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tideserve.client.tensors import Array, WireTensor

# The outputs of an answer, given the segment that its request had.
View = Callable[[ModelInferResponse, Segment | None], "dict[str, Array]"]


class SharedCall:
    """One inference: its request with a segment and without, and what its answer tells of the next
    one's size. `byte_size`: of the segment that it wants, 0: none. `view`: makes outputs of its
    answer, and may outlive it: it holds none of its arrays. Without a `room` it wants nothing."""

    def __init__(
        self,
        model: str,
        tensors: "Mapping[str, WireTensor]",
        options: InferOptions,
        room: OutputRoom | None,
    ) -> None:
        self._model = model
        self._tensors = tensors
        self._options = options
        self.byte_size = 0
        self.view: View = outputs_of
        if room is None:
            return
        asked = None if options.outputs is None else tuple(options.outputs)
        shapes = tuple([(name, tensor.shape) for name, tensor in tensors.items()])
        kind = (model, options.version, asked, shapes)
        self.byte_size = shared_bytes(tensors) + room.of(kind)

        def view(response: ModelInferResponse, segment: Segment | None) -> "dict[str, Array]":
            room.on_answer(kind, response)
            return outputs_of(response, segment)

        self.view = view

    def request(self, segment: Segment | None = None) -> ModelInferRequest:
        """Large inputs are copied into the segment. Raises `InvalidArgument` for what cannot be
        sent."""
        return request_from(self._model, self._tensors, self._options, segment)

    def operation(self, segment: Segment | None = None) -> "Operation[dict[str, Array]]":
        """The unary call. Raises `InvalidArgument` for what cannot be sent."""
        return operations.infer(
            self.request(segment), lambda response: self.view(response, segment)
        )


def is_unknown(error: TideserveClientError, segment: Segment) -> bool:
    """Whether a request was refused because the server does not know its segment (which Triton
    says with NOT_FOUND, and in a stream without a code). Nobody else knows that name."""
    refusals = (InvalidArgument, NotFound, StreamRequestError)
    return isinstance(error, refusals) and segment.name in error.message


def is_answer(error: TideserveClientError) -> bool:
    """Whether the server is through with a request that ended so. Otherwise it may still compute
    it, and write its outputs."""
    return not isinstance(error, DeadlineExceeded | Cancelled | Disconnected | ClientClosed)


def is_refusal(error: TideserveClientError) -> bool:
    """Whether the server has said that it takes no segment of ours: it is elsewhere, or has no
    shared memory. Anything else may be different next time."""
    passing = (Unavailable, DeadlineExceeded, Cancelled, ClientClosed)
    return not isinstance(error, passing) and error.code is not grpc.StatusCode.ABORTED
