"""Bytes into HTTP/2 frames (RFC 9113, section 4)."""

from typing import Final

from tideserve.server.front.native.errors import ProtocolError
from tideserve.v1 import http2

Buffer = bytes | memoryview
#: Type, flags, stream, payload; of large DATA a view on what was read.
Frame = tuple[int, int, int, Buffer]

# Up to this size a copy costs less than a view.
_COPY_BYTES: Final = 4096

# Frames other than DATA, and padded ones, which are taken whole.
_MAX_WHOLE_BYTES: Final = 64 * 1024
_HEAD_BYTES: Final = http2.HEAD.size


class FrameReader:
    """Owns what came of the next frame. DATA is given as it comes: a frame in parts, of which the
    last has its flags. Padding is taken off; `taken_bytes` counts it for flow control."""

    def __init__(self) -> None:
        self._begun = False
        self._unread = b""
        self._left_bytes = 0  # of a DATA frame that is not all here
        self._left_flags = self._left_stream = 0
        self.taken_bytes = 0
        """DATA since whoever reads this set it to 0."""

    @property
    def has_begun(self) -> bool:
        """The client's preface came: it speaks HTTP/2."""
        return self._begun

    @property
    def expected_bytes(self) -> int:
        """Of the DATA frame that is coming in: a hint for the next read."""
        return self._left_bytes

    def read(self, data: bytes) -> list[Frame]:
        """The frames in `data`. Raises `ProtocolError`."""
        if self._unread:
            data = self._unread + data
            self._unread = b""
        at, size = 0, len(data)
        if not self._begun:
            if not self._take_preface(data):
                return []
            at = len(http2.PREFACE)
        frames: list[Frame] = []
        if self._left_bytes:
            at = self._take_part(data, at, frames)
        unpack = http2.HEAD.unpack_from
        while size - at >= _HEAD_BYTES:
            high, length, kind, flags, stream = unpack(data, at)
            length |= high << 16
            stream &= http2.LAST_STREAM  # its first bit is reserved: a call's id has no room for it
            begin = at + _HEAD_BYTES
            end = begin + length
            if kind == http2.DATA and not flags & http2.PADDED:
                self.taken_bytes += length
                if end <= size:
                    body = data if length <= _COPY_BYTES else memoryview(data)
                    frames.append((kind, flags, stream, body[begin:end]))
                    at = end
                else:
                    self._left_bytes, self._left_flags, self._left_stream = length, flags, stream
                    at = self._take_part(data, begin, frames)
                continue
            if length > _MAX_WHOLE_BYTES:
                raise ProtocolError(
                    http2.FRAME_SIZE_ERROR,
                    f"expected frames of type {kind} of at most {_MAX_WHOLE_BYTES} bytes, "
                    f"got {length}",
                )
            if end > size:
                break
            frames.append((kind, flags, stream, self._whole(kind, flags, data[begin:end])))
            at = end
        self._unread = data[at:]
        return frames

    def _take_preface(self, data: bytes) -> bool:
        """False: it is not all here."""
        if not data.startswith(http2.PREFACE[: len(data)]):
            raise ProtocolError(
                http2.PROTOCOL_ERROR, f"expected HTTP/2 in plain text, got {data[:24]!r}"
            )
        if len(data) < len(http2.PREFACE):
            self._unread = data
            return False
        self._begun = True
        return True

    def _take_part(self, data: bytes, at: int, frames: list[Frame]) -> int:
        """Takes what is here of a DATA frame; where the next frame begins."""
        part = memoryview(data)[at : at + self._left_bytes]
        self._left_bytes -= len(part)
        flags = 0 if self._left_bytes else self._left_flags
        if part:
            frames.append((http2.DATA, flags, self._left_stream, part))
        return at + len(part)

    def _whole(self, kind: int, flags: int, payload: bytes) -> bytes:
        """The payload without what is around it."""
        if kind == http2.DATA:
            self.taken_bytes += len(payload)
        elif kind != http2.HEADERS:
            return payload
        if flags & http2.PADDED:
            if not payload or payload[0] >= len(payload):
                raise ProtocolError(http2.PROTOCOL_ERROR, "expected padding within its frame")
            payload = payload[1 : len(payload) - payload[0]]
        if kind == http2.HEADERS and flags & http2.WITH_PRIORITY:
            payload = payload[5:]
        return payload
