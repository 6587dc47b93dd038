"""The front: calls come in as events, answers go out by call id.

Two fronts implement `Front`: `native` (HTTP/2 in the dispatcher's own thread) and `grpcio` (TLS,
and wherever there is no epoll). Both carry opaque bytes; what they mean is the service's business.
One thread, the dispatcher's, calls everything here but `wake`, which any thread may call.

Answers leave at the latest within the next `recv`.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Protocol

from tideserve.server.parts import Parts
from tideserve.v1.link import LINK_SOCKET

# Names, shapes and counts of a lease or an answer; a megabyte is thousands of tensors.
ANSWER_HEAD_BYTES: Final = 1024 * 1024
# unix(7): 108 bytes with the one that ends it.
MAX_SOCKET_PATH_BYTES: Final = 107

Metadata = tuple[tuple[str, str | bytes], ...]


class Call(NamedTuple):
    """A call has begun.

    `payload` is the request of a unary or server-streaming call, empty where `parts` has it, as a
    front may give a large one; a bidirectional call begins with an empty one and its requests
    follow as `StreamMessage`. `time_left_s` is the gRPC deadline, None where the caller set none.
    """

    call_id: int
    path: str
    payload: bytes
    metadata: Metadata
    peer: str
    time_left_s: float | None
    parts: Parts | None = None

    def whole(self) -> bytes:
        """Its request in one piece."""
        return self.payload if self.parts is None else self.parts.to_bytes()


class StreamMessage(NamedTuple):
    """One more request on a bidirectional call."""

    call_id: int
    payload: bytes


class HalfClose(NamedTuple):
    """The caller of a bidirectional call sends no more."""

    call_id: int


class Cancel(NamedTuple):
    """The caller is gone: cancelled, past its deadline, or its connection broke.

    Nothing sent to the call from now on arrives. It is the last event of a call, and it is
    not sent for a call that the server ended.
    """

    call_id: int


Event = Call | StreamMessage | HalfClose | Cancel


class Status(NamedTuple):
    """A gRPC status other than OK: code number, message, and when to try again (the push-back
    of `tideserve.v1.metadata`; negative for never)."""

    code: int
    message: str
    pushback_ms: int | None = None


class Front(Protocol):
    """What the dispatcher needs of a gRPC server. Constructors bind nothing."""

    @property
    def port(self) -> int:
        """The bound port, once started."""

    @property
    def has_unsent(self) -> bool:
        """Answers wait for their callers to read them, as far as the front knows."""

    def start(self) -> None:
        """Binds and accepts. Raises `AddressInUseError`, `CertificateError`."""

    def recv(self, max_events: int, timeout_s: float) -> list[Event]:
        """Waits for events, at most `timeout_s`; empty when none came or `wake` was called."""

    def respond(self, call_id: int, payload: bytes) -> bool:
        """Answers a unary call. False: the call is already gone."""

    def respond_parts(self, call_id: int, parts: Sequence[bytes | memoryview]) -> bool:
        """As `respond`, with a message in parts. They are read before this returns."""

    def fail(self, call_id: int, status: Status) -> bool:
        """Ends any call with a status. False: the call is already gone."""

    def send(self, call_id: int, payload: bytes) -> bool:
        """Sends one message on a streaming call. False: the call is already gone."""

    def send_file(self, call_id: int, fd: int) -> bool:
        """Passes an open file, of which it makes a copy, to a call's client ahead of what is sent
        next. False: this connection carries none."""

    def end(self, call_id: int) -> None:
        """Ends a streaming call with OK, after what was sent."""

    def wake(self) -> None:
        """Makes the `recv` that waits now, or the next one, return. Any thread."""

    def close(self) -> None:
        """Ends all calls that are left, unbinds, ends all threads."""


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. With `client_ca` a client must show a certificate that it signed (mTLS)."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class FrontSettings:
    """What both fronts understand; `tls` needs the grpcio front.

    This machine's own replicas come in plain text over the unix socket `own_socket(port)`, in a
    folder that only this user can enter: it costs less than the port, and with `tls` they have no
    certificates to show. Replicas in containers do so over `link_socket`, in a folder that they are
    given; the native front only. So is `busy_poll_s`: for so long it looks for what comes next
    before it sleeps.
    """

    host: str = "127.0.0.1"
    port: int = 8001
    max_message_bytes: int = 128 * 1024 * 1024
    max_concurrent_streams: int = 4096  # a connection
    max_connections: int | None = None
    keepalive_time_s: float = 7200.0
    keepalive_timeout_s: float = 20.0
    tls: TlsFiles | None = None
    own_folder: Path | None = None
    link_folder: Path | None = None
    busy_poll_s: float = 0.0

    @property
    def link_socket(self) -> Path | None:
        """Where replicas in containers of this machine reach the server; None: at the port."""
        return None if self.link_folder is None else self.link_folder / LINK_SOCKET

    @property
    def max_answer_bytes(self) -> int:
        """Of what the server sends: a lease repeats a request's tensors under a head of its
        own, and must pass wherever the request did."""
        return self.max_message_bytes + ANSWER_HEAD_BYTES

    def own_socket(self, port: int) -> Path | None:
        """Where this machine's own replicas reach the server; None where they use the port."""
        if self.own_folder is None:
            return None
        path = self.own_folder / f"front-{self.host}-{port}.sock"
        # Without TLS the port does as well where no socket can have that name.
        fits = len(os.fsencode(path)) <= MAX_SOCKET_PATH_BYTES
        return path if fits or self.tls is not None else None
