"""The native front: HTTP/2 and gRPC in Rust, outside the GIL (the pygrpc-native wheel).

Unary and server-streaming methods come as batches of events. Bidirectional ones are
forwarded by the Rust server to a `GrpcioFront` on a unix socket in a private directory, so
that all methods share one port and all events come out of one `recv`.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Final

from pygrpc_native import EVENT_CALL, STREAM_CLOSED, STREAM_FULL, NativeGrpcFront

from tideserve.server.errors import Code, UnsupportedFrontError
from tideserve.server.front import Call, Cancel, Event, FrontSettings, Status
from tideserve.server.front.address import bind_error, host_port
from tideserve.server.front.doorbell import Doorbell
from tideserve.server.front.grpcio import GrpcioFront
from tideserve.server.front.refusal import (
    answer_too_large,
    reads_too_slowly,
    request_too_large,
    server_has_stopped,
)
from tideserve.server.front.stalled import StalledStreams
from tideserve.v1.metadata import PUSHBACK_METADATA_KEY
from tideserve.v1.methods import Kind

#: What the front calls on itself to end a wait. Answered UNIMPLEMENTED to anyone.
DOORBELL_PATH: Final = "/tideserve.v1.Front/Ring"

#: Threads for HTTP/2. Measured on 2 cores under h2load, echo: 17.5 us of CPU a call with one
#: thread, 22.7 with two; more cores have room for a second one, which large messages fill.
_IO_THREADS: Final = 1 if (os.cpu_count() or 1) <= 4 else 2

_MAX_WAIT_S: Final = 3600.0
#: The Rust server's queue waits whole milliseconds; a wait shorter than this is slept through
#: instead, so that it ends on time, and calls that come meanwhile are found at its end.
_NAP_S: Final = 0.00025
#: How often `recv` looks for a wake-up while the doorbell does not work.
_DEAF_LOOK_S: Final = 0.02


def unsupported(settings: FrontSettings) -> str | None:
    """Why these settings need the grpcio front; None when the native front can serve them."""
    if settings.tls is not None:
        return "the native front has no TLS"
    if settings.max_connections is not None:
        return "the native front cannot limit the number of connections"
    return None


class NativeFront:
    """A `Front` on the native wheel. `methods` are (path, kind); messages stay bytes.

    Ids of its own calls are positive, those of the fallback's negative. Raises
    `UnsupportedFrontError` for settings that need the grpcio front.

    The Rust server takes a whole message before Python sees its size: `max_message_bytes`
    bounds what the dispatcher gets, not what a hostile caller can make the server hold.
    `Call.peer` of a bidirectional call is the unix socket, and gRPC's own push-back trailer is
    not sent (see `refusal`).
    """

    def __init__(self, methods: Sequence[tuple[str, Kind]], settings: FrontSettings) -> None:
        reason = unsupported(settings)
        if reason is not None:
            raise UnsupportedFrontError(f"{reason}: choose the grpcio front (--front grpcio)")
        self._settings = settings
        native = [(path, kind) for path, kind in methods if kind is not Kind.BIDI]
        self._methods = [(path, kind is Kind.SERVER_STREAM) for path, kind in native]
        self._methods.append((DOORBELL_PATH, False))
        self._paths = [path for path, _ in self._methods]
        self._forwarded = [(path, kind) for path, kind in methods if kind is Kind.BIDI]
        self._server: NativeGrpcFront | None = None
        self._fallback: GrpcioFront | None = None
        self._directory: Path | None = None
        self._doorbell = Doorbell(DOORBELL_PATH)
        self._open: set[int] = set()
        self._stalled = StalledStreams()
        self._waiting = False  # recv waits in Rust, or is about to
        self._woken = False  # wake was called since recv last returned
        self._ringing = False  # a ring is under way
        self._deaf = False  # the doorbell does not work
        self._port = 0

    @property
    def port(self) -> int:
        """The bound port; 0 before `start`."""
        return self._port

    @property
    def open_calls(self) -> int:
        """Calls begun and neither answered nor cancelled."""
        return len(self._open) + (0 if self._fallback is None else self._fallback.open_calls)

    def start(self) -> None:
        """Binds and accepts, once. Raises `AddressInUseError`, `StartError` for any other bind."""
        assert self._server is None, "a front starts once"
        settings = self._settings
        try:
            server = NativeGrpcFront(
                host_port(settings.host, settings.port),
                self._methods,
                io_threads=_IO_THREADS,
                call_details=True,
                keepalive_time_ms=max(1, round(settings.keepalive_time_s * 1000)),
                keepalive_timeout_ms=max(1, round(settings.keepalive_timeout_s * 1000)),
                max_concurrent_streams=settings.max_concurrent_streams,
            )
        except OSError as error:
            raise bind_error(settings.host, settings.port, error.errno, str(error)) from error
        self._server = server
        self._port = server.bound_port
        try:
            if self._forwarded:
                server.set_fallback(self._start_fallback())
            server.start()
            self._doorbell.open(settings.host, self._port)
        except BaseException:
            self.close()
            raise

    def recv(self, max_events: int, timeout_s: float) -> list[Event]:
        """Waits for events, at most `timeout_s`; empty when none came or `wake` was called."""
        server = self._server
        if server is None:
            return []
        if self._stalled:
            look_s = self._stalled.flush(server.stream_try_send, self._finish_stream)
            timeout_s = min(timeout_s, look_s)
        fallback = self._fallback
        self._waiting = True  # first: what comes after the look below rings
        events: list[Event] = []
        if fallback is not None and fallback.has_events:
            events = fallback.recv(max_events, 0.0)
        room = max_events - len(events)
        if events or self._woken:
            self._waiting = False
            batch = server.recv_batch_details(room, 0) if room > 0 else []
        else:
            batch = self._wait(server, room, timeout_s)
        self._waiting = self._woken = False
        if batch:
            self._take(server, batch, events)
            if not events and fallback is not None and fallback.has_events:
                events = fallback.recv(max_events, 0.0)
        elif not events:
            self._ringing = False  # a ring that did not arrive by now is lost
            self._doorbell.listen()
        return events

    def respond(self, call_id: int, payload: bytes) -> bool:
        """Answers a unary call. False: the call is already gone."""
        if call_id < 0:
            return self._fallback is not None and self._fallback.respond(call_id, payload)
        if len(payload) > self._settings.max_answer_bytes:
            return self.fail(
                call_id, answer_too_large(len(payload), self._settings.max_answer_bytes)
            )
        self._open.discard(call_id)
        return self._server is not None and self._server.respond(call_id, payload)

    def fail(self, call_id: int, status: Status) -> bool:
        """Ends any call with a status, a stream's after what was sent. False: already gone."""
        if call_id < 0:
            return self._fallback is not None and self._fallback.fail(call_id, status)
        if call_id not in self._open:
            return False
        self._open.discard(call_id)
        if call_id in self._stalled:
            self._stalled.end(call_id, status)
            return True
        return self._fail_now(call_id, status)

    def send(self, call_id: int, payload: bytes) -> bool:
        """Sends one message on a streaming call. False: the call is already gone.

        A message over the limit, or one that passes the stream's backlog because the caller
        does not read, ends the call with RESOURCE_EXHAUSTED: also False.
        """
        if call_id < 0:
            return self._fallback is not None and self._fallback.send(call_id, payload)
        if call_id not in self._open or self._server is None:
            return False
        limit_bytes = self._settings.max_answer_bytes
        if len(payload) > limit_bytes:
            self.fail(call_id, answer_too_large(len(payload), limit_bytes))
            return False
        if call_id not in self._stalled:
            sent = self._server.stream_try_send(call_id, payload)
            if sent != STREAM_FULL:
                return sent != STREAM_CLOSED
        if self._stalled.add(call_id, payload):
            return True
        refusal = reads_too_slowly(*self._stalled.waiting(call_id))
        self._stalled.drop(call_id)
        self.fail(call_id, refusal)
        return False

    def end(self, call_id: int) -> None:
        """Ends a streaming call with OK, after what was sent."""
        if call_id < 0:
            if self._fallback is not None:
                self._fallback.end(call_id)
            return
        if call_id not in self._open:
            return
        self._open.discard(call_id)
        if call_id in self._stalled:
            self._stalled.end(call_id, None)
        else:
            self._finish_stream(call_id, None)

    def wake(self) -> None:
        """Makes the `recv` that waits now, or the next one, return. Any thread."""
        self._woken = True
        self._ring_if_waiting()

    def close(self) -> None:
        """Ends all calls that are left (UNAVAILABLE), unbinds, ends all threads."""
        self._doorbell.close()
        if self._server is not None:
            for call_id in list(self._open):
                self.fail(call_id, server_has_stopped())
            self._server.close()
            self._server = None
        if self._fallback is not None:
            self._fallback.close()
            self._fallback = None
        if self._directory is not None:
            shutil.rmtree(self._directory)
            self._directory = None
        self._open.clear()
        self._stalled.clear()

    def _start_fallback(self) -> str:
        """Starts the grpcio front behind this one; its socket's path."""
        self._directory = Path(tempfile.mkdtemp(prefix="tideserve-"))  # mode 0700
        path = str(self._directory / "front.sock")
        fallback = GrpcioFront(
            self._forwarded,
            self._settings,
            address=f"unix:{path}",
            notify=self._ring_if_waiting,
            id_step=-1,
        )
        fallback.start()
        self._fallback = fallback
        return path

    def _ring_if_waiting(self) -> None:
        if self._waiting and not self._ringing:
            self._ringing = True
            self._deaf = not self._doorbell.ring()

    def _wait(
        self, server: NativeGrpcFront, max_events: int, timeout_s: float
    ) -> "list[_NativeEvent] | None":
        if self._deaf:
            timeout_s = min(timeout_s, _DEAF_LOOK_S)
        if 0 < timeout_s < _NAP_S:
            time.sleep(timeout_s)
            timeout_s = 0
        # Rounded up: a wait of no time at all would make a busy loop of the last millisecond.
        timeout_ms = ceil(min(timeout_s, _MAX_WAIT_S) * 1000)
        return server.recv_batch_details(max_events, timeout_ms)

    def _take(
        self, server: NativeGrpcFront, batch: "list[_NativeEvent]", events: list[Event]
    ) -> None:
        """Turns the Rust server's events into ours. The hot path: a call costs no more than
        one tuple and one set entry."""
        paths = self._paths
        doorbell = len(paths) - 1
        limit_bytes = self._settings.max_message_bytes
        opened = self._open
        for kind, call_id, method, payload, _, details in batch:
            if kind == EVENT_CALL:
                assert payload is not None
                assert details is not None
                if method == doorbell:
                    self._ringing = False
                    server.fail(call_id, Code.UNIMPLEMENTED, "Method not found!")
                elif len(payload) > limit_bytes:
                    self._fail_now(call_id, request_too_large(len(payload), limit_bytes))
                else:
                    metadata, peer, time_left_s = details
                    opened.add(call_id)
                    events.append(
                        Call(call_id, paths[method], payload, metadata, peer, time_left_s)
                    )
            else:
                self._stalled.drop(call_id)
                if call_id in opened:
                    opened.discard(call_id)
                    events.append(Cancel(call_id))

    def _fail_now(self, call_id: int, status: Status) -> bool:
        trailers = None
        if status.pushback_ms is not None:
            trailers = [(PUSHBACK_METADATA_KEY, str(status.pushback_ms))]
        return self._server is not None and self._server.fail(
            call_id, status.code, status.message, trailers
        )

    def _finish_stream(self, call_id: int, status: Status | None) -> None:
        if status is not None:
            self._fail_now(call_id, status)
        elif self._server is not None:
            self._server.stream_end(call_id)


_NativeEvent = tuple[
    int,
    int,
    int,
    bytes | None,
    bytes | str | None,
    tuple[tuple[tuple[str, str | bytes], ...], str, float | None] | None,
]
