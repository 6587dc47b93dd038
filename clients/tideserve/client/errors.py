"""Every error of the client, and which gRPC status becomes which.

The classes carry the protocol's own names, so that `except NotFound` reads like the status
it stands for.
"""
# ruff: noqa: N818

from typing import Final

import grpc


class TideserveClientError(Exception):
    """Root of the client's errors.

    `code` is the gRPC status the error stands for, None where none came or would fit;
    `message` the sentence, `model` the model it is about ("" for none), `request_id` the
    request on a stream ("" elsewhere). `pushback_s` is when the server wants the next
    attempt: None where it said nothing, negative where it wants none.
    """

    default_code: grpc.StatusCode | None = None

    def __init__(
        self,
        message: str,
        *,
        code: grpc.StatusCode | None = None,
        model: str = "",
        request_id: str = "",
        pushback_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None else code
        self.model = model
        self.request_id = request_id
        self.pushback_s = pushback_s


# --- statuses ------------------------------------------------------------------------------


class InvalidArgument(TideserveClientError):
    """The request does not fit the model or the protocol; also found before anything is sent."""

    default_code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(TideserveClientError):
    """No such model, version or method."""

    default_code = grpc.StatusCode.NOT_FOUND


class ResourceExhausted(TideserveClientError):
    """Not admitted (`pushback_s` says when to come back), or too large."""

    default_code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(TideserveClientError):
    """The time was up, here or at the server."""

    default_code = grpc.StatusCode.DEADLINE_EXCEEDED


class Unavailable(TideserveClientError):
    """The server cannot serve this now."""

    default_code = grpc.StatusCode.UNAVAILABLE


class Disconnected(Unavailable):
    """No connection: the server cannot be reached, or the connection broke in mid-call."""


class Cancelled(TideserveClientError):
    """The call was cancelled, by this side or the server."""

    default_code = grpc.StatusCode.CANCELLED


class ModelError(TideserveClientError):
    """The model raised, gave outputs that do not fit, or killed its replicas."""

    default_code = grpc.StatusCode.INTERNAL


class Unimplemented(TideserveClientError):
    """The server does not have this part of the protocol."""

    default_code = grpc.StatusCode.UNIMPLEMENTED


class Unauthenticated(TideserveClientError):
    """The token of the control plane is missing or wrong."""

    default_code = grpc.StatusCode.UNAUTHENTICATED


class PermissionDenied(TideserveClientError):
    """The caller is known and may not do this."""

    default_code = grpc.StatusCode.PERMISSION_DENIED


class FailedPrecondition(TideserveClientError):
    """The server's state does not allow this."""

    default_code = grpc.StatusCode.FAILED_PRECONDITION


# --- of this side --------------------------------------------------------------------------


class InvalidResponse(TideserveClientError):
    """The answer does not decode: its bytes do not match its shape, or it matches no request."""


class StreamRequestError(TideserveClientError):
    """One request of a stream failed and the server gave a sentence without a code."""


class ClientClosed(TideserveClientError):
    """The client or the stream was used after it was closed."""


class TlsError(TideserveClientError):
    """A TLS file is missing, unreadable or without its other half."""


STATUS: Final[dict[grpc.StatusCode, type[TideserveClientError]]] = {
    kind.default_code: kind
    for kind in (
        InvalidArgument,
        NotFound,
        ResourceExhausted,
        DeadlineExceeded,
        Unavailable,
        Cancelled,
        ModelError,
        Unimplemented,
        Unauthenticated,
        PermissionDenied,
        FailedPrecondition,
    )
    if kind.default_code is not None
}
