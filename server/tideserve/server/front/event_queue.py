"""Events on their way from the grpcio front's loop to the dispatcher's thread."""

import asyncio
from queue import Empty, SimpleQueue
from typing import Final

from tideserve.server.front import Call, Event, StreamMessage

#: Past either bound new calls are refused and bidirectional streams are not read; a single
#: event always fits.
MAX_WAITING_EVENTS: Final = 16_384
MAX_WAITING_BYTES: Final = 512 * 1024 * 1024
_MAX_WAIT_S: Final = 3600.0


class EventQueue:
    """One loop puts, one thread takes. Made on any thread, `open`ed on the loop's."""

    def __init__(self) -> None:
        self._events: SimpleQueue[Event | None] = SimpleQueue()  # None: wake
        self._wake_waits = False
        self._bytes_in = 0  # put counts in, take counts out
        self._bytes_out = 0
        self._readers_wait = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._room = asyncio.Event()

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop on which readers wait for room."""
        self._loop = loop

    @property
    def waiting(self) -> tuple[int, int]:
        """Events and bytes that wait."""
        return self._events.qsize(), self._bytes_in - self._bytes_out

    @property
    def is_full(self) -> bool:
        events, size_bytes = self.waiting
        return events >= MAX_WAITING_EVENTS or size_bytes >= MAX_WAITING_BYTES

    def put(self, event: Event) -> None:
        if isinstance(event, Call | StreamMessage):
            self._bytes_in += len(event.payload)
        self._events.put(event)

    def wake(self) -> None:
        """Makes the `take` that waits now, or the next one, return. Any thread."""
        if not self._wake_waits:
            self._wake_waits = True
            self._events.put(None)

    def take(self, max_events: int, timeout_s: float) -> list[Event]:
        """Waits for events, at most `timeout_s`; empty when none came or `wake` was called."""
        queue = self._events
        events: list[Event] = []
        try:
            if timeout_s > 0:
                event = queue.get(timeout=min(timeout_s, _MAX_WAIT_S))
            else:
                event = queue.get_nowait()
        except Empty:
            return events
        for left in range(min(queue.qsize(), max_events - 1), -1, -1):
            if event is None:
                self._wake_waits = False
            else:
                events.append(event)
                if isinstance(event, Call | StreamMessage):
                    self._bytes_out += len(event.payload)
            if left:
                event = queue.get_nowait()
        if self._readers_wait and not self.is_full:
            self._readers_wait = False
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._room.set)
        return events

    async def wait_for_room(self) -> None:
        """Returns once the queue is within its bounds."""
        while self.is_full:
            self._room.clear()
            self._readers_wait = True
            if self.is_full:  # or take made room before it could see the flag
                await self._room.wait()
