"""A call's request that is not here at once."""

from collections.abc import MutableSequence
from typing import Any, Final

from tideserve.server.errors import Code
from tideserve.server.front import Status
from tideserve.server.front.native.errors import RefusedMessageError
from tideserve.server.front.native.frames import Buffer
from tideserve.server.front.native.messages import MessageReader
from tideserve.server.front.native.pace import Pace
from tideserve.server.front.native.shared import Shared
from tideserve.server.front.refusal import sends_too_slowly, too_many_bytes
from tideserve.server.parts import Parts

NOT_ONE_MESSAGE: Final = Status(
    Code.INVALID_ARGUMENT, "expected one request message in this call, got none or several"
)


class Request:
    """Owns what came of it, which counts in `Shared.held_bytes` until `release`.

    A stream's messages go on at once; of the other calls there is to be one, which is kept until
    their callers have said all. `take` and `end` raise `RefusedMessageError`.
    """

    __slots__ = ("_is_stream", "_pace", "_payload", "_reader", "_shared")

    def __init__(self, shared: Shared, encoding: bytes, *, is_stream: bool) -> None:
        self._shared = shared
        self._is_stream = is_stream
        self._reader = MessageReader(encoding, shared.max_message_bytes)
        self._pace = Pace()
        self._payload: bytes | Parts | None = None

    @property
    def has_work(self) -> bool:
        """`take(None)` has something to do."""
        return self._reader.has_work

    @property
    def held_bytes(self) -> int:
        payload = self._payload
        held_bytes = self._reader.held_bytes
        return held_bytes if payload is None else held_bytes + len(payload)

    def take(self, data: Buffer | None) -> list[bytes]:
        """Reads on, None: in what came before; a stream's messages."""
        shared, reader = self._shared, self._reader
        before_bytes = self.held_bytes
        messages: list[bytes] = []
        try:
            parts = None if data is None or self._is_stream else reader.take_parts(data)
            if parts is None:
                messages = reader.step() if data is None else reader.read(data)
            if (messages or parts is not None) and not self._is_stream:
                if self._payload is not None or len(messages) > 1:
                    raise RefusedMessageError(NOT_ONE_MESSAGE)
                # Its caller may leave it at that.
                self._payload = messages.pop() if parts is None else parts
        finally:
            shared.held_bytes += self.held_bytes - before_bytes
        if shared.held_bytes > shared.max_held_bytes:
            raise RefusedMessageError(too_many_bytes(shared.held_bytes, shared.max_held_bytes))
        if data is not None:
            self._pace.came_bytes += len(data)
        return messages

    def keep(self, data: Buffer) -> bool:
        """As `take`, for a large part within a message: most of them are. False: it is none, or
        too much is held."""
        shared = self._shared
        size = len(data)
        if shared.held_bytes + size > shared.max_held_bytes or not self._reader.keep(data):
            return False
        shared.held_bytes += size
        self._pace.came_bytes += size
        return True

    def kept(self) -> list[MutableSequence[Any]]:
        """For `parts.let_go`."""
        kept = self._reader.kept()
        if isinstance(self._payload, Parts):
            kept.append(self._payload.pieces)
        return kept

    def end(self) -> bytes | Parts | None:
        """Its caller has said all: the message, None where it is a stream or there was none."""
        if self._reader.is_within_a_message:
            why = "the request ends within a message"
            raise RefusedMessageError(Status(Code.INVALID_ARGUMENT, why))
        return self._payload

    def why_too_slow(self, now_s: float, *, is_short: bool, is_read: bool) -> Status | None:
        """Why no more of it is waited for, if so."""
        is_held = self._reader.is_within_a_message or self._payload is not None
        if not is_held or self.has_work or not (is_read or is_short):
            self._pace.rest()
            return None
        missing = self._pace.missing(now_s, is_short=is_short)
        return None if missing is None else sends_too_slowly(self._pace.came_bytes, *missing)

    def release(self) -> None:
        """It is over."""
        self._shared.held_bytes -= self.held_bytes
