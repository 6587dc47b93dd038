"""Bytes over a grpcio channel, with retries: the sync client's IO."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar, assert_never

import grpc

from tideserve.client.connection import Connection
from tideserve.client.errors import (
    ClientClosed,
    DeadlineExceeded,
    InvalidResponse,
    TideserveClientError,
)
from tideserve.client.operations import Operation
from tideserve.client.retry import Attempts, GiveUp, Retry, RetryPolicy
from tideserve.client.statuses import error_of

T = TypeVar("T")
Closed = threading.Event


class Waits(Protocol):
    """Time and chance, so that tests bring their own."""

    def now_s(self) -> float: ...

    def uniform(self) -> float: ...

    def sleep(self, wait_s: float, closed: Closed) -> None:
        """Sleeps, and wakes early where `closed` is set."""


class SystemWaits:
    """The monotonic clock and the process's random source."""

    def now_s(self) -> float:
        return time.monotonic()

    def uniform(self) -> float:
        return random.random()  # noqa: S311 - spreads retries

    def sleep(self, wait_s: float, closed: Closed) -> None:
        closed.wait(wait_s)


class Transport:
    """Owns the channel. Any thread may call; after `close` everything raises `ClientClosed`."""

    def __init__(self, connection: Connection, retry: RetryPolicy, waits: Waits) -> None:
        self._connection = connection
        self._retry = retry
        self.waits = waits
        self.closed = Closed()
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self._callables: dict[str, grpc.UnaryUnaryMultiCallable[bytes, bytes]] = {}

    def call(
        self, operation: Operation[T], timeout_s: float, retry: RetryPolicy | None = None
    ) -> T:
        """The operation's value, within `timeout_s` over all attempts."""
        payload = operation.payload()
        metadata = self._connection.control_metadata(operation.path)
        waits = self.waits
        attempts = Attempts(retry or self._retry, timeout_s, waits.now_s(), waits.uniform)
        while True:
            invoke = self._callable(operation.path)
            try:
                timeout_left_s = attempts.begin(waits.now_s())
                return operation.read(invoke(payload, timeout=timeout_left_s, metadata=metadata))
            except grpc.RpcError as failure:
                error = self.error_from(failure, operation.model)
            except ValueError as failure:  # grpcio's word for a closed channel
                error = self._closed_error(failure)
            decision = attempts.failed(error, waits.now_s())
            match decision:
                case Retry(wait_s=wait_s):
                    waits.sleep(wait_s, self.closed)
                case GiveUp():
                    raise error
                case _:
                    assert_never(decision)

    def first(self, operation: Operation[T], timeout_s: float) -> T:
        """The first message of a server stream of the control plane; the rest is cancelled."""
        payload = operation.payload()
        channel = self._open()
        try:
            watch: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
                operation.path
            )
            stream = watch(
                payload,
                timeout=None if timeout_s == float("inf") else timeout_s,
                metadata=self._connection.control_metadata(operation.path),
            )
            try:
                for message in stream:
                    return operation.read(message)
            finally:
                stream.cancel()
        except grpc.RpcError as failure:
            raise self.error_from(failure, operation.model) from None
        except ValueError as failure:
            raise self._closed_error(failure) from None
        raise InvalidResponse("the server ended the stream before its first message")

    def stream(self, path: str, requests: Iterator[bytes], timeout_s: float | None) -> "StreamCall":
        """Opens a bidirectional call."""
        invoke: grpc.StreamStreamMultiCallable[bytes, bytes] = self._open().stream_stream(path)
        return invoke(requests, timeout=timeout_s)

    def error_from(self, failure: grpc.RpcError, model: str) -> TideserveClientError:
        if self.closed.is_set():
            return ClientClosed("the client was closed during the call", model=model)
        return error_of(
            failure.code(),
            failure.details() or "",
            failure.trailing_metadata() or (),
            model=model,
        )

    def poll(
        self,
        ready: Callable[[float], bool],
        timeout_s: float,
        what: str,
        poll_interval_s: tuple[float, float] = (0.05, 1.0),
    ) -> None:
        """Calls `ready(left_s)` at growing intervals until it is True; `DeadlineExceeded` after
        `timeout_s`, saying `what` was not."""
        deadline_s = self.waits.now_s() + timeout_s
        interval_s, max_interval_s = poll_interval_s
        while (left_s := deadline_s - self.waits.now_s()) > 0:
            if ready(left_s):
                return
            self.waits.sleep(min(interval_s, left_s), self.closed)
            self._open()
            interval_s = min(interval_s * 2, max_interval_s)
        raise DeadlineExceeded(f"{what} was not ready within {timeout_s:g} s")

    def close(self) -> None:
        """Idempotent; calls under way end with `ClientClosed`."""
        with self._lock:
            self.closed.set()
            channel, self._channel = self._channel, None
            self._callables.clear()
        if channel is not None:
            channel.close()

    def _open(self) -> grpc.Channel:
        with self._lock:
            return self._open_locked()

    def _open_locked(self) -> grpc.Channel:
        if self.closed.is_set():
            raise ClientClosed("the client is closed: make a new one")
        if self._channel is None:
            connection = self._connection
            if connection.credentials is None:
                self._channel = grpc.insecure_channel(connection.address, connection.options)
            else:
                self._channel = grpc.secure_channel(
                    connection.address, connection.credentials, connection.options
                )
        return self._channel

    def _callable(self, path: str) -> "grpc.UnaryUnaryMultiCallable[bytes, bytes]":
        with self._lock:
            found = self._callables.get(path)
            if found is None:
                found = self._open_locked().unary_unary(path)
                self._callables[path] = found
            return found

    def _closed_error(self, failure: ValueError) -> TideserveClientError:
        if not self.closed.is_set():
            raise failure
        return ClientClosed("the client is closed: make a new one")


class StreamCall(Protocol):
    """What the stream needs of grpcio's bidirectional call."""

    def __iter__(self) -> Iterator[Any]: ...

    def cancel(self) -> bool: ...
