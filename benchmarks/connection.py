"""Connections of the open-loop generator: the same request again and again, over HTTP/1.1 or HTTP/2.

They do no more than that, so that a Python process can send ten thousand and more a second. Frames
are those of RFC 9113; its headers are written without HPACK's tables, and those of answers are not
read: what is right is told by bytes and by the server's own count.
"""

import re
import socket
import struct
from collections import deque
from typing import Final, Protocol
from urllib.parse import urlsplit

from benchmarks.errors import LoadFailedError
from benchmarks.wire import Target

_READ_BYTES: Final = 1 << 18
_CONNECT_TIMEOUT_S: Final = 5.0


class Connection(Protocol):
    """An open connection. A request is known by the number it was begun with.

    `begin` only queues: `flush` sends what the peer takes now and says whether anything is left.
    `receive` returns what is answered by now, as pairs of a number and the bytes of its body.
    """

    socket: socket.socket

    def has_room(self) -> bool: ...

    def begin(self, number: int) -> None: ...

    def flush(self) -> bool: ...

    def receive(self) -> list[tuple[int, int]]: ...


class Http1Connection:
    """One request at a time."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        head = [
            f"POST {parts.path} HTTP/1.1",
            f"host: {parts.netloc}",
            f"content-length: {len(target.body)}",
            *target.headers,
        ]
        self._request = "\r\n".join([*head, "\r\n"]).encode() + target.body
        self._unsent = memoryview(b"")
        self._received = bytearray()
        self._number: int | None = None
        self.socket = _connect(parts.netloc)

    def has_room(self) -> bool:
        return self._number is None

    def begin(self, number: int) -> None:
        self._number = number
        self._unsent = memoryview(self._request)

    def flush(self) -> bool:
        self._unsent = self._unsent[_send(self.socket, self._unsent) :]
        return len(self._unsent) > 0

    def receive(self) -> list[tuple[int, int]]:
        self._received += _receive(self.socket)
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return []
        head = bytes(self._received[:end])
        length = re.search(rb"\r\ncontent-length: *(\d+)", head, re.IGNORECASE)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None or self._number is None:
            raise LoadFailedError(f"expected HTTP 200 with a length, got {head[:200]!r}")
        body_bytes = int(length[1])
        if len(self._received) < end + 4 + body_bytes:
            return []
        self._received.clear()
        number, self._number = self._number, None
        return [(number, body_bytes)]


_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PING, _GOAWAY, _WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
_END_STREAM: Final = 0x1
_ACK: Final = 0x1
_END_HEADERS: Final = 0x4
_INITIAL_WINDOW_SIZE: Final = 4
_LARGEST_WINDOW: Final = (1 << 31) - 1
_FIRST_WINDOW: Final = 65_535
_FRAME_BYTES: Final = 16_384
# The window for answers is filled up again when so much of it is used.
_REFILL_BYTES: Final = 1 << 30
_MOST_STREAMS: Final = 100


class Http2Connection:
    """Many requests at a time, each on its stream; larger bodies wait for the peer's windows."""

    def __init__(self, target: Target) -> None:
        parts = urlsplit(target.url)
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", parts.path),
            (":authority", parts.netloc),
            *(tuple(header.split(": ", 1)) for header in target.headers),
        ]
        self._headers = b"".join(_literal(name) + _literal(value, b"") for name, value in headers)
        self._body = target.body
        self._out = bytearray(_PREFACE)
        self._out += _frame(
            _SETTINGS, 0, 0, struct.pack(">HI", _INITIAL_WINDOW_SIZE, _LARGEST_WINDOW)
        )
        self._out += _window_update(_LARGEST_WINDOW - _FIRST_WINDOW)
        self._received = bytearray()
        self._received_data = 0
        self._next_stream = 1
        self._window = _FIRST_WINDOW
        self._stream_window = _FIRST_WINDOW
        # Number and body bytes so far of each open stream; and what its body still has to send.
        self._open: dict[int, list[int]] = {}
        self._unsent: dict[int, tuple[int, int]] = {}
        self._waiting: deque[int] = deque()
        self.socket = _connect(parts.netloc)

    def has_room(self) -> bool:
        return len(self._open) < _MOST_STREAMS

    def begin(self, number: int) -> None:
        stream = self._next_stream
        self._next_stream += 2
        self._open[stream] = [number, 0]
        self._out += _frame(_HEADERS, _END_HEADERS, stream, self._headers)
        self._unsent[stream] = (0, self._stream_window)
        self._waiting.append(stream)

    def flush(self) -> bool:
        self._queue_bodies()
        with memoryview(self._out) as view:
            sent = _send(self.socket, view)
        del self._out[:sent]
        return len(self._out) > 0

    def receive(self) -> list[tuple[int, int]]:
        received = self._received
        received += _receive(self.socket)
        done: list[tuple[int, int]] = []
        at = 0
        while at + 9 <= len(received):
            length = int.from_bytes(received[at : at + 3], "big")
            if at + 9 + length > len(received):
                break
            kind, flags, stream = struct.unpack_from(">BBI", received, at + 3)
            at += 9
            if kind == _DATA:
                self._open[stream][1] += length
                self._received_data += length
            elif kind != _HEADERS:
                self._control(kind, flags, stream, bytes(received[at : at + length]))
            at += length
            if kind <= _HEADERS and flags & _END_STREAM:
                number, body_bytes = self._open.pop(stream)
                done.append((number, body_bytes))
        del received[:at]
        if self._received_data > _REFILL_BYTES:
            self._out += _window_update(self._received_data)
            self._received_data = 0
        return done

    def _queue_bodies(self) -> None:
        """Queues as much of the bodies as both windows let, in order of their beginning."""
        for _ in range(len(self._waiting)):
            if self._window <= 0:
                return
            stream = self._waiting.popleft()
            sent, window = self._unsent[stream]
            room = min(window, self._window, len(self._body) - sent)
            for start in range(sent, sent + room, _FRAME_BYTES):
                part = self._body[start : min(start + _FRAME_BYTES, sent + room)]
                last = start + len(part) == len(self._body)
                self._out += _frame(_DATA, _END_STREAM if last else 0, stream, part)
            self._window -= room
            if sent + room == len(self._body):
                del self._unsent[stream]
            else:
                self._unsent[stream] = (sent + room, window - room)
                self._waiting.append(stream)

    def _control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == _SETTINGS and not flags & _ACK:
            for key, value in struct.iter_unpack(">HI", payload):
                if key == _INITIAL_WINDOW_SIZE:
                    more = value - self._stream_window
                    self._stream_window = value
                    self._unsent = {
                        s: (n, window + more) for s, (n, window) in self._unsent.items()
                    }
            self._out += _frame(_SETTINGS, _ACK, 0, b"")
        elif kind == _PING and not flags & _ACK:
            self._out += _frame(_PING, _ACK, 0, payload)
        elif kind == _WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream == 0:
                self._window += more
            elif stream in self._unsent:
                sent, window = self._unsent[stream]
                self._unsent[stream] = (sent, window + more)
        elif kind in (_RST_STREAM, _GOAWAY):
            raise LoadFailedError(f"the server ended stream {stream}: frame {kind}, {payload!r}")


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + struct.pack(">BBI", kind, flags, stream) + payload


def _window_update(more: int) -> bytes:
    return _frame(_WINDOW_UPDATE, 0, 0, struct.pack(">I", more))


def _literal(text: str, first: bytes = b"\0") -> bytes:
    """A name (after the mark of a header that is in no table) or a value, of under 127 bytes."""
    raw = text.encode()
    assert len(raw) < 127, "longer ones have a longer length"
    return first + bytes([len(raw)]) + raw


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    connected = socket.create_connection((host, int(port)), timeout=_CONNECT_TIMEOUT_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setblocking(False)
    return connected


def _send(to: socket.socket, data: memoryview) -> int:
    """How many bytes the kernel took."""
    if not data:
        return 0
    try:
        return to.send(data)
    except BlockingIOError:
        return 0


def _receive(source: socket.socket) -> bytes:
    try:
        received = source.recv(_READ_BYTES)
    except BlockingIOError:
        return b""
    if not received:
        raise LoadFailedError("the server closed a connection")
    return received
