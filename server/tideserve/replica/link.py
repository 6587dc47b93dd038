"""The calls of one life, over sockets of its own: Join, Beat and Exchange.

They live as long as one Join, so that closing them ends every call of that life at once.
"""

import os
import socket
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import DecodeError

from tideserve.replica.errors import CallBrokenError, CallRefusedError, JoinRefusedError
from tideserve.replica.settings import ReplicaSettings
from tideserve.replica.status import Code
from tideserve.replica.stream import MessageStream
from tideserve.replica.unary import UnaryMethod
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import REPLICA_SERVICE
from tideserve.v1.replica_pb2 import BeatRequest, Command, JoinRequest

# Beyond the 10 s after which the frontend answers an Exchange empty.
EXCHANGE_TIMEOUT_S: Final = 20
BEAT_TIMEOUT_S: Final = 2
# A call of this life will never be answered with anything else. (RESOURCE_EXHAUSTED is a
# frontend with too much to do for the moment: messages are kept within its limit.)
_REFUSALS: Final = frozenset(
    {
        Code.FAILED_PRECONDITION,
        Code.INVALID_ARGUMENT,
        Code.NOT_FOUND,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.UNIMPLEMENTED,
    }
)
# Asking again does not help a Join that fails so.
_JOIN_REFUSALS: Final = frozenset(
    {
        Code.INVALID_ARGUMENT,
        Code.PERMISSION_DENIED,
        Code.UNAUTHENTICATED,
        Code.UNIMPLEMENTED,
    }
)


class Link:
    """One life's calls. They connect when they begin; `close` from any thread ends them all."""

    def __init__(self, settings: ReplicaSettings, address: str) -> None:
        self._settings = settings
        self.address = address
        metadata = ((TOKEN_METADATA_KEY, settings.token),)
        self._join = MessageStream(address, f"/{REPLICA_SERVICE}/Join", metadata)
        # Bytes in and out: `wire` writes and reads these messages.
        self._exchange = UnaryMethod(
            address, f"/{REPLICA_SERVICE}/Exchange", metadata, EXCHANGE_TIMEOUT_S
        )
        self._beat = UnaryMethod(address, f"/{REPLICA_SERVICE}/Beat", metadata, BEAT_TIMEOUT_S)

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
        for message in self._join.messages(request.SerializeToString()):
            yield _command(message)
        ending = self._join.ending
        if ending is None or ending.status == Code.OK:
            raise CallBrokenError("the frontend ended the life line")
        code = Code(ending.status)
        text = f"{code.name}: {ending.detail}"
        if code in _JOIN_REFUSALS:
            raise JoinRefusedError(text)
        if code is Code.FAILED_PRECONDITION:
            raise CallRefusedError(text)
        raise CallBrokenError(text)

    def take_file(self) -> int | None:
        """The memory that came with the last Welcome; the caller's to close. Any thread."""
        return self._join.take_file()

    def exchange(self, message: bytes) -> bytes:
        """One Exchange. Raises `CallBrokenError` and `CallRefusedError`."""
        return _call(self._exchange, message)

    def beat(self, request: BeatRequest) -> None:
        """One Beat. Raises `CallBrokenError` and `CallRefusedError`."""
        _call(self._beat, request.SerializeToString())

    def close(self) -> None:
        """Ends every call that is out, and all later ones."""
        self._exchange.close()
        self._beat.close()
        self._join.close()


def _call(method: UnaryMethod, message: bytes) -> bytes:
    reply = method.call(message)
    if reply.status == Code.OK:
        return reply.message
    code = Code(reply.status)
    text = f"{code.name}: {reply.detail}"
    raise CallRefusedError(text) if code in _REFUSALS else CallBrokenError(text)


def _command(message: bytes) -> Command:
    try:
        return Command.FromString(message)
    except DecodeError as error:
        raise CallBrokenError(f"expected a Command, got {len(message)} other bytes") from error
