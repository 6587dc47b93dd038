"""HTTP/2 for one gRPC call at a time, without IO: bytes in, bytes out.

Every call of a replica goes over it. A general client pays for generality: grpcio's takes about
210 us of CPU an Exchange, this and a blocking socket about 50, and seven threads and 13 MB of
resident memory in every replica.
Sources: RFC 9113 (frames, flow control), RFC 7541 (HPACK, by the hpack library),
https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
"""

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import unquote

from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

from tideserve.replica.errors import Http2Error
from tideserve.v1 import http2

_HEAD_BYTES: Final = 9
# Of DATA that is joined for one send: a copy, in place of two system calls a frame.
_SEND_BYTES: Final = 1 << 20
# Received before the windows, of 2 GiB, are opened again.
_WINDOW_STEP_BYTES: Final = 1 << 30
# A header list of ours: the frontend answers with a few hundred bytes.
_MAX_HEADER_BYTES: Final = 1 << 16
# Blocks seen: a frontend's answers to Exchange have two.
_CACHED_BLOCKS: Final = 64


class Ending(NamedTuple):
    """How a call ended: gRPC's number (`status.Code`), and the server's words."""

    status: int
    detail: str


_OK: Final = Ending(0, "")


def request_block(
    path: str, authority: str, timeout_s: int | None, metadata: Sequence[tuple[str, str]]
) -> bytes:
    """The header block of every call: nothing in it is indexed, so it is always the same.

    A `timeout_s` of None: the call may last for ever.
    """
    timeout = () if timeout_s is None else (("grpc-timeout", f"{timeout_s}S"),)
    headers = (
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", authority),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *timeout,
        *metadata,
    )
    return Encoder().encode([NeverIndexedHeaderTuple(name, value) for name, value in headers])


class CallConnection:
    """One connection's state. `open` first; then `begin`, and until `ending` is there feed
    `receive` and send what `take_outgoing` gives; `take_body` gives what came of the answer.
    Raises `Http2Error` for what is not HTTP/2, or ends the call or the connection before the
    answer is whole."""

    def __init__(self, request_headers: bytes) -> None:
        self._request_headers = request_headers
        self._outgoing: list[bytes] = []
        self._unread = b""
        # The server may index nothing: a block then means the same whenever it comes, and is
        # decoded once.
        self._decoder = Decoder(max_header_list_size=_MAX_HEADER_BYTES)
        self._decoder.header_table_size = 0
        self._decoder.max_allowed_table_size = 0
        self._decoded: dict[bytes, dict[str, str]] = {}
        self._settled = [False, False]  # the server's settings came, it took ours
        self._next_stream = 1
        self._stream = 0
        self._leaving = False
        # --- what may be sent
        self._max_frame = http2.DEFAULT_FRAME
        self._initial_window = http2.DEFAULT_WINDOW
        self._window = http2.DEFAULT_WINDOW
        self._stream_window = 0
        self._unsent = memoryview(b"")
        # --- what is received
        self._taken = 0
        self._stream_taken = 0
        self._data_left = 0
        self._data_ends_stream = False
        self._parts: list[memoryview] = []
        self._headers: dict[str, str] = {}
        self._block = b""
        self._block_flags = 0
        self.ending: Ending | None = None

    @property
    def ready(self) -> bool:
        """Both sides know each other's settings: calls may begin."""
        return self._settled == [True, True]

    @property
    def reusable(self) -> bool:
        """Another call may begin on it."""
        return not self._leaving and self._next_stream <= http2.LAST_STREAM

    @property
    def expected_bytes(self) -> int:
        """Of the frame that is coming in: a hint for the next read."""
        return self._data_left

    def open(self) -> None:
        """Queues what begins a connection."""
        settings = {
            http2.HEADER_TABLE_SIZE: 0,
            http2.ENABLE_PUSH: 0,
            http2.INITIAL_WINDOW_SIZE: http2.MAX_WINDOW,
            http2.MAX_FRAME_SIZE: http2.MAX_FRAME,
        }
        self._outgoing += (
            http2.PREFACE,
            http2.settings(settings),
            http2.window_update(0, http2.MAX_WINDOW - http2.DEFAULT_WINDOW),
        )

    def begin(self, message: bytes) -> None:
        """Queues a call with this message, as far as the server lets it be sent."""
        stream = self._stream = self._next_stream
        self._next_stream += 2
        self._stream_window = self._initial_window
        self._stream_taken = 0
        self._parts = []
        self._headers = {}
        self.ending = None
        prefix = b"\0" + len(message).to_bytes(4)
        size = len(message) + len(prefix)
        self._outgoing.append(
            http2.frame(http2.HEADERS, http2.END_HEADERS, stream, self._request_headers)
        )
        if size <= min(self._window, self._stream_window, self._max_frame):
            self._window -= size
            self._stream_window -= size
            self._outgoing += (
                http2.HEAD.pack(size >> 16, size & 0xFFFF, http2.DATA, http2.END_STREAM, stream),
                prefix,
                message,
            )
        else:
            self._unsent = memoryview(prefix + message)

    def take_outgoing(self) -> bytes:
        """What is to be sent now; ask again until it is empty."""
        if self._unsent:
            self._send_data()
        out = b"".join(self._outgoing)
        self._outgoing.clear()
        return out

    def receive(self, data: bytes) -> None:
        """Takes in what came; `ending` tells whether the call is over."""
        if self._unread:
            data = self._unread + data
            self._unread = b""
        at, size = 0, len(data)
        while True:
            if self._data_left:
                at = self._take_data(data, at)
            if size - at < _HEAD_BYTES:
                break
            # Byte by byte: compiled that takes a tenth of what `HEAD.unpack_from` does.
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            kind, flags = data[at + 3], data[at + 4]
            stream = data[at + 5] << 24 | data[at + 6] << 16 | data[at + 7] << 8 | data[at + 8]
            body = at + _HEAD_BYTES
            if kind == http2.DATA and not flags & http2.PADDED:
                self._begin_data(length, flags, stream)
                at = body
                continue
            end = body + length
            if end > size:
                break
            self._take_frame(kind, flags, stream, data[body:end])
            at = end
        self._unread = data[at:]

    def take_body(self) -> list[memoryview]:
        """What came of the answer since the last time: gRPC's messages, in any pieces."""
        parts, self._parts = self._parts, []
        return parts

    # --- sending --------------------------------------------------------------------------

    def _send_data(self) -> None:
        # Negative where the server made its window smaller than what is on the way.
        room = max(0, min(self._window, self._stream_window, len(self._unsent), _SEND_BYTES))
        self._window -= room
        self._stream_window -= room
        while room > 0:
            size = min(room, self._max_frame)
            last = size == len(self._unsent)
            head = http2.HEAD.pack(size >> 16, size & 0xFFFF, http2.DATA, last, self._stream)
            self._outgoing += (head, bytes(self._unsent[:size]))
            self._unsent = self._unsent[size:]
            room -= size

    def _grow_window(self, stream: int, payload: bytes) -> None:
        growth = int.from_bytes(payload) & http2.MAX_WINDOW
        if stream == 0:
            self._window += growth
        elif stream == self._stream:
            self._stream_window += growth

    # --- receiving ------------------------------------------------------------------------

    def _begin_data(self, length: int, flags: int, stream: int) -> None:
        self._count(length)
        if stream != self._stream or self.ending is not None:
            raise Http2Error(f"expected DATA of stream {self._stream}, got some of {stream}")
        self._data_left = length
        self._data_ends_stream = bool(flags & http2.END_STREAM)
        if not length and self._data_ends_stream:
            self._finish()

    def _take_data(self, data: bytes, at: int) -> int:
        part = memoryview(data)[at : at + self._data_left]
        self._parts.append(part)
        self._data_left -= len(part)
        if not self._data_left and self._data_ends_stream:
            self._finish()
        return at + len(part)

    def _count(self, length: int) -> None:
        """Opens the windows again before they close."""
        self._taken += length
        if self._taken > _WINDOW_STEP_BYTES:
            self._outgoing.append(http2.window_update(0, self._taken))
            self._taken = 0
        self._stream_taken += length
        if self._stream_taken > _WINDOW_STEP_BYTES:
            self._outgoing.append(http2.window_update(self._stream, self._stream_taken))
            self._stream_taken = 0

    def _take_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind in (http2.HEADERS, http2.CONTINUATION):
            self._take_block(kind, flags, stream, payload)
        elif kind == http2.DATA:
            self._begin_data(len(payload), flags, stream)
            self._parts.append(memoryview(_unpadded(payload)))
            self._data_left = 0
            if self._data_ends_stream:
                self._finish()
        elif kind == http2.SETTINGS:
            self._take_settings(flags, payload)
        elif kind == http2.PING and not flags & http2.ACK:
            self._outgoing.append(http2.frame(http2.PING, http2.ACK, 0, payload))
        elif kind == http2.WINDOW_UPDATE:
            self._grow_window(stream, payload)
        elif kind == http2.RST_STREAM and stream == self._stream and self.ending is None:
            code = int.from_bytes(payload)
            raise Http2Error(f"the server reset the call with HTTP/2 error {code}")
        elif kind == http2.GOAWAY:
            self._leaving = True
            if self.ending is None and int.from_bytes(payload[:4]) < self._stream:
                raise Http2Error("the server leaves and did not take the call")

    def _take_settings(self, flags: int, payload: bytes) -> None:
        if flags & http2.ACK:
            self._settled[1] = True
            return
        if len(payload) % http2.SETTING.size:
            raise Http2Error(f"expected settings of 6 bytes each, got {len(payload)} bytes")
        for name, value in http2.SETTING.iter_unpack(payload):
            if name == http2.INITIAL_WINDOW_SIZE:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == http2.MAX_FRAME_SIZE:
                self._max_frame = value
        self._settled[0] = True
        self._outgoing.append(http2.frame(http2.SETTINGS, http2.ACK, 0, b""))

    def _take_block(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == http2.HEADERS:
            if flags & http2.PADDED:
                payload = _unpadded(payload)
            self._block = payload[5:] if flags & http2.WITH_PRIORITY else payload
            self._block_flags = flags
        else:
            self._block += payload
            if len(self._block) > _MAX_HEADER_BYTES:
                raise Http2Error(f"expected at most {_MAX_HEADER_BYTES} bytes of headers")
        if not flags & http2.END_HEADERS:
            return
        headers = self._decode(self._block)
        if stream != self._stream or self.ending is not None:
            return  # of a call that was given up
        self._headers = {**self._headers, **headers} if self._headers else headers
        if self._block_flags & http2.END_STREAM:
            self._finish()

    def _decode(self, block: bytes) -> dict[str, str]:
        known = self._decoded.get(block)
        if known is not None:
            return known
        try:
            # hpack's types say bytes, which come only where they are asked for.
            pairs: Iterable[Any] = self._decoder.decode(block)
            headers = {str(name): str(value) for name, value in pairs}
        except (HPACKError, UnicodeDecodeError) as error:
            raise Http2Error(f"expected headers, got {len(block)} other bytes: {error}") from error
        if len(self._decoded) < _CACHED_BLOCKS:
            self._decoded[block] = headers
        return headers

    def _finish(self) -> None:
        """The server has said all."""
        if self._unsent:
            self._unsent = memoryview(b"")
            self._outgoing.append(
                http2.frame(http2.RST_STREAM, 0, self._stream, http2.CANCEL.to_bytes(4))
            )
        headers = self._headers
        if headers.get("grpc-status") == "0":
            self.ending = _OK
            return
        status = headers.get("grpc-status", "")
        if not status.isdecimal():
            raise Http2Error(
                "expected a gRPC answer, got one with HTTP status "
                f"{headers.get(':status', 'none')} and no grpc-status"
            )
        self.ending = Ending(int(status), unquote(headers.get("grpc-message", "")))


def _unpadded(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise Http2Error("expected padding within its frame")
    return payload[1 : len(payload) - payload[0]]
