"""A ModelStreamInfer call of the sync client."""

import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import grpc

from tideserve.client.errors import (
    ClientClosed,
    DeadlineExceeded,
    InvalidResponse,
    TideserveClientError,
)
from tideserve.client.inference import InferOptions, Parameter, encoded
from tideserve.client.operations import MODEL_STREAM_INFER, check_size, parsed
from tideserve.client.shared_call import SharedCall
from tideserve.client.shared_segments import SharedSegments
from tideserve.client.stream_order import Reply, SentRequest, StreamOrder, StreamResult
from tideserve.client.transport import StreamCall, Transport
from tideserve.v1.inference_pb2 import ModelStreamInferResponse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LEAVE_S: Final = 1.0  # what the server has to end a finished stream before it is cancelled


class InferStream:
    """Sends requests and hands out their results in the order sent. A context manager.

    One thread may send while another receives. Nothing is retried. Owns the call, the one thread
    that reads it, and the segments of what was sent until it is answered.
    """

    def __init__(
        self,
        transport: Transport,
        segments: SharedSegments,
        timeout_s: float | None,
        max_outstanding: int,
    ) -> None:
        self._transport = transport
        self._segments = segments
        self._timeout_s = timeout_s
        self._end_s = math.inf
        self._lock = threading.Lock()
        self._order = StreamOrder(max_outstanding)
        self._outgoing: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[Reply | None] = queue.SimpleQueue()
        self._end: TideserveClientError | None = None
        self._finished = False
        self._half_closed = False
        self._call: StreamCall | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._call is not None or self._finished:
            raise ClientClosed("a stream is entered once: open another")
        if self._timeout_s is not None:
            self._end_s = self._transport.waits.now_s() + self._timeout_s
        requests: Callable[[], bytes | None] = self._outgoing.get
        call = self._transport.stream(MODEL_STREAM_INFER, iter(requests, None), self._timeout_s)
        self._call = call
        self._reader = threading.Thread(
            target=self._read, args=(call,), name="tideserve-stream", daemon=True
        )
        self._reader.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def outstanding(self) -> int:
        """Requests sent whose results have not been received."""
        with self._lock:
            return self._order.unread

    def send(
        self,
        model: str,
        inputs: "Mapping[str, ArrayLike]",
        *,
        version: str = "",
        outputs: Sequence[str] | None = None,
        priority: int | None = None,
        queue_timeout_s: float | None = None,
        request_id: str = "",
        parameters: Mapping[str, Parameter] | None = None,
    ) -> str:
        """Sends one request and returns its id, which its result will carry.

        The inputs may be changed afterwards. Raises `InvalidArgument` for what cannot be sent,
        `ResourceExhausted` when max_outstanding results wait, and what ended the stream if it has
        ended.
        """
        options = InferOptions(version, outputs, priority, queue_timeout_s, request_id, parameters)
        tensors = encoded(model, inputs, options)
        call = SharedCall(model, tensors, options, self._segments.room)
        sent = SentRequest(model, call.view)
        if call.byte_size:
            self._check_open(model)
            left_s = self._end_s - self._transport.waits.now_s()
            sent.segment = self._segments.take(call.byte_size, left_s)
        try:
            request = call.request(sent.segment)
            check_size(request, model)
            sent.request = None if sent.segment is None else request
            with self._lock:
                self._check_open(model)
                self._order.sent(request_id, sent)
                request.id = sent.request_id
                self._outgoing.put(request.SerializeToString())
        finally:
            if sent.segment is not None and not sent.request_id:
                self._segments.pool.give_back(sent.segment)
        return sent.request_id

    def finish(self) -> None:
        """Tells the server that no more requests come; results still do. Idempotent."""
        with self._lock:
            self._finished = True
            self._half_close()

    def receive(self, timeout_s: float | None = None) -> StreamResult:
        """Waits for the next result, in the order sent.

        Raises the typed error of the request if it failed (the stream goes on), and what
        ended the stream if it has ended; `DeadlineExceeded` after `timeout_s`, which costs
        no result.
        """
        try:
            reply = self._replies.get(timeout=timeout_s)
        except queue.Empty:
            raise DeadlineExceeded(f"no result within {timeout_s} s") from None
        match reply:
            case StreamResult():
                self._one_read()
                return reply
            case TideserveClientError():
                self._one_read()
                raise reply
            case None:
                self._replies.put(None)  # for whoever asks next
                raise self._end or ClientClosed("the stream is closed")

    def ready(self) -> bool:
        """Whether `receive` would return, or raise, at once."""
        return not self._replies.empty()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamResult:
        """`receive`, until every request sent so far has its result."""
        if self.outstanding == 0:
            raise StopIteration
        return self.receive()

    def close(self) -> None:
        """Ends the call, abandoning results that were not received. Idempotent."""
        self.finish()
        call, reader = self._call, self._reader
        if call is None or reader is None:
            return
        if self.outstanding == 0:
            reader.join(_LEAVE_S)
        call.cancel()
        if reader is not threading.current_thread():
            reader.join()

    def _check_open(self, model: str) -> None:
        if self._call is None or self._finished:
            raise ClientClosed("the stream takes no more requests", model=model)
        if self._end is not None:
            raise self._end

    def _half_close(self) -> None:
        """Once nothing more is to be sent, or sent again."""
        if self._finished and not self._half_closed and not self._order.has_segments:
            self._half_closed = True
            self._outgoing.put(None)

    def _one_read(self) -> None:
        with self._lock:
            self._order.read()

    def _read(self, call: StreamCall) -> None:
        end: TideserveClientError | None = None
        try:
            for payload in call:
                response = parsed(ModelStreamInferResponse, payload, "")
                for reply in self._answered(response):
                    self._replies.put(reply)
        except grpc.RpcError as failure:
            end = self._transport.error_from(failure, "")
        except InvalidResponse as error:
            end = error
            call.cancel()
        finally:
            self._ended(end)

    def _answered(self, response: ModelStreamInferResponse) -> list[Reply]:
        pool = self._segments.pool
        with self._lock:
            answered = self._order.answered(response)
            if answered.again is not None:
                self._outgoing.put(answered.again.SerializeToString())
            if answered.segment is not None:
                if answered.again is not None:
                    pool.forget(answered.segment)
                pool.give_back(answered.segment)
                self._half_close()
        return answered.leaving

    def _ended(self, end: TideserveClientError | None) -> None:
        with self._lock:
            unanswered = self._order.unanswered
            if end is None and unanswered:
                end = InvalidResponse(
                    f"the server ended the stream with {unanswered} requests unanswered"
                )
            self._end = end or ClientClosed("the stream has ended")
            self._outgoing.put(None)  # ends grpcio's sending thread
            for segment in self._order.ended():
                self._segments.pool.abandon(segment)
        self._replies.put(None)
