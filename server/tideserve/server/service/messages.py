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

# Status messages travel in HTTP/2 headers; peers refuse much larger ones.
MAX_STATUS_MESSAGE: Final = 3000


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
    message = str(error)
    if len(message) > MAX_STATUS_MESSAGE:
        message = message[:MAX_STATUS_MESSAGE] + "..."
    pushback_ms = None
    if isinstance(error, QueueFullError):
        pushback_ms = error.pushback_ms
    elif isinstance(error, MessageTooLargeError):
        pushback_ms = NEVER_AGAIN_MS
    return Status(int(code_of(error)), message, pushback_ms)
