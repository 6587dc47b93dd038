"""gRPC's messages in the body of an answer: a flag, 4 bytes of length, the message."""

from typing import Final, NamedTuple

from tideserve.replica.errors import Http2Error
from tideserve.replica.http2 import Ending
from tideserve.v1.http2 import MESSAGE_PREFIX

# A Command holds a model's configuration at most.
MAX_MESSAGE_BYTES: Final = 1 << 26


class Reply(NamedTuple):
    """`status` is gRPC's number; 0 (OK) comes with the `message`."""

    status: int
    detail: str
    message: bytes


def reply_of(ending: Ending, body: list[memoryview]) -> Reply:
    """The one answer of a unary call. Raises `Http2Error`."""
    return Reply(*ending, _only_message(body) if ending.status == 0 else b"")


class MessageReader:
    """The messages of a stream, from pieces that end anywhere."""

    def __init__(self, max_message_bytes: int = MAX_MESSAGE_BYTES) -> None:
        self._max_message_bytes = max_message_bytes
        self._unread = bytearray()

    @property
    def within_message(self) -> bool:
        """A message has begun and is not whole."""
        return bool(self._unread)

    def read(self, body: list[memoryview]) -> list[bytes]:
        """Those that are whole now. Raises `Http2Error` for one that is compressed or too large."""
        unread = self._unread
        for part in body:
            unread += part
        messages: list[bytes] = []
        at = 0
        while len(unread) - at >= MESSAGE_PREFIX.size:
            compressed, size = MESSAGE_PREFIX.unpack_from(unread, at)
            if compressed or size > self._max_message_bytes:
                raise Http2Error(
                    f"expected uncompressed messages of at most {self._max_message_bytes} bytes, "
                    f"got one that begins with {unread[at : at + MESSAGE_PREFIX.size].hex()}"
                )
            begin = at + MESSAGE_PREFIX.size
            if len(unread) < begin + size:
                break
            at = begin + size
            messages.append(bytes(unread[begin:at]))
        del unread[:at]
        return messages


def _only_message(parts: list[memoryview]) -> bytes:
    body = parts[0] if len(parts) == 1 else memoryview(b"".join(parts))
    if len(body) < 5 or body[0] != 0 or int.from_bytes(body[1:5]) != len(body) - 5:
        raise Http2Error(
            f"expected one uncompressed message, got {len(body)} bytes that begin with "
            f"{bytes(body[:5]).hex()}"
        )
    return bytes(body[5:])
