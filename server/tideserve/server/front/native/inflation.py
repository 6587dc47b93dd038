"""A compressed message, inflated in steps."""

import io
import zlib
from typing import Final

from tideserve.server.errors import Code
from tideserve.server.front import Status
from tideserve.server.front.native.errors import RefusedMessageError
from tideserve.server.front.native.frames import Buffer
from tideserve.server.front.refusal import request_too_large

# What a step takes in and gives out at most: some 0.6 ms of ordinary data. zlib makes about 400 MB/s
# of zeros, but what builds nothing but tables gives out next to nothing of what it takes in.
_STEP_PACKED_BYTES: Final = 16 * 1024
_STEP_PLAIN_BYTES: Final = 256 * 1024
# zlib's word for which header to expect.
_WINDOW_BITS: Final = {b"gzip": 31, b"deflate": 15}


class Inflation:
    """Owns a compressed message and what came out of it. A thousand times its size may: 127 KB held
    the loop for 0.3 s.

    `step` until `is_done`, then `take`. No more than one byte over `limit_bytes` ever comes out.
    Raises `RefusedMessageError`, at once for an encoding that nobody here knows.
    """

    __slots__ = (
        "_at",
        "_encoding",
        "_limit_bytes",
        "_packed",
        "_plain",
        "_stream",
        "_window_bits",
        "is_done",
    )

    def __init__(self, encoding: bytes, packed: Buffer, limit_bytes: int) -> None:
        window_bits = _WINDOW_BITS.get(encoding)
        if window_bits is None:
            raise RefusedMessageError(
                Status(
                    Code.UNIMPLEMENTED,
                    f"expected a message in identity, gzip or deflate, got one in "
                    f"{encoding.decode('latin-1')!r}",
                )
            )
        self._encoding = encoding
        self._packed = packed
        self._at = 0
        self._limit_bytes = limit_bytes
        self._window_bits = window_bits
        # Of the first step: thousands of small messages may wait, and this takes 7 KB or more.
        self._stream: zlib._Decompress | None = None
        self._plain = io.BytesIO()
        self.is_done = False

    @property
    def held_bytes(self) -> int:
        """Of the message, both as it came and as it is so far."""
        return len(self._packed) + self._plain.tell()

    def step(self) -> None:
        """Goes on."""
        stream = self._stream
        if stream is None:
            stream = self._stream = zlib.decompressobj(self._window_bits)
        packed: Buffer = stream.unconsumed_tail
        if not packed:
            packed = self._packed[self._at : self._at + _STEP_PACKED_BYTES]
            self._at += len(packed)
        room_bytes = self._limit_bytes + 1 - self._plain.tell()
        try:
            plain = stream.decompress(packed, min(room_bytes, _STEP_PLAIN_BYTES))
        except zlib.error as error:
            raise RefusedMessageError(
                Status(Code.INVALID_ARGUMENT, f"expected {self._encoding.decode()}: {error}")
            ) from error
        if len(plain) == room_bytes:
            raise RefusedMessageError(request_too_large(self._limit_bytes + 1, self._limit_bytes))
        self._plain.write(plain)
        if stream.eof:
            self.is_done = True
        elif not packed and not plain:
            raise RefusedMessageError(
                Status(Code.INVALID_ARGUMENT, "expected a whole compressed message, got a part")
            )

    def take(self) -> bytes:
        """The message, without a copy."""
        return self._plain.getvalue()
