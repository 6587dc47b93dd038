"""Inference whose large inputs go through shared memory where the server is on this machine.

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
    InvalidArgument,
    NotFound,
    TideserveClientError,
    Unavailable,
)
from tideserve.client.inference import InferOptions, request_from, shared_bytes
from tideserve.client.retry import NO_RETRY
from tideserve.client.segments import Segment, SegmentPool, is_available
from tideserve.client.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tideserve.client.tensors import Array, WireTensor

# Longest wait for an answer about a segment: the inference has a deadline of its own.
REGISTER_TIMEOUT_S: Final = 5.0
UNREGISTER_TIMEOUT_S: Final = 1.0
# A server that was restarted knows no segment: once more with a new one, then without.
ATTEMPTS: Final = 2


class SharedInference:
    """Owns the segments of one client. Any thread may call."""

    def __init__(self, transport: Transport, *, enabled: bool) -> None:
        self._transport = transport
        self._pool = SegmentPool(enabled and is_available())

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
        byte_size = shared_bytes(tensors) if self._pool.is_on else 0
        for _ in range(ATTEMPTS if byte_size else 0):
            segment = self._segment(byte_size, deadline_s - now_s())
            if segment is None:
                break
            try:
                request = request_from(model, tensors, options, segment)
                return self._transport.call(operations.infer(request), deadline_s - now_s())
            except (InvalidArgument, NotFound) as error:
                if not is_unknown(error, segment):
                    raise
                self._pool.forget()
            finally:
                self._pool.give_back(segment)
        else:
            if byte_size:
                self._pool.switch_off()
        request = request_from(model, tensors, options)
        return self._transport.call(operations.infer(request), deadline_s - now_s())

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

    def _unregister(self, names: list[str]) -> None:
        """As far as the server answers: it notices by itself that their lock is gone."""
        with suppress(TideserveClientError):
            for name in names:
                self._transport.call(operations.unregister(name), UNREGISTER_TIMEOUT_S, NO_RETRY)


def is_unknown(error: TideserveClientError, segment: Segment) -> bool:
    """Whether a request was refused because the server does not know its segment (which Triton
    says with NOT_FOUND). Nobody else knows that name."""
    return segment.name in error.message


def is_refusal(error: TideserveClientError) -> bool:
    """Whether the server has said that it takes no segment of ours: it is elsewhere, or has no
    shared memory. Anything else may be different next time."""
    passing = (Unavailable, DeadlineExceeded, Cancelled, ClientClosed)
    return not isinstance(error, passing) and error.code is not grpc.StatusCode.ABORTED
