"""A client's connection, without IO: bytes in, events and bytes out (RFC 9113)."""

import struct
from typing import Final

from tideserve.server.front import Event
from tideserve.server.front.native.calls import WINDOW_STEP, Calls
from tideserve.server.front.native.errors import ProtocolError
from tideserve.server.front.native.frames import FrameReader
from tideserve.server.front.native.headers import MAX_HEADER_BYTES, HeaderReader
from tideserve.server.front.native.shared import Shared
from tideserve.server.parts import let_go
from tideserve.v1 import http2

# Of the sentence in a GOAWAY.
_MAX_WHY_BYTES: Final = 256


class Connection:
    """Owns what a connection is besides its calls: frames, header tables, settings.

    `receive` raises `ProtocolError`; the connection is then to be ended by `leave`.
    """

    def __init__(self, shared: Shared, first_id: int, peer: str) -> None:
        self.calls = Calls(shared, first_id, peer)
        self.answers = self.calls.answers
        self._outbox = self.answers.outbox
        self._max_concurrent_streams = shared.max_concurrent_streams
        self._frames = FrameReader()
        self._headers = HeaderReader()
        self._block: bytearray | None = None  # of headers that go on in the next frame
        self._block_stream = self._block_flags = 0

    @property
    def has_begun(self) -> bool:
        """The client's preface came."""
        return self._frames.has_begun

    @property
    def expected_bytes(self) -> int:
        """Of the frame that is coming in: a hint for the next read."""
        return self._frames.expected_bytes

    def open(self) -> None:
        """Queues the server's part of the preface."""
        settings = {
            http2.HEADER_TABLE_SIZE: 0,
            http2.MAX_CONCURRENT_STREAMS: self._max_concurrent_streams,
            http2.INITIAL_WINDOW_SIZE: http2.MAX_WINDOW,
            http2.MAX_FRAME_SIZE: http2.MAX_FRAME,
            http2.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
        }
        self._outbox.add(http2.settings(settings))
        self._outbox.add(http2.window_update(0, http2.MAX_WINDOW - http2.DEFAULT_WINDOW))

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """What the bytes that came mean."""
        calls = self.calls
        frames = self._frames
        came = frames.read(data)
        calls.kept_bytes = 0
        for kind, flags, stream, payload in came:
            if self._block is not None and kind != http2.CONTINUATION:
                raise ProtocolError(
                    http2.PROTOCOL_ERROR, f"expected CONTINUATION, got a frame of type {kind}"
                )
            if kind == http2.DATA:
                calls.on_data(stream, payload, now_s, ends=bool(flags & http2.END_STREAM))
                continue
            assert isinstance(payload, bytes), "only DATA comes as views"
            if kind == http2.HEADERS:
                self._on_headers(stream, flags, payload, now_s)
            elif kind == http2.WINDOW_UPDATE:
                self._on_window_update(stream, payload)
            else:
                self._on_rest(kind, flags, stream, payload, now_s)
        self._outbox.release()
        self.answers.forget_ended()
        viewed = frames.viewed
        if viewed is not None:
            frames.viewed = None
            if 2 * calls.kept_bytes < len(viewed):
                numbers = {frame[2] for frame in came if isinstance(frame[3], memoryview)}
                let_go(viewed, calls.kept(numbers), len(came))
        if frames.padding:
            for stream, size_bytes in frames.padding.items():
                calls.on_padding(stream, size_bytes)
            frames.padding.clear()
        if frames.taken_bytes > WINDOW_STEP:
            self._outbox.add(http2.window_update(0, frames.taken_bytes))
            frames.taken_bytes = 0
        return self.take_events()

    def work(self, stream: int, now_s: float) -> list[Event]:
        """Goes on with a call in `Shared.at_work`; what comes of it."""
        self.calls.work(stream, now_s)
        return self.take_events()

    def take_events(self) -> list[Event]:
        """What happened since this was asked."""
        events = self.calls.events
        self.calls.events = []
        return events

    def ping(self) -> None:
        """Asks whether the client is there."""
        self._outbox.add(http2.frame(http2.PING, 0, 0, bytes(8)))

    def leave(self, code: int, why: str) -> None:
        """Queues the last words to the client."""
        payload = struct.pack(">LL", self.calls.last, code) + why.encode()[:_MAX_WHY_BYTES]
        self._outbox.add(http2.frame(http2.GOAWAY, 0, 0, payload))

    # --- frames ---------------------------------------------------------------------------

    def _on_headers(self, number: int, flags: int, block: bytes, now_s: float) -> None:
        if not number & 1:
            raise ProtocolError(
                http2.PROTOCOL_ERROR, f"expected HEADERS of an odd stream, got {number}"
            )
        if not flags & http2.END_HEADERS:
            self._block = bytearray(block)
            self._block_stream, self._block_flags = number, flags
            return
        head = self._headers.read(block)
        self.calls.on_headers(number, head, now_s, ends=bool(flags & http2.END_STREAM))

    def _on_continuation(self, number: int, flags: int, payload: bytes, now_s: float) -> None:
        block = self._block
        if block is None or number != self._block_stream:
            raise ProtocolError(http2.PROTOCOL_ERROR, "CONTINUATION of no headers")
        block += payload
        if len(block) > MAX_HEADER_BYTES:
            raise ProtocolError(
                http2.ENHANCE_YOUR_CALM, f"expected at most {MAX_HEADER_BYTES} bytes of headers"
            )
        if flags & http2.END_HEADERS:
            self._block = None
            self._on_headers(number, self._block_flags | http2.END_HEADERS, bytes(block), now_s)

    def _on_window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise ProtocolError(http2.FRAME_SIZE_ERROR, "expected WINDOW_UPDATE of 4 bytes")
        growth = int.from_bytes(payload) & http2.MAX_WINDOW
        grown = self.calls.on_window(number, growth) if number else self._outbox.grow(growth)
        if not grown or not growth:
            raise ProtocolError(
                http2.FLOW_CONTROL_ERROR, f"the window of stream {number} cannot grow by {growth}"
            )

    def _on_rest(self, kind: int, flags: int, number: int, payload: bytes, now_s: float) -> None:
        match kind:
            case http2.RST_STREAM:
                if len(payload) != 4 or not 0 < number <= self.calls.last:
                    raise ProtocolError(
                        http2.PROTOCOL_ERROR, f"expected a stream to reset, got {number}"
                    )
                self.calls.on_reset(number)
            case http2.SETTINGS:
                self._on_settings(flags, payload)
            case http2.PING:
                if len(payload) != 8:
                    raise ProtocolError(http2.FRAME_SIZE_ERROR, "expected PING of 8 bytes")
                if not flags & http2.ACK:
                    self._outbox.add(http2.frame(http2.PING, http2.ACK, 0, payload))
            case http2.CONTINUATION:
                self._on_continuation(number, flags, payload, now_s)
            case http2.PUSH_PROMISE:
                raise ProtocolError(http2.PROTOCOL_ERROR, "a client cannot push")
            case _:
                pass  # PRIORITY, GOAWAY and what we do not know ask for nothing

    def _on_settings(self, flags: int, payload: bytes) -> None:
        if flags & http2.ACK:
            self._headers.forget_table()
            return
        if len(payload) % http2.SETTING.size:
            raise ProtocolError(
                http2.FRAME_SIZE_ERROR, f"expected settings of 6 bytes, got {len(payload)} bytes"
            )
        for name, value in http2.SETTING.iter_unpack(payload):
            if name == http2.INITIAL_WINDOW_SIZE:
                if value > http2.MAX_WINDOW:
                    raise ProtocolError(http2.FLOW_CONTROL_ERROR, f"a window of {value} bytes")
                self._outbox.set_first_window(value)
            elif name == http2.MAX_FRAME_SIZE:
                if not http2.DEFAULT_FRAME <= value <= http2.MAX_FRAME:
                    raise ProtocolError(http2.PROTOCOL_ERROR, f"frames of {value} bytes")
                self._outbox.set_max_frame(value)
        self._outbox.add(http2.frame(http2.SETTINGS, http2.ACK, 0, b""))
