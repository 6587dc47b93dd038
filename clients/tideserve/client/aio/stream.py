"""A ModelStreamInfer call of the asyncio client."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import grpc

from tideserve.client.aio.transport import Status, Transport
from tideserve.client.errors import (
    ClientClosed,
    DeadlineExceeded,
    InvalidResponse,
    TideserveClientError,
)
from tideserve.client.inference import InferOptions, Parameter, request_of
from tideserve.client.operations import MODEL_STREAM_INFER, check_size, parsed
from tideserve.client.stream_order import Reply, StreamOrder, StreamResult
from tideserve.v1.inference_pb2 import ModelStreamInferResponse

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

_LEAVE_S: Final = 1.0  # what the server has to end a finished stream before it is cancelled


class InferStream:
    """Sends requests and hands out their results in the order sent. An async context manager.

    One task may send while another receives. Nothing is retried. Owns the call and the one
    task that reads it.
    """

    def __init__(self, transport: Transport, timeout_s: float | None, max_outstanding: int) -> None:
        self._transport = transport
        self._timeout_s = timeout_s
        self._order = StreamOrder(max_outstanding)
        self._writing = asyncio.Lock()
        self._replies: asyncio.Queue[Reply | None] = asyncio.Queue()
        self._end: TideserveClientError | None = None
        self._ended_well = False
        self._status: Status | None = None
        self._finished = False
        self._call: grpc.aio.StreamStreamCall[bytes, bytes] | None = None
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._call is not None or self._finished:
            raise ClientClosed("a stream is entered once: open another")
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

        Raises `InvalidArgument` for what cannot be sent, `ResourceExhausted` when
        max_outstanding results wait, and what ended the stream if it has ended.
        """
        request = request_of(
            model,
            inputs,
            InferOptions(version, outputs, priority, queue_timeout_s, request_id, parameters),
        )
        check_size(request, model)
        async with self._writing:
            if self._call is None or self._finished:
                raise ClientClosed("the stream takes no more requests", model=model)
            if self._end is not None:
                raise self._end
            request.id = self._order.sent(request_id, model)
            await self._write(self._call, request.SerializeToString())
        return str(request.id)

    async def finish(self) -> None:
        """Tells the server that no more requests come; results still do. Idempotent."""
        async with self._writing:
            if self._finished:
                return
            self._finished = True
            if self._call is not None and not self._call.done():
                with suppress(asyncio.InvalidStateError):  # it has ended meanwhile
                    await self._call.done_writing()

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
                for reply in self._order.answered(parsed(ModelStreamInferResponse, payload, "")):
                    self._replies.put_nowait(reply)
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
