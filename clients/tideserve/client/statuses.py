"""From what gRPC reports to the client's typed errors."""

from collections.abc import Iterable
from typing import Any, Final

import grpc

from tideserve.client.errors import (
    STATUS,
    Disconnected,
    StreamRequestError,
    TideserveClientError,
)
from tideserve.v1.metadata import (
    GRPC_PUSHBACK_METADATA_KEY,
    PUSHBACK_METADATA_KEY,
    STREAM_STATUS_PARAMETER,
)

_PUSHBACK_KEYS: Final = (PUSHBACK_METADATA_KEY, GRPC_PUSHBACK_METADATA_KEY)
# A stream answers a failed request with a sentence; this parameter of the (otherwise empty)
# response beside it carries the status code's number.
STREAM_CODE_PARAMETER: Final = STREAM_STATUS_PARAMETER

# gRPC makes these itself when there is no connection; a status a server sent has no mark of
# its own that the Python API shows.
_LOST_CONNECTION: Final = (
    "failed to connect to all addresses",
    "errors resolving",
    "DNS resolution failed",
    "Socket closed",
    "Connection reset",
    "connection reset",
    "Broken pipe",
    "recvmsg:",
    "connection attempt timed out",
    "GOAWAY",
    "keepalive watchdog timeout",
    "empty address list",
)
_BY_NUMBER: Final[dict[int, grpc.StatusCode]] = {code.value[0]: code for code in grpc.StatusCode}


def error_of(
    code: grpc.StatusCode,
    message: str,
    trailing_metadata: Iterable[Any] = (),
    *,
    model: str = "",
    request_id: str = "",
) -> TideserveClientError:
    """The typed error of a status; one without a class of its own is the root with its code."""
    message = message or f"the call ended with {code.name} and no message"
    kind = STATUS.get(code, TideserveClientError)
    if code is grpc.StatusCode.UNAVAILABLE and any(mark in message for mark in _LOST_CONNECTION):
        kind = Disconnected
    return kind(
        message,
        code=code,
        model=model,
        request_id=request_id,
        pushback_s=pushback_s_of(trailing_metadata),
    )


def pushback_s_of(trailing_metadata: Iterable[Any]) -> float | None:
    """When the server wants the next attempt; None: it says nothing.

    A negative or unreadable value means no further attempt (gRFC A6) and comes as -1.
    """
    for key, value in trailing_metadata:
        if key.lower() in _PUSHBACK_KEYS:
            try:
                milliseconds = int(value)
            except ValueError:
                return -1.0
            return milliseconds / 1e3 if milliseconds >= 0 else -1.0
    return None


def stream_error_of(
    message: str, code_number: int | None, *, model: str, request_id: str
) -> TideserveClientError:
    """The error of one request on a stream, typed where the server gave the code."""
    code = _BY_NUMBER.get(code_number) if code_number is not None else None
    if code is None or code is grpc.StatusCode.OK:
        return StreamRequestError(message, model=model, request_id=request_id)
    return error_of(code, message, model=model, request_id=request_id)
