"""Inference whose large tensors go through shared memory where the server is on this machine.

Whether it is shows when the first segment is registered: a server that cannot open it refuses, and
is not asked again. Results are the same either way.
"""

from contextlib import suppress
from typing import TYPE_CHECKING, Final

import grpc

from tideserve.client import operations
from tideserve.client.errors import (
    Cancelled,
    ClientClosed,
    DeadlineExceeded,
    Disconnected,
    InvalidArgument,
    NotFound,
    TideserveClientError,
    Unavailable,
)
from tideserve.client.inference import InferOptions, outputs_of, request_from, shared_bytes
from tideserve.client.operations import Operation
from tideserve.client.output_room import OutputRoom
from tideserve.client.retry import NO_RETRY
from tideserve.client.segments import Segment, SegmentPool, is_available
from tideserve.client.transport import Transport
from tideserve.v1.inference_pb2 import ModelInferResponse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tideserve.client.tensors import Array, WireTensor

# Longest wait for an answer about a segment: the inference has a deadline of its own.
REGISTER_TIMEOUT_S: Final = 5.0
UNREGISTER_TIMEOUT_S: Final = 1.0
# A server that was restarted knows no segment: once more with a new one, then without.
ATTEMPTS: Final = 2


class SharedCall:
    """One inference: its request with a segment and without, and what its answer tells of the next
    one's size. `byte_size`: of the segment that it wants, 0: none."""

    def __init__(
        self,
        model: str,
        tensors: "Mapping[str, WireTensor]",
        options: InferOptions,
        room: OutputRoom,
    ) -> None:
        self._model = model
        self._tensors = tensors
        self._options = options
        self._room = room
        asked = None if options.outputs is None else tuple(options.outputs)
        shapes = tuple((name, tuple(tensor.shape)) for name, tensor in tensors.items())
        self._kind = (model, options.version, asked, shapes)
        self.byte_size = shared_bytes(tensors) + room.of(self._kind)

    def operation(self, segment: Segment | None = None) -> "Operation[dict[str, Array]]":
        """Raises `InvalidArgument` for what cannot be sent."""

        def view(response: ModelInferResponse) -> "dict[str, Array]":
            self._room.on_answer(self._kind, response)
            return outputs_of(response, segment)

        request = request_from(self._model, self._tensors, self._options, segment)
        return operations.infer(request, view)


class SharedInference:
    """Owns the segments of one client. Any thread may call."""

    def __init__(self, transport: Transport, *, enabled: bool) -> None:
        self._transport = transport
        self._pool = SegmentPool(enabled and is_available())
        self._room = OutputRoom()

    def infer(
        self,
        model: str,
        tensors: "Mapping[str, WireTensor]",
        options: InferOptions,
        timeout_s: float,
    ) -> "dict[str, Array]":
        """The outputs by name, within `timeout_s` in all."""
        now_s = self._transport.waits.now_s
        deadline_s = now_s() + timeout_s
        call = SharedCall(model, tensors, options, self._room)
        byte_size = call.byte_size if self._pool.is_on else 0
        for _ in range(ATTEMPTS if byte_size else 0):
            segment = self._segment(byte_size, deadline_s - now_s())
            if segment is None:
                break
            is_over = False
            try:
                operation = call.operation(segment)
                outputs = self._transport.call(operation, deadline_s - now_s())
            except TideserveClientError as error:
                is_over = is_answer(error)
                if not is_unknown(error, segment):
                    raise
                self._pool.forget()
            else:
                is_over = True
                return outputs
            finally:
                self._leave(segment, is_over=is_over)
        else:
            if byte_size:
                self._pool.switch_off()
        return self._transport.call(call.operation(), deadline_s - now_s())

    def close(self) -> None:
        """Unregisters what is registered, as far as the server answers. Idempotent."""
        self._unregister(self._pool.close())

    # --- inside ---------------------------------------------------------------------------

    def _segment(self, byte_size: int, timeout_s: float) -> Segment | None:
        """One that the server knows; None: do without."""
        segment = self._pool.take(byte_size)
        if segment is not None:
            return segment
        segment, dropped = self._pool.make(byte_size)
        if segment is None:
            self._unregister(dropped)
            return None
        is_known = False
        try:
            self._unregister(dropped)
            timeout_s = min(timeout_s, REGISTER_TIMEOUT_S)
            self._transport.call(operations.register(segment), timeout_s, NO_RETRY)
            is_known = True
        except TideserveClientError as error:
            if is_refusal(error):
                self._pool.switch_off()
        finally:
            segment.unlink()
            if not is_known:
                self._pool.discard(segment)
        return segment if is_known else None

    def _leave(self, segment: Segment, *, is_over: bool) -> None:
        if is_over:
            self._pool.give_back(segment)
        else:
            self._pool.abandon(segment)

    def _unregister(self, names: list[str]) -> None:
        """As far as the server answers: it notices by itself that their lock is gone."""
        with suppress(TideserveClientError):
            for name in names:
                self._transport.call(operations.unregister(name), UNREGISTER_TIMEOUT_S, NO_RETRY)


def is_unknown(error: TideserveClientError, segment: Segment) -> bool:
    """Whether a request was refused because the server does not know its segment (which Triton
    says with NOT_FOUND). Nobody else knows that name."""
    return isinstance(error, InvalidArgument | NotFound) and segment.name in error.message


def is_answer(error: TideserveClientError) -> bool:
    """Whether the server is through with a request that ended so. Otherwise it may still compute
    it, and write its outputs."""
    return not isinstance(error, DeadlineExceeded | Cancelled | Disconnected | ClientClosed)


def is_refusal(error: TideserveClientError) -> bool:
    """Whether the server has said that it takes no segment of ours: it is elsewhere, or has no
    shared memory. Anything else may be different next time."""
    passing = (Unavailable, DeadlineExceeded, Cancelled, ClientClosed)
    return not isinstance(error, passing) and error.code is not grpc.StatusCode.ABORTED
