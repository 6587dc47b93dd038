"""Bytes over a grpcio asyncio channel, with retries: the asyncio client's IO."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, Protocol, TypeVar, assert_never

import grpc

from tideserve.client.connection import Connection
from tideserve.client.errors import (
    ClientClosed,
    DeadlineExceeded,
    Disconnected,
    InvalidResponse,
    TideserveClientError,
)
from tideserve.client.operations import Operation
from tideserve.client.retry import Attempts, GiveUp, Retry, RetryPolicy
from tideserve.client.statuses import error_of

T = TypeVar("T")
# grpcio's own, where a write fails and no status has come.
_WRITE_FAILED: Final = "Internal error from Core"


@dataclass(frozen=True, slots=True)
class Status:
    """How a call ended."""

    code: grpc.StatusCode | None
    message: str
    trailing_metadata: tuple[tuple[str, str | bytes], ...]


class Waits(Protocol):
    """Time and chance, so that tests bring their own."""

    def now_s(self) -> float: ...

    def uniform(self) -> float: ...

    async def sleep(self, wait_s: float) -> None: ...


class SystemWaits:
    """The monotonic clock and the process's random source."""

    def now_s(self) -> float:
        return time.monotonic()

    def uniform(self) -> float:
        return random.random()  # noqa: S311 - spreads retries

    async def sleep(self, wait_s: float) -> None:
        await asyncio.sleep(wait_s)


class Transport:
    """Owns the channel, which belongs to the event loop of the first call."""

    def __init__(self, connection: Connection, retry: RetryPolicy, waits: Waits) -> None:
        self._connection = connection
        self._retry = retry
        self.waits = waits
        self.closed = False
        self._channel: grpc.aio.Channel | None = None
        self._callables: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    async def call(
        self, operation: Operation[T], timeout_s: float, retry: RetryPolicy | None = None
    ) -> T:
        """The operation's value, within `timeout_s` over all attempts."""
        payload = operation.payload()
        metadata = grpc.aio.Metadata(*self._connection.control_metadata(operation.path))
        waits = self.waits
        attempts = Attempts(retry or self._retry, timeout_s, waits.now_s(), waits.uniform)
        while True:
            invoke = self._callable(operation.path)
            try:
                timeout_left_s = attempts.begin(waits.now_s())
                return operation.read(
                    await invoke(payload, timeout=timeout_left_s, metadata=metadata)
                )
            except grpc.RpcError as failure:
                error = self.error_from(failure, operation.model)
            except (asyncio.CancelledError, grpc.aio.UsageError):
                self.raise_if_closed(operation.model)
                raise
            decision = attempts.failed(error, waits.now_s())
            match decision:
                case Retry(wait_s=wait_s):
                    await waits.sleep(wait_s)
                case GiveUp():
                    raise error
                case _:
                    assert_never(decision)

    async def first(self, operation: Operation[T], timeout_s: float) -> T:
        """The first message of a server stream of the control plane; the rest is cancelled."""
        payload = operation.payload()
        watch: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self.open().unary_stream(
            operation.path
        )
        stream = watch(
            payload,
            timeout=None if timeout_s == float("inf") else timeout_s,
            metadata=grpc.aio.Metadata(*self._connection.control_metadata(operation.path)),
        )
        try:
            async for message in stream:
                return operation.read(message)
        except grpc.RpcError as failure:
            raise self.error_from(failure, operation.model) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            self.raise_if_closed(operation.model)
            raise
        finally:
            stream.cancel()
        raise InvalidResponse("the server ended the stream before its first message")

    def stream(
        self, path: str, timeout_s: float | None
    ) -> "grpc.aio.StreamStreamCall[bytes, bytes]":
        """Opens a bidirectional call."""
        return self.open().stream_stream(path)(timeout=timeout_s)

    def error_from(self, failure: grpc.RpcError, model: str) -> TideserveClientError:
        if self.closed:
            return ClientClosed("the client was closed during the call", model=model)
        trailing = failure.trailing_metadata() or ()
        return error_of(failure.code(), failure.details() or "", tuple(trailing), model=model)

    def stream_error(self, failure: grpc.RpcError, first: Status | None) -> TideserveClientError:
        """Of a stream: `first` is the status it ended with before grpcio made another of it."""
        if self.closed or first is None or first.code is None:
            return self.error_from(failure, "")
        if _WRITE_FAILED in first.message:
            return Disconnected("the stream broke while a request was being sent")
        return error_of(first.code, first.message, first.trailing_metadata)

    def raise_if_closed(self, model: str) -> None:
        """Tells grpcio's cancellation of the calls of a closed channel from the cancellation
        of the task that makes the call, which goes on."""
        task = asyncio.current_task()
        if self.closed and not (task is not None and task.cancelling()):
            raise ClientClosed("the client was closed during the call", model=model) from None

    async def poll(
        self,
        ready: Callable[[float], Awaitable[bool]],
        timeout_s: float,
        what: str,
        poll_interval_s: tuple[float, float] = (0.05, 1.0),
    ) -> None:
        """Calls `ready(left_s)` at growing intervals until it is True; `DeadlineExceeded` after
        `timeout_s`, saying `what` was not."""
        deadline_s = self.waits.now_s() + timeout_s
        interval_s, max_interval_s = poll_interval_s
        while (left_s := deadline_s - self.waits.now_s()) > 0:
            if await ready(left_s):
                return
            await self.waits.sleep(min(interval_s, left_s))
            interval_s = min(interval_s * 2, max_interval_s)
        raise DeadlineExceeded(f"{what} was not ready within {timeout_s:g} s")

    async def close(self) -> None:
        """Idempotent; calls under way end with `ClientClosed`."""
        self.closed = True
        channel, self._channel = self._channel, None
        self._callables.clear()
        if channel is not None:
            await channel.close()

    def open(self) -> grpc.aio.Channel:
        if self.closed:
            raise ClientClosed("the client is closed: make a new one")
        if self._channel is None:
            connection = self._connection
            if connection.credentials is None:
                self._channel = grpc.aio.insecure_channel(connection.address, connection.options)
            else:
                self._channel = grpc.aio.secure_channel(
                    connection.address, connection.credentials, connection.options
                )
        return self._channel

    def _callable(self, path: str) -> "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]":
        found = self._callables.get(path)
        if found is None:
            found = self.open().unary_unary(path)
            self._callables[path] = found
        return found
