"""gRPC messages out of a stream's DATA: five bytes before each, gzip where the caller chose it."""

import zlib
from typing import Final

from tideserve.server.errors import Code
from tideserve.server.front import Status
from tideserve.server.front.native.errors import RefusedMessageError
from tideserve.server.front.native.frames import Buffer
from tideserve.server.front.refusal import request_too_large
from tideserve.v1.http2 import MESSAGE_PREFIX

_PREFIX_BYTES: Final = MESSAGE_PREFIX.size
# Parts below it are joined as they come.
_SMALL_BYTES: Final = 4096
# zlib's word for which header to expect.
_WINDOW_BITS: Final = {b"gzip": 31, b"deflate": 15}


class MessageReader:
    """One stream's messages. It holds what came of the next one: `held_bytes`."""

    __slots__ = ("_compressed", "_encoding", "_limit_bytes", "_need_bytes", "_parts", "held_bytes")

    def __init__(self, encoding: bytes, limit_bytes: int) -> None:
        self._encoding = encoding
        self._limit_bytes = limit_bytes
        self._parts: list[Buffer | bytearray] = []
        self._need_bytes = _PREFIX_BYTES
        self._compressed: bool | None = None  # None: the prefix is not here yet
        self.held_bytes = 0

    def read(self, data: Buffer) -> list[bytes]:
        """The messages that `data` completes. Raises `RefusedMessageError`, at the prefix of one
        that is too large."""
        self.held_bytes += len(data)
        if self.held_bytes < self._need_bytes:
            self._keep(data)
            return []
        if self._parts:
            self._keep(data)
            data = b"".join(self._parts)
            self._parts.clear()
        messages: list[bytes] = []
        at, size = 0, len(data)
        while size - at >= self._need_bytes:
            begin, at = at, at + self._need_bytes
            if self._compressed is None:
                flag, self._need_bytes = MESSAGE_PREFIX.unpack_from(data, begin)
                if self._need_bytes > self._limit_bytes:
                    raise RefusedMessageError(
                        request_too_large(self._need_bytes, self._limit_bytes)
                    )
                self._compressed = bool(flag)
            else:
                message = bytes(data[begin:at])
                messages.append(self._decompress(message) if self._compressed else message)
                self._compressed, self._need_bytes = None, _PREFIX_BYTES
        self.held_bytes = size - at
        self._keep(data[at:])
        return messages

    @property
    def is_within_a_message(self) -> bool:
        return self.held_bytes > 0 or self._compressed is not None

    def _keep(self, data: Buffer) -> None:
        """Until more comes. Small parts go together: each on its own takes 33 bytes and a place
        beyond its size, so that what is held would be many times `held_bytes`."""
        parts = self._parts
        if len(data) >= _SMALL_BYTES:
            parts.append(data)
        elif parts and isinstance(parts[-1], bytearray):
            parts[-1] += data
        elif data:
            parts.append(bytearray(data))

    def _decompress(self, message: bytes) -> bytes:
        window_bits = _WINDOW_BITS.get(self._encoding)
        if window_bits is None:
            raise RefusedMessageError(
                Status(
                    Code.UNIMPLEMENTED,
                    f"expected a message in identity, gzip or deflate, got one in "
                    f"{self._encoding.decode('latin-1')!r}",
                )
            )
        stream = zlib.decompressobj(window_bits)
        try:
            plain = stream.decompress(message, self._limit_bytes + 1)
        except zlib.error as error:
            raise RefusedMessageError(
                Status(Code.INVALID_ARGUMENT, f"expected {self._encoding.decode()}: {error}")
            ) from error
        if len(plain) > self._limit_bytes:
            raise RefusedMessageError(request_too_large(len(plain), self._limit_bytes))
        if not stream.eof:
            raise RefusedMessageError(
                Status(Code.INVALID_ARGUMENT, "expected a whole compressed message, got a part")
            )
        return plain
