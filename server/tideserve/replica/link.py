"""The calls of one life: Join and Beat over one channel of its own, Exchange over sockets.

A channel lives as long as one Join, so that closing it ends every call of that life at
once and a new life does not wait out an old connection's backoff.
"""

import os
import socket
from collections.abc import Iterator
from typing import Final

import grpc

from tideserve.replica.errors import CallBrokenError, CallRefusedError, JoinRefusedError
from tideserve.replica.settings import ReplicaSettings
from tideserve.replica.unary import UnaryMethod
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import REPLICA_SERVICE
from tideserve.v1.replica_pb2 import BeatRequest, Command, JoinRequest

# Beyond the 10 s after which the frontend answers an Exchange empty.
EXCHANGE_TIMEOUT_S: Final = 20
BEAT_TIMEOUT_S: Final = 2.0
_CHANNEL_OPTIONS: Final = (
    # The frontend bounds messages (Welcome.max_message_bytes); its leases must pass.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # An Exchange is repeated here, by its number, and not by gRPC.
    ("grpc.enable_retries", 0),
    # Not to share connections, and their backoff, with another life's channel.
    ("grpc.use_local_subchannel_pool", 1),
    # The address is a frontend's: a proxy of the environment is not meant for it.
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
)
# A call of this life will never be answered with anything else. (RESOURCE_EXHAUSTED is a
# frontend with too much to do for the moment: messages are kept within its limit.)
_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)
# Asking again does not help a Join that fails so.
_JOIN_REFUSALS: Final = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.UNAUTHENTICATED,
        grpc.StatusCode.UNIMPLEMENTED,
    }
)

_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}


class Link:
    """One life's channel. `open` before the calls; `close` from any thread ends them all."""

    def __init__(self, settings: ReplicaSettings) -> None:
        self._settings = settings
        self._metadata = ((TOKEN_METADATA_KEY, settings.token),)
        self._closed = False

    def open(self) -> None:
        """Connects with the first call."""
        channel = grpc.insecure_channel(self._settings.address, options=_CHANNEL_OPTIONS)
        self._channel = channel
        self._join = channel.unary_stream(
            f"/{REPLICA_SERVICE}/Join",
            request_serializer=JoinRequest.SerializeToString,
            response_deserializer=Command.FromString,
        )
        # Bytes in and out: `wire` writes and reads these messages.
        self._exchange = UnaryMethod(
            self._settings.address,
            f"/{REPLICA_SERVICE}/Exchange",
            self._metadata,
            EXCHANGE_TIMEOUT_S,
        )
        self._beat: grpc.UnaryUnaryMultiCallable[BeatRequest, bytes] = channel.unary_unary(
            f"/{REPLICA_SERVICE}/Beat", request_serializer=BeatRequest.SerializeToString
        )

    def commands(self, launch_s: float) -> Iterator[Command]:
        """The life line: yields commands until it ends.

        Raises `CallBrokenError` where it breaks, `CallRefusedError` where the frontend ends
        it as over, `JoinRefusedError` where asking again is of no use.
        """
        settings = self._settings
        request = JoinRequest(
            replica_id=settings.replica_id,
            pid=os.getpid(),
            host=socket.gethostname(),
            device=settings.device_name or settings.device,
            launch_s=launch_s,
        )
        try:
            yield from self._join(request, metadata=self._metadata)
        except (grpc.RpcError, ValueError) as error:
            if self._closed:
                raise CallBrokenError("the life is closed") from error
            code, detail = _status(error)
            text = f"{code.name}: {detail}"
            if code in _JOIN_REFUSALS:
                raise JoinRefusedError(text) from error
            if code is grpc.StatusCode.FAILED_PRECONDITION:
                raise CallRefusedError(text) from error
            raise CallBrokenError(text) from error
        raise CallBrokenError("the frontend ended the life line")

    def exchange(self, message: bytes) -> bytes:
        """One Exchange. Raises `CallBrokenError` and `CallRefusedError`."""
        reply = self._exchange.call(message)
        if reply.status == 0:
            return reply.message
        code = _CODES.get(reply.status, grpc.StatusCode.UNKNOWN)
        raise _error_of(code, reply.detail)

    def beat(self, request: BeatRequest) -> None:
        """One Beat. Raises `CallBrokenError` and `CallRefusedError`."""
        try:
            self._beat(request, timeout=BEAT_TIMEOUT_S, metadata=self._metadata)
        except (grpc.RpcError, ValueError) as error:
            raise self._call_error(error) from error

    def close(self) -> None:
        """Ends every call that is out."""
        self._closed = True
        self._exchange.close()
        self._channel.close()

    def _call_error(self, error: Exception) -> CallBrokenError | CallRefusedError:
        if self._closed:
            # grpcio raises ValueError for a call that begins on a closed channel.
            return CallBrokenError("the life is closed")
        return _error_of(*_status(error))


def _error_of(code: grpc.StatusCode, detail: str) -> CallBrokenError | CallRefusedError:
    text = f"{code.name}: {detail}"
    return CallRefusedError(text) if code in _REFUSALS else CallBrokenError(text)


def _status(error: Exception) -> tuple[grpc.StatusCode, str]:
    if not isinstance(error, grpc.Call):
        raise error
    return error.code(), error.details() or ""
