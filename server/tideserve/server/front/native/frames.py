"""Bytes into HTTP/2 frames (RFC 9113, section 4)."""

from typing import Final

from tideserve.server.front.native.errors import ProtocolError
from tideserve.v1 import http2

Buffer = bytes | memoryview
#: Type, flags, stream, payload; of large DATA a view on what was read.
Frame = tuple[int, int, int, Buffer]

# Up to this size a copy costs less than a view.
_COPY_BYTES: Final = 4096
# A view keeps all that was read with it. Of what is a smaller part of that than a twentieth a copy is
# given: whatever becomes of the rest, no more is held than so many times what is counted.
_VIEW_SHARE: Final = 20

# Frames that mean something, other than DATA: they are taken whole.
_MAX_WHOLE_BYTES: Final = 64 * 1024
_HEAD_BYTES: Final = 9


class FrameReader:
    """Owns what came of the next frame. DATA is given as it comes: a frame in parts, of which the
    last has its flags. Padding is taken off, and counted for flow control: of a large frame that
    means nothing here, only the head is given."""

    def __init__(self) -> None:
        self._begun = False
        self._unread = b""
        self._left_bytes = 0  # of a DATA frame that is not all here
        self._left_flags = self._left_stream = 0
        self._skip_bytes = 0  # after those: padding, or what nobody reads
        self.taken_bytes = 0
        """DATA, with its padding, since whoever reads this set it to 0."""
        self.padding: dict[int, int] = {}
        """Bytes around DATA by stream, since whoever reads this cleared it."""
        self.viewed: bytes | None = None
        """What was read last, where frames have views of it."""
        self._copied_bytes = _COPY_BYTES
        """Of this read, DATA up to this size is copied."""

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
        self.viewed = None
        if self._unread:
            data = self._unread + data
            self._unread = b""
        at, size = 0, len(data)
        if not self._begun:
            if not self._take_preface(data):
                return []
            at = len(http2.PREFACE)
        copied_bytes = self._copied_bytes = max(_COPY_BYTES, size // _VIEW_SHARE)
        view: memoryview | None = None  # one for all frames
        frames: list[Frame] = []
        if self._left_bytes:
            at = self._take_part(data, at, frames)
        elif self._skip_bytes:
            at = self._skip(size, at)
        while size - at >= _HEAD_BYTES:
            # Byte by byte: compiled that takes a tenth of what `HEAD.unpack_from` does.
            length = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            kind, flags = data[at + 3], data[at + 4]
            # Its first bit is reserved: a call's id has no room for it.
            stream = (data[at + 5] & 0x7F) << 24 | data[at + 6] << 16
            stream |= data[at + 7] << 8 | data[at + 8]
            begin = at + _HEAD_BYTES
            end = begin + length
            if kind == http2.DATA and not flags & http2.PADDED:
                self.taken_bytes += length
                if end <= size:
                    if length <= copied_bytes:
                        frames.append((kind, flags, stream, data[begin:end]))
                    else:
                        if view is None:
                            view = memoryview(data)
                            self.viewed = data
                        frames.append((kind, flags, stream, view[begin:end]))
                    at = end
                else:
                    self._left_bytes, self._left_flags, self._left_stream = length, flags, stream
                    at = self._take_part(data, begin, frames)
                continue
            taken = self._take_other(data, begin, length, (kind, flags, stream), frames)
            if taken is None:
                break
            at = taken
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

    def _take_other(
        self, data: bytes, begin: int, length: int, head: tuple[int, int, int], frames: list[Frame]
    ) -> int | None:
        """Takes a frame that is not plain DATA; where the next one begins. None: too little of it
        is here."""
        kind, flags, stream = head
        end, size = begin + length, len(data)
        if kind == http2.DATA:
            if length and begin == size:
                return None  # how much padding it has comes next
            self._take_padded_head(data[begin : begin + 1], length, flags, stream)
            if not self._left_bytes:
                frames.append((*head, b""))
            return self._take_part(data, begin + 1, frames)
        if length > _MAX_WHOLE_BYTES:
            if kind != http2.GOAWAY and kind <= http2.CONTINUATION:
                raise ProtocolError(
                    http2.FRAME_SIZE_ERROR,
                    f"expected frames of type {kind} of at most {_MAX_WHOLE_BYTES} bytes, "
                    f"got {length}",
                )
            frames.append((*head, b""))
            self._skip_bytes = length
            return self._skip(size, begin)
        if end > size:
            return None
        payload = data[begin:end]
        frames.append((*head, _block(flags, payload) if kind == http2.HEADERS else payload))
        return end

    def _take_padded_head(self, first: bytes, length: int, flags: int, stream: int) -> None:
        """Of DATA whose first byte says how much padding it has."""
        padding_bytes = _padding(first, length)
        around_bytes = 1 + padding_bytes
        self.taken_bytes += length
        self.padding[stream] = self.padding.get(stream, 0) + around_bytes
        self._left_bytes, self._left_flags = length - around_bytes, flags
        self._left_stream, self._skip_bytes = stream, padding_bytes

    def _take_part(self, data: bytes, at: int, frames: list[Frame]) -> int:
        """Takes what is here of a DATA frame and the padding behind it; where the next frame
        begins."""
        size = min(self._left_bytes, len(data) - at)
        self._left_bytes -= size
        flags = 0 if self._left_bytes else self._left_flags
        if size:
            if size <= self._copied_bytes:
                frames.append((http2.DATA, flags, self._left_stream, data[at : at + size]))
            else:
                self.viewed = data
                part = memoryview(data)[at : at + size]
                frames.append((http2.DATA, flags, self._left_stream, part))
        at += size
        return self._skip(len(data), at) if self._skip_bytes and not self._left_bytes else at

    def _skip(self, size: int, at: int) -> int:
        """Leaves out what is to be left out; where the next frame begins."""
        skipped = min(self._skip_bytes, size - at)
        self._skip_bytes -= skipped
        return at + skipped


def _padding(first: bytes, length: int) -> int:
    """The bytes behind a padded frame's payload: `first` has how many."""
    if not length or first[0] >= length:
        raise ProtocolError(http2.PROTOCOL_ERROR, "expected padding within its frame")
    return first[0]


def _block(flags: int, payload: bytes) -> bytes:
    """Of HEADERS without what is around it."""
    if flags & http2.PADDED:
        payload = payload[1 : len(payload) - _padding(payload[:1], len(payload))]
    return payload[5:] if flags & http2.WITH_PRIORITY else payload
