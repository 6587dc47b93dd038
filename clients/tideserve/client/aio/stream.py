"""A ModelStreamInfer call of the asyncio client."""

import asyncio
import math
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import grpc

from tideserve.client.aio.shared_segments import SharedSegments
from tideserve.client.aio.transport import Status, Transport
from tideserve.client.errors import (
    ClientClosed,
    DeadlineExceeded,
    InvalidResponse,
    TideserveClientError,
)
from tideserve.client.inference import InferOptions, Parameter, encoded
from tideserve.client.operations import MODEL_STREAM_INFER, check_size, parsed
from tideserve.client.shared_call import SharedCall
from tideserve.client.stream_order import Reply, SentRequest, StreamOrder, StreamResult
from tideserve.v1.inference_pb2 import ModelStreamInferResponse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LEAVE_S: Final = 1.0  # what the server has to end a finished stream before it is cancelled


class InferStream:
    """Sends requests and hands out their results in the order sent. An async context manager.

    One task may send while another receives. Nothing is retried. Owns the call, the one task
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
        self._order = StreamOrder(max_outstanding)
        self._writing = asyncio.Lock()
        self._replies: asyncio.Queue[Reply | None] = asyncio.Queue()
        self._end: TideserveClientError | None = None
        self._ended_well = False
        self._status: Status | None = None
        self._finished = False
        self._half_closed = False
        self._again: deque[bytes] = deque()
        self._catching_up: asyncio.Task[None] | None = None
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._call is not None or self._finished:
            raise ClientClosed("a stream is entered once: open another")
        if self._timeout_s is not None:
            self._end_s = self._transport.waits.now_s() + self._timeout_s
        self._call = self._transport.stream(MODEL_STREAM_INFER, self._timeout_s)
        self._call.add_done_callback(self._keep_status)
        self._reader = asyncio.create_task(self._read(self._call), name="tideserve-stream")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def outstanding(self) -> int:
        """Requests sent whose results have not been received."""
        return self._order.unread

    async def send(
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
            self._open_call(model)
            left_s = self._end_s - self._transport.waits.now_s()
            sent.segment = await self._segments.take(call.byte_size, left_s)
        try:
            request = call.request(sent.segment)
            check_size(request, model)
            sent.request = None if sent.segment is None else request
            async with self._writing:
                stream = self._open_call(model)
                self._order.sent(request_id, sent)
                request.id = sent.request_id
                await self._write(stream, request.SerializeToString())
        finally:
            if sent.segment is not None and not sent.request_id:
                self._segments.pool.give_back(sent.segment)
        return sent.request_id

    async def finish(self) -> None:
        """Tells the server that no more requests come; results still do. Idempotent."""
        async with self._writing:
            self._finished = True
            if self._call is not None:
                await self._half_close(self._call)

    async def receive(self, timeout_s: float | None = None) -> StreamResult:
        """Waits for the next result, in the order sent.

        Raises the typed error of the request if it failed (the stream goes on), and what
        ended the stream if it has ended; `DeadlineExceeded` after `timeout_s`, which costs
        no result.
        """
        try:
            async with asyncio.timeout(timeout_s):
                reply = await self._replies.get()
        except TimeoutError:
            raise DeadlineExceeded(f"no result within {timeout_s} s") from None
        match reply:
            case StreamResult():
                self._order.read()
                return reply
            case TideserveClientError():
                self._order.read()
                raise reply
            case None:
                self._replies.put_nowait(None)  # for whoever asks next
                raise self._end or ClientClosed("the stream is closed")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamResult:
        """`receive`, until every request sent so far has its result."""
        if self.outstanding == 0:
            raise StopAsyncIteration
        return await self.receive()

    async def next_or_end(self) -> StreamResult | None:
        """`receive`, and None once the server has answered everything and ended the stream,
        which it does after `finish`."""
        try:
            return await self.receive()
        except ClientClosed:
            if self._ended_well:
                return None
            raise

    async def close(self) -> None:
        """Ends the call, abandoning results that were not received. Idempotent."""
        call, reader = self._call, self._reader
        if call is None or reader is None:
            self._finished = True
            return
        try:
            if self.outstanding == 0:
                await self.finish()
                await asyncio.wait([reader], timeout=_LEAVE_S)
        finally:
            self._finished = True
            call.cancel()
            await asyncio.wait([reader])
            if self._catching_up is not None:
                await asyncio.wait([self._catching_up])

    def _open_call(self, model: str) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
        if self._call is None or self._finished:
            raise ClientClosed("the stream takes no more requests", model=model)
        if self._end is not None:
            raise self._end
        return self._call

    @property
    def _is_behind(self) -> bool:
        """Whether something is to be sent that `send` and `finish` have left."""
        is_through = self._finished and not self._half_closed and not self._order.has_segments
        return bool(self._again) or is_through

    async def _catch_up(self, call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
        """A task of its own: a reader that waited to write would keep the server from it."""
        # The call may end meanwhile: the reader knows why.
        with suppress(grpc.RpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            async with self._writing:
                while self._again:
                    await call.write(self._again.popleft())
                await self._half_close(call)

    async def _half_close(self, call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
        """Once nothing more is to be sent, or sent again."""
        if self._again or not self._is_behind:
            return
        self._half_closed = True
        if not call.done():
            with suppress(asyncio.InvalidStateError):  # it has ended meanwhile
                await call.done_writing()

    async def _write(self, call: "grpc.aio.StreamStreamCall[bytes, bytes]", payload: bytes) -> None:
        try:
            await call.write(payload)
        except (grpc.RpcError, asyncio.InvalidStateError, asyncio.CancelledError):
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # The call has ended: the reader knows why.
            assert self._reader is not None
            await asyncio.wait([self._reader])
            raise self._end or ClientClosed("the stream has ended") from None

    async def _read(self, call: "grpc.aio.StreamStreamCall[bytes, bytes]") -> None:
        end: TideserveClientError | None = None
        try:
            async for payload in call:
                for reply in self._answered(parsed(ModelStreamInferResponse, payload, "")):
                    self._replies.put_nowait(reply)
                if self._is_behind and (self._catching_up is None or self._catching_up.done()):
                    self._catching_up = asyncio.create_task(
                        self._catch_up(call), name="tideserve-stream-catching-up"
                    )
        except grpc.RpcError as failure:
            end = self._transport.stream_error(failure, self._status)
        except asyncio.CancelledError:
            # close() cancelled the call, or the client's channel closed under it.
            end = ClientClosed("the stream was closed")
        except InvalidResponse as error:
            end = error
            call.cancel()
        finally:
            self._ended(end)

    def _answered(self, response: ModelStreamInferResponse) -> list[Reply]:
        pool = self._segments.pool
        answered = self._order.answered(response)
        if answered.again is not None:
            self._again.append(answered.again.SerializeToString())
        if answered.segment is not None:
            if answered.again is not None:
                pool.forget(answered.segment)
            pool.give_back(answered.segment)
        return answered.leaving

    def _keep_status(self, call: Any) -> None:
        """grpcio overwrites the server's status with INTERNAL when a write fails after it
        came (grpc/grpc issue 36066); the first one is the server's."""
        if self._status is None:
            self._status = Status(
                _result_now(call.code()),
                _result_now(call.details()) or "",
                tuple(_result_now(call.trailing_metadata()) or ()),
            )

    def _ended(self, end: TideserveClientError | None) -> None:
        unanswered = self._order.unanswered
        if end is None and unanswered:
            end = InvalidResponse(
                f"the server ended the stream with {unanswered} requests unanswered"
            )
        for segment in self._order.ended():
            self._segments.pool.abandon(segment)
        self._ended_well = end is None
        self._end = end or ClientClosed("the stream has ended")
        self._replies.put_nowait(None)


def _result_now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    return None
