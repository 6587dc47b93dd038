"""The client's streams: the answers of each leave in the order of its requests."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from tideserve.server.core.request import Request
from tideserve.server.errors import QueueFullError
from tideserve.server.front import Front

# Requests of one stream without an answer; a stream whose caller sends faster is ended.
MAX_STREAM_REQUESTS: Final = 4096
# Answers of a stream that wait for one before them: two as large as may be, by default.
MAX_STREAM_KEPT_BYTES: Final = 256 * 1024 * 1024


@dataclass(slots=True, eq=False)
class StreamSlot:
    """One answer of a stream, which leaves when those before it have left."""

    payload: bytes | None = None
    request: Request | None = None


@dataclass(slots=True, eq=False)
class Stream:
    """One call. `kept_bytes`: of answers that wait for one before them."""

    deadline_s: float
    slots: deque[StreamSlot] = field(default_factory=deque)
    kept_bytes: int = 0
    half_closed: bool = False

    def place(self) -> StreamSlot:
        """Of one more answer. Raises `QueueFullError` where there is none even for an error: the
        stream is to end."""
        if len(self.slots) >= MAX_STREAM_REQUESTS:
            raise QueueFullError(
                f"expected at most {MAX_STREAM_REQUESTS} unanswered requests in a stream: "
                "read answers before sending more"
            )
        slot = StreamSlot()
        self.slots.append(slot)
        return slot

    def check_kept(self) -> None:
        """Raises `QueueFullError` where one more answer may not be kept."""
        if self.kept_bytes > MAX_STREAM_KEPT_BYTES:
            raise QueueFullError(
                f"{self.kept_bytes} bytes of answers wait for one before them in their stream, "
                f"more than {MAX_STREAM_KEPT_BYTES}: wait for answers before sending more",
                pushback_ms=100,
            )


class Streams:
    """Owns those that are open, by call."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._streams: dict[int, Stream] = {}

    @property
    def waiting(self) -> int:
        """Those that an answer is awaited in."""
        return sum(bool(stream.slots) for stream in self._streams.values())

    def begin(self, call_id: int, deadline_s: float) -> None:
        """A call came."""
        self._streams[call_id] = Stream(deadline_s)

    def of(self, call_id: int) -> Stream | None:
        """None: it is over."""
        return self._streams.get(call_id)

    def fill(self, call_id: int, slot: StreamSlot, payload: bytes) -> None:
        """An answer is made; nothing happens where its stream is over."""
        stream = self._streams.get(call_id)
        if stream is not None:
            slot.payload, slot.request = payload, None
            stream.kept_bytes += len(payload)
            self._flush(call_id, stream)

    def half_close(self, call_id: int) -> None:
        """Its caller sends no more: it ends with its last answer."""
        stream = self._streams.get(call_id)
        if stream is not None:
            stream.half_closed = True
            self._flush(call_id, stream)

    def drop(self, call_id: int) -> list[Request]:
        """Its caller is gone; the requests without an answer."""
        stream = self._streams.pop(call_id, None)
        slots = [] if stream is None else stream.slots
        requests = [slot.request for slot in slots if slot.request is not None]
        for slot in slots:
            # Each refers to the other: they, and the segments they hold, would wait for a collection.
            slot.request = None
        return requests

    def _flush(self, call_id: int, stream: Stream) -> None:
        """Sends the answers whose turn it is, and ends a stream that is through."""
        while stream.slots and (payload := stream.slots[0].payload) is not None:
            stream.slots.popleft()
            stream.kept_bytes -= len(payload)
            self._front.send(call_id, payload)
        if stream.half_closed and not stream.slots:
            del self._streams[call_id]
            self._front.end(call_id)
