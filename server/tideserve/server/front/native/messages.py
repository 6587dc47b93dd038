"""gRPC messages out of a stream's DATA: five bytes before each, gzip where the caller chose it."""

from collections import deque
from collections.abc import MutableSequence
from typing import Any, Final

from tideserve.server.front.native.errors import RefusedMessageError
from tideserve.server.front.native.frames import Buffer
from tideserve.server.front.native.inflation import Inflation
from tideserve.server.front.refusal import request_too_large
from tideserve.server.parts import Parts
from tideserve.v1.http2 import MESSAGE_PREFIX

_PREFIX_BYTES: Final = MESSAGE_PREFIX.size
# Parts below it are joined as they come, up to the second.
_SMALL_BYTES: Final = 4096
_JOINED_BYTES: Final = 64 * 1024
#: From this size on a message may stay in its parts: below it, a copy costs less than they do.
PARTS_BYTES: Final = 64 * 1024
# Of what waited for a message to be inflated, read in a step.
_STEP_BYTES: Final = 64 * 1024


class MessageReader:
    """One stream's messages. It holds what came of the next one: `held_bytes`.

    A compressed message takes time, so `read` does not inflate it: while `has_work`, whoever has a
    little time calls `step`. What comes behind waits for it.
    """

    __slots__ = (
        "_behind",
        "_behind_bytes",
        "_compressed",
        "_encoding",
        "_inflation",
        "_kept_bytes",
        "_limit_bytes",
        "_need_bytes",
        "_parts",
        "has_work",
    )

    def __init__(self, encoding: bytes, limit_bytes: int) -> None:
        self._encoding = encoding
        self._limit_bytes = limit_bytes
        self._parts: list[Buffer | bytearray] = []  # compiled, a list is cheaper than a deque
        self._kept_bytes = 0
        self._need_bytes = _PREFIX_BYTES
        self._compressed: bool | None = None  # None: the prefix is not here yet
        self._inflation: Inflation | None = None
        self._behind: deque[Buffer | bytearray] = deque()
        self._behind_bytes = 0
        self.has_work = False
        """`step` has something to do."""

    @property
    def held_bytes(self) -> int:
        """What came and is in no message yet, and what is inflated of the one that is."""
        held_bytes = self._kept_bytes + self._behind_bytes
        return held_bytes if self._inflation is None else held_bytes + self._inflation.held_bytes

    @property
    def is_within_a_message(self) -> bool:
        return self.held_bytes > 0 or self._compressed is not None

    def read(self, data: Buffer) -> list[bytes]:
        """The messages that `data` completes. Raises `RefusedMessageError`, at the prefix of one
        that is too large."""
        if self.has_work:
            _keep(self._behind, data)
            self._behind_bytes += len(data)
            return []
        self._kept_bytes += len(data)
        if self._kept_bytes < self._need_bytes:
            _keep(self._parts, data)
            return []
        if self._parts:
            _keep(self._parts, data)
            data = b"".join(self._parts)
            self._parts.clear()
        messages: list[bytes] = []
        at, size = 0, len(data)
        while size - at >= self._need_bytes:
            begin, at = at, at + self._need_bytes
            compressed = self._compressed
            if compressed is None:
                flag, self._need_bytes = MESSAGE_PREFIX.unpack_from(data, begin)
                if self._need_bytes > self._limit_bytes:
                    raise RefusedMessageError(
                        request_too_large(self._need_bytes, self._limit_bytes)
                    )
                self._compressed = bool(flag)
                continue
            self._compressed, self._need_bytes = None, _PREFIX_BYTES
            if compressed:
                # Not a view of what was read: it is kept while it is inflated.
                is_view = isinstance(data, memoryview)
                packed = bytes(data[begin:at]) if is_view else memoryview(data)[begin:at]
                self._inflation = Inflation(self._encoding, packed, self._limit_bytes)
                self.has_work = True
                if at < size:
                    self._behind.appendleft(data[at:])
                    self._behind_bytes += size - at
                self._kept_bytes = 0
                return messages
            messages.append(bytes(data[begin:at]))
        self._kept_bytes = size - at
        _keep(self._parts, data[at:])
        return messages

    def keep(self, data: Buffer) -> bool:
        """As `read`, for a large part that completes nothing. False: it is none."""
        size = len(data)
        if size < _SMALL_BYTES or self.has_work or self._kept_bytes + size >= self._need_bytes:
            return False
        self._kept_bytes += size
        self._parts.append(data)
        return True

    def take_parts(self, data: Buffer) -> Parts | None:
        """As `read`, for a part that completes one large message and brings nothing else. None: it
        is none."""
        need_bytes = self._need_bytes
        if self._compressed is None or self._compressed or self.has_work:
            return None
        if need_bytes < PARTS_BYTES or self._kept_bytes + len(data) != need_bytes:
            return None
        _keep(self._parts, data)
        pieces = [bytes(part) if isinstance(part, bytearray) else part for part in self._parts]
        self._parts = []
        self._kept_bytes = 0
        self._compressed, self._need_bytes = None, _PREFIX_BYTES
        return Parts(pieces, need_bytes)

    def kept(self) -> list[MutableSequence[Any]]:
        """For `parts.let_go`."""
        return [self._parts, self._behind]

    def step(self) -> list[bytes]:
        """Goes on with what waits, for some milliseconds at most; the messages that it completes.
        Raises `RefusedMessageError`."""
        inflation, behind = self._inflation, self._behind
        messages: list[bytes] = []
        if inflation is not None:
            inflation.step()
            if not inflation.is_done:
                return messages
            messages.append(inflation.take())
            self._inflation = None
        elif behind:
            part: Buffer | bytearray = behind.popleft()
            if len(part) > _STEP_BYTES:
                behind.appendleft(memoryview(part)[_STEP_BYTES:])
                part = memoryview(part)[:_STEP_BYTES]
            self._behind_bytes -= len(part)
            self.has_work = False
            messages = self.read(bytes(part))
        self.has_work = self._inflation is not None or bool(behind)
        return messages


def _keep(parts: list[Buffer | bytearray] | deque[Buffer | bytearray], data: Buffer) -> None:
    """Until more comes. Small parts go together: each on its own takes 33 bytes and a place
    beyond its size, so that what is held would be many times what is counted."""
    if len(data) >= _SMALL_BYTES:
        parts.append(data)
        return
    last = parts[-1] if parts else None
    if isinstance(last, bytearray) and len(last) < _JOINED_BYTES:
        last += data
    elif data:
        parts.append(bytearray(data))
