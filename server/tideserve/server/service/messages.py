"""Bytes to messages, errors to statuses: the rim of every service."""

from typing import Final, TypeVar

from google.protobuf.message import DecodeError, Message

from tideserve.server.errors import (
    InvalidRequestError,
    MessageTooLargeError,
    QueueFullError,
    TideserveError,
    code_of,
)
from tideserve.server.front import Status
from tideserve.v1.metadata import NEVER_AGAIN_MS

MessageT = TypeVar("MessageT", bound=Message)

# Status messages travel in HTTP/2 headers, each byte outside printable ASCII as three
# (https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#responses); grpc-core's
# clients lose the whole status to headers of more than 8 KiB.
MAX_STATUS_BYTES: Final = 3000


def parse(kind: type[MessageT], payload: bytes) -> MessageT:
    """Reads a message; raises `InvalidRequestError` for bytes that are none."""
    try:
        return kind.FromString(payload)
    except DecodeError as error:
        raise InvalidRequestError(
            f"expected a {kind.DESCRIPTOR.name} message, got {len(payload)} bytes that are "
            f"none: {error}"
        ) from error


def status_of(error: TideserveError) -> Status:
    """What a caller is told of an error."""
    pushback_ms = None
    if isinstance(error, QueueFullError):
        pushback_ms = error.pushback_ms
    elif isinstance(error, MessageTooLargeError):
        pushback_ms = NEVER_AGAIN_MS
    return Status(int(code_of(error)), sentence_of(error), pushback_ms)


def sentence_of(error: TideserveError) -> str:
    """Its message, cut to what every client takes: names in it come from callers."""
    message = str(error)
    if 12 * len(message) <= MAX_STATUS_BYTES:  # 4 bytes a character at most
        return message
    left_bytes = MAX_STATUS_BYTES
    for at, character in enumerate(message):
        plain = " " <= character <= "~" and character != "%"
        left_bytes -= 1 if plain else 3 * len(character.encode("utf-8", "replace"))
        if left_bytes < 0:
            return message[:at] + "..."
    return message
