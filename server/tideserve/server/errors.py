"""Every error of the frontend, and the gRPC status each becomes.

A message says what was expected, what came and what to do.
"""

from enum import IntEnum
from typing import Final


class Code(IntEnum):
    """gRPC status codes (https://grpc.io/docs/guides/status-codes/)."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class TideserveError(Exception):
    """Root of the frontend's errors."""


# --- of a call ---------------------------------------------------------------------------


class InvalidRequestError(TideserveError):
    """The request does not fit the protocol or the model."""


class NotFoundError(TideserveError):
    """No such model, version, replica or method."""


class AlreadyExistsError(TideserveError):
    """The name is taken."""


class RegionLimitError(TideserveError):
    """As many regions of shared memory as there may be are registered."""


class PermissionDeniedError(TideserveError):
    """The caller may not ask for this from where it is."""


class QueueFullError(TideserveError):
    """Not admitted: a bound would be passed. `pushback_ms` is when to try again."""

    def __init__(self, message: str, pushback_ms: int | None = None) -> None:
        super().__init__(message)
        self.pushback_ms = pushback_ms


class MessageTooLargeError(TideserveError):
    """A message over the size limit."""


class ExpiredError(TideserveError):
    """The deadline passed before a replica took the request."""


class CancelledCallError(TideserveError):
    """The caller gave up."""


class UnavailableError(TideserveError):
    """Nothing can serve now."""


class ModelFailedError(TideserveError):
    """The model raised, gave outputs that do not fit, or killed its replicas (R6)."""


class StaleCallError(TideserveError):
    """A replica's or autoscaler's call from an earlier life."""


class UnauthenticatedError(TideserveError):
    """The token of the replica and control planes is missing or wrong."""


class UnsupportedError(TideserveError):
    """A part of the protocol that this server does not have."""


# --- of the repository --------------------------------------------------------------------


class RepositoryError(TideserveError):
    """The repository cannot be read."""


class ModelConfigError(RepositoryError):
    """A config.pbtxt, or what completes it, is wrong: file, line, expected and got."""


# --- of the start -------------------------------------------------------------------------


class StartError(TideserveError):
    """The server cannot start; the command line prints the message and exits with 2."""


class AddressInUseError(StartError):
    """The port is taken."""


class CertificateError(StartError):
    """A TLS file is missing or is not what it should be."""


class UnsupportedFrontError(StartError):
    """The front asked for cannot do what the settings ask."""


STATUS: Final[dict[type[TideserveError], Code]] = {
    InvalidRequestError: Code.INVALID_ARGUMENT,
    NotFoundError: Code.NOT_FOUND,
    AlreadyExistsError: Code.ALREADY_EXISTS,
    RegionLimitError: Code.RESOURCE_EXHAUSTED,
    PermissionDeniedError: Code.PERMISSION_DENIED,
    QueueFullError: Code.RESOURCE_EXHAUSTED,
    MessageTooLargeError: Code.RESOURCE_EXHAUSTED,
    ExpiredError: Code.DEADLINE_EXCEEDED,
    CancelledCallError: Code.CANCELLED,
    UnavailableError: Code.UNAVAILABLE,
    ModelFailedError: Code.INTERNAL,
    StaleCallError: Code.FAILED_PRECONDITION,
    UnauthenticatedError: Code.UNAUTHENTICATED,
    UnsupportedError: Code.UNIMPLEMENTED,
    RepositoryError: Code.INVALID_ARGUMENT,
    ModelConfigError: Code.INVALID_ARGUMENT,
}


def code_of(error: TideserveError) -> Code:
    """The status of an error, that of its nearest listed ancestor, else INTERNAL."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return STATUS[kind]
    return Code.INTERNAL
