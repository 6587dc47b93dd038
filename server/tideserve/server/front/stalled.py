"""Streams of the native front whose answers the Rust server has no room for.

Its queue of a stream holds one or two messages, so a short burst already fills it. The rest
waits here, bounded, and is offered again at each `recv`.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

from pygrpc_native import STREAM_CLOSED, STREAM_FULL

from tideserve.server.front import Status
from tideserve.server.front.refusal import stream_backlog_is_full

#: The Rust server's word on a message: STREAM_SENT, STREAM_FULL or STREAM_CLOSED.
TrySend = Callable[[int, bytes], int]
#: Ends a call: with a status, or with OK where it is None.
Finish = Callable[[int, Status | None], None]

_LOOK_S: Final = 0.001
_LOOK_MAX_S: Final = 0.02  # while a caller stays behind


class _Backlog:
    __slots__ = ("bytes", "ended", "messages", "status")

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.bytes = 0
        self.ended = False
        self.status: Status | None = None


class StalledStreams:
    """Owns the backlogs, one a stalled call."""

    def __init__(self) -> None:
        self._backlogs: dict[int, _Backlog] = {}
        self._look_s = _LOOK_S

    def __contains__(self, call_id: int) -> bool:
        return call_id in self._backlogs

    def __len__(self) -> int:
        return len(self._backlogs)

    def add(self, call_id: int, payload: bytes) -> bool:
        """Keeps a message for later; False when that would pass a bound."""
        backlog = self._backlogs.get(call_id)
        if backlog is None:
            backlog = self._backlogs[call_id] = _Backlog()
            self._look_s = _LOOK_S
        elif stream_backlog_is_full(len(backlog.messages), backlog.bytes, len(payload)):
            return False
        backlog.messages.append(payload)
        backlog.bytes += len(payload)
        return True

    def waiting(self, call_id: int) -> tuple[int, int]:
        """Messages and bytes that wait."""
        backlog = self._backlogs[call_id]
        return len(backlog.messages), backlog.bytes

    def end(self, call_id: int, status: Status | None) -> None:
        """Ends the stream after what waits; None is OK."""
        backlog = self._backlogs[call_id]
        backlog.ended, backlog.status = True, status

    def drop(self, call_id: int) -> None:
        """Forgets a stream, if it is stalled."""
        self._backlogs.pop(call_id, None)

    def clear(self) -> None:
        self._backlogs.clear()

    def flush(self, try_send: TrySend, finish: Finish) -> float:
        """Gives each stream what it takes now; seconds until the next look."""
        moved = False
        for call_id, backlog in list(self._backlogs.items()):
            messages = backlog.messages
            while messages:
                sent = try_send(call_id, messages[0])
                if sent == STREAM_FULL:
                    break
                moved = True
                if sent == STREAM_CLOSED:
                    messages.clear()
                else:
                    backlog.bytes -= len(messages.popleft())
            if not messages:
                del self._backlogs[call_id]
                if backlog.ended:
                    finish(call_id, backlog.status)
        self._look_s = _LOOK_S if moved else min(self._look_s * 2, _LOOK_MAX_S)
        return self._look_s
