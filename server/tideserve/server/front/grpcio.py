"""The grpcio front: a grpc.aio server on a thread of its own.

It carries TLS and mTLS, and serves where the native front cannot.
"""

import asyncio
import functools
import itertools
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from typing import Final

import grpc
import grpc.aio

from tideserve.server.errors import UnsupportedFrontError
from tideserve.server.front import (
    Call,
    Cancel,
    Event,
    FrontSettings,
    HalfClose,
    Metadata,
    Status,
    StreamMessage,
)
from tideserve.server.front.event_queue import EventQueue
from tideserve.server.front.grpcio_server import (
    bind,
    bind_own_socket,
    server_credentials,
    server_options,
)
from tideserve.server.front.refusal import (
    LAST_ANSWERS_S,
    answer_too_large,
    reads_too_slowly,
    server_has_stopped,
    stream_backlog_is_full,
    too_many_events,
)
from tideserve.v1.metadata import GRPC_PUSHBACK_METADATA_KEY, PUSHBACK_METADATA_KEY
from tideserve.v1.methods import Kind

_STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}

_Context = grpc.aio.ServicerContext[bytes, bytes]


class _Stream:
    """A streaming call's answers on their way out.

    The dispatcher's thread counts in, the loop counts out: their difference is what waits.
    """

    __slots__ = (
        "bytes_in",
        "bytes_out",
        "cut",
        "is_read",
        "items",
        "messages_in",
        "messages_out",
        "ready",
    )

    def __init__(self, *, is_read: bool) -> None:
        self.is_read = is_read  # the caller streams too
        self.items: deque[bytes | Status | None] = deque()  # None: end with OK
        self.ready = asyncio.Event()
        self.cut = False  # drop what waits, only the status still goes out
        self.bytes_in = self.bytes_out = 0
        self.messages_in = self.messages_out = 0


_Answer = asyncio.Future[bytes | Status]


class GrpcioFront:
    """A `Front` on grpc.aio. `methods` are (path, kind); messages stay bytes.

    A call lives in `_calls` until it is answered or its caller is gone. `dict.pop` is atomic,
    and whoever pops a call ends it: either an answer finds its call or a `Cancel` is sent.
    """

    def __init__(self, methods: Sequence[tuple[str, Kind]], settings: FrontSettings) -> None:
        if settings.link_folder is not None:
            raise UnsupportedFrontError(
                "--link-folder: expected the native front without TLS: the other one cannot pass "
                "memory on, and the folder's socket would lead past certificates"
            )
        if settings.busy_poll_s:
            raise UnsupportedFrontError(
                "--busy-poll-us: expected the native front without TLS: the other one waits in "
                "threads of grpcio's"
            )
        self._settings = settings
        self._ids = itertools.count(1)
        self._handlers = {path: self._handler(path, kind) for path, kind in methods}
        self._calls: dict[int, _Answer | _Stream] = {}
        self._events = EventQueue()
        self._outbox: deque[tuple[_Answer | _Stream, bytes | Status | None]] = deque()
        self._flush_waits = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None
        self._port = 0
        self._closing = False

    @property
    def port(self) -> int:
        """The bound port; 0 before `start`."""
        return self._port

    @property
    def open_calls(self) -> int:
        """Calls begun and neither answered nor cancelled."""
        return len(self._calls)

    @property
    def has_unsent(self) -> bool:
        """Not known: grpc-core has them, and does not say."""
        return False

    def start(self) -> None:
        """Binds and accepts, once.

        Raises `AddressInUseError`, `CertificateError`, `StartError` for any other bind.
        """
        assert self._thread is None, "a front starts once"
        credentials = server_credentials(self._settings)
        started: Future[int] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(credentials, started)), name="front-grpcio"
        )
        self._thread.start()
        try:
            self._port = started.result()
        except BaseException:
            self._thread.join()
            self._thread = None
            raise

    def recv(self, max_events: int, timeout_s: float) -> list[Event]:
        """Waits for events, at most `timeout_s`; empty when none came or `wake` was called."""
        return self._events.take(max_events, timeout_s)

    def respond(self, call_id: int, payload: bytes) -> bool:
        """Answers a unary call. False: the call is already gone."""
        limit_bytes = self._settings.max_answer_bytes
        if len(payload) > limit_bytes:
            return self.fail(call_id, answer_too_large(len(payload), limit_bytes))
        call = self._calls.get(call_id)
        assert not isinstance(call, _Stream), "a streaming call is answered by send and end"
        return self._finish(call_id, payload)

    def respond_parts(self, call_id: int, parts: Sequence[bytes | memoryview]) -> bool:
        """As `respond`, with a message in parts."""
        return self.respond(call_id, b"".join(parts))

    def fail(self, call_id: int, status: Status) -> bool:
        """Ends any call with a status. False: the call is already gone."""
        return self._finish(call_id, status)

    def send(self, call_id: int, payload: bytes) -> bool:
        """Sends one message on a streaming call. False: the call is already gone.

        A message over the limit, or one that passes the stream's backlog because the caller
        does not read, ends the call with RESOURCE_EXHAUSTED: also False.
        """
        stream = self._calls.get(call_id)
        if stream is None:
            return False
        assert isinstance(stream, _Stream), "a unary call is answered by respond"
        limit_bytes = self._settings.max_answer_bytes
        if len(payload) > limit_bytes:
            self.fail(call_id, answer_too_large(len(payload), limit_bytes))
            return False
        waiting_bytes = stream.bytes_in - stream.bytes_out
        waiting = stream.messages_in - stream.messages_out
        if stream_backlog_is_full(waiting, waiting_bytes, len(payload)):
            stream.cut = True
            self.fail(call_id, reads_too_slowly(waiting, waiting_bytes))
            return False
        stream.bytes_in += len(payload)
        stream.messages_in += 1
        self._post(stream, payload)
        return True

    def send_file(self, call_id: int, fd: int) -> bool:  # noqa: ARG002 - a front's
        """False: grpcio does not hand its sockets out."""
        return False

    def end(self, call_id: int) -> None:
        """Ends a streaming call with OK, after what was sent."""
        self._finish(call_id, None)

    def wake(self) -> None:
        """Makes the `recv` that waits now, or the next one, return. Any thread."""
        self._events.wake()

    def close(self) -> None:
        """Ends all calls that are left (UNAVAILABLE, streaming callers' CANCELLED), unbinds, ends
        the thread."""
        if self._thread is None:
            return
        for call_id, call in list(self._calls.items()):
            # grpc.aio keeps its thread alive for a call that is aborted while it is read; one
            # that is cancelled it lets go.
            if not (isinstance(call, _Stream) and call.is_read):
                self.fail(call_id, server_has_stopped())
        self._closing = True
        assert self._stop is not None
        self._on_loop(self._stop.set)
        self._thread.join()
        self._thread = None
        self._calls.clear()
        self._events = EventQueue()  # what waited there belongs to calls that are over

    # --- the dispatcher's side ------------------------------------------------------------

    def _finish(self, call_id: int, answer: bytes | Status | None) -> bool:
        call = self._calls.pop(call_id, None)
        if call is None:
            return False
        self._post(call, answer)
        return True

    def _post(self, call: _Answer | _Stream, item: bytes | Status | None) -> None:
        """Hands an answer to the loop: one wake-up of the loop for all that gather until then."""
        self._outbox.append((call, item))
        if not self._flush_waits:
            self._flush_waits = True
            self._on_loop(self._flush)

    def _on_loop(self, callback: Callable[[], None]) -> None:
        assert self._loop is not None, "the front has not started"
        self._loop.call_soon_threadsafe(callback)

    # --- the loop's side ------------------------------------------------------------------

    def _flush(self) -> None:
        self._flush_waits = False
        outbox = self._outbox
        while outbox:
            call, item = outbox.popleft()
            if isinstance(call, _Stream):
                if call.cut:
                    call.items.clear()
                call.items.append(item)
                call.ready.set()
            elif not call.done():
                assert item is not None
                call.set_result(item)

    async def _serve(
        self, credentials: grpc.ServerCredentials | None, started: Future[int]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._events.open(self._loop)
        server = grpc.aio.server(options=server_options(self._settings))
        server.add_generic_rpc_handlers((_Handlers(self._handlers),))
        try:
            port = bind(server, self._settings, credentials)
            bind_own_socket(server, self._settings, port)
            await server.start()
        except BaseException as error:  # noqa: BLE001
            # start() raises it in the thread that waits for it.
            started.set_exception(error)
            await server.stop(None)
            return
        started.set_result(port)
        await self._stop.wait()
        await server.stop(LAST_ANSWERS_S)

    def _handler(self, path: str, kind: Kind) -> "grpc.RpcMethodHandler[bytes, bytes]":
        match kind:
            case Kind.UNARY:
                return grpc.unary_unary_rpc_method_handler(functools.partial(self._unary, path))
            case Kind.SERVER_STREAM:
                return grpc.unary_stream_rpc_method_handler(
                    functools.partial(self._server_stream, path)
                )
            case Kind.BIDI:
                return grpc.stream_stream_rpc_method_handler(functools.partial(self._bidi, path))

    async def _unary(self, path: str, request: bytes, context: _Context) -> bytes:
        await self._refuse_when_full(context)
        answer: _Answer = asyncio.get_running_loop().create_future()
        call_id = self._begin(path, request, context, answer)
        try:
            result = await answer
        except asyncio.CancelledError:
            self._cancel(call_id)
            raise
        if isinstance(result, bytes):
            return result
        return await _abort(context, result)

    async def _server_stream(self, path: str, request: bytes, context: _Context) -> None:
        await self._refuse_when_full(context)
        stream = _Stream(is_read=False)
        call_id = self._begin(path, request, context, stream)
        await self._answer_stream(call_id, stream, context)

    async def _bidi(self, path: str, _requests: object, context: _Context) -> None:
        await self._refuse_when_full(context)
        stream = _Stream(is_read=True)
        call_id = self._begin(path, b"", context, stream)
        reader = asyncio.create_task(self._read(call_id, context))
        try:
            await self._answer_stream(call_id, stream, context)
        finally:
            reader.cancel()

    def _begin(self, path: str, payload: bytes, context: _Context, call: _Answer | _Stream) -> int:
        call_id = next(self._ids)
        self._calls[call_id] = call
        metadata = tuple(context.invocation_metadata() or ())
        self._events.put(
            Call(call_id, path, payload, metadata, context.peer(), context.time_remaining())
        )
        return call_id

    async def _answer_stream(self, call_id: int, stream: _Stream, context: _Context) -> None:
        items = stream.items
        try:
            await context.send_initial_metadata(())
            while True:
                if not items:
                    stream.ready.clear()
                    await stream.ready.wait()
                item = items.popleft()
                if item is None:
                    return
                if isinstance(item, Status):
                    await _abort(context, item)
                else:
                    await context.write(item)
                    stream.bytes_out += len(item)
                    stream.messages_out += 1
        except asyncio.CancelledError:
            self._cancel(call_id)
            raise
        except (grpc.aio.InternalError, grpc.aio.UsageError):
            self._cancel(call_id)  # a write that found the connection gone

    async def _read(self, call_id: int, context: _Context) -> None:
        while True:
            await self._events.wait_for_room()
            message: object = await context.read()
            if call_id not in self._calls:
                return
            if not isinstance(message, bytes):  # grpc.aio.EOF
                self._events.put(HalfClose(call_id))
                return
            self._events.put(StreamMessage(call_id, message))

    def _cancel(self, call_id: int) -> None:
        if self._calls.pop(call_id, None) is not None and not self._closing:
            self._events.put(Cancel(call_id))

    async def _refuse_when_full(self, context: _Context) -> None:
        if self._events.is_full:
            await _abort(context, too_many_events(*self._events.waiting))


class _Handlers(grpc.GenericRpcHandler):
    """The method table; grpc-core answers UNIMPLEMENTED where it has nothing."""

    def __init__(self, handlers: "dict[str, grpc.RpcMethodHandler[bytes, bytes]]") -> None:
        self._handlers = handlers

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        return self._handlers.get(handler_call_details.method)


def _abort(context: _Context, status: Status) -> Awaitable[bytes]:
    trailers: Metadata = ()
    if status.pushback_ms is not None:
        pushback = str(status.pushback_ms)
        trailers = ((GRPC_PUSHBACK_METADATA_KEY, pushback), (PUSHBACK_METADATA_KEY, pushback))
    code = _STATUS_CODES.get(status.code, grpc.StatusCode.UNKNOWN)
    return context.abort(code, status.message, trailers)
