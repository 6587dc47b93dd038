"""What a connection has to send, as far as its client lets it (RFC 9113, section 5.2).

Header blocks go at once. Messages go within two windows, the stream's and the connection's, and
not further ahead of the socket than `AHEAD_BYTES`; the rest of a stream waits, its trailers behind
it.
"""

import struct
from collections import deque
from collections.abc import Sequence
from typing import Final

from tideserve.v1 import http2

Buffer = bytes | memoryview

#: Taken from the streams before the socket takes it: what one turn can send, and more.
AHEAD_BYTES: Final = 4 * 1024 * 1024
_JOINED_BYTES: Final = 4096
_PREFIX_BYTES: Final = http2.MESSAGE_PREFIX.size
# The head of a message's only frame, and gRPC's own.
_WHOLE: Final = struct.Struct(">BHBBLBL")


class Outgoing:
    """The outbox's side of a stream: the messages that wait, the trailers that end it, and by
    how much its window differs from the connection's first window of a stream."""

    __slots__ = ("messages", "number", "rest", "trailers", "waiting_bytes", "waits", "window")

    def __init__(self, number: int) -> None:
        self.number = number
        self.window = 0
        self.waits = False
        """It has not sent all its messages."""
        self.messages: deque[bytes] | None = None
        """Those that wait; None where none ever did, as in most calls."""
        self.rest: memoryview | None = None
        """Of the message that has begun to go."""
        self.waiting_bytes = 0
        self.trailers: bytes | None = None

    @property
    def waiting_messages(self) -> int:
        """That have not begun to go."""
        return 0 if self.messages is None else len(self.messages)


class Unsent:
    """`bytes` of messages that all outboxes of a front keep back for their clients."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class Outbox:
    """Owns a connection's pieces for its socket, and both windows.

    `take` gives what is to be sent next, `on_sent` is told how much of it went.
    """

    def __init__(self, unsent: Unsent) -> None:
        self._unsent = unsent
        self._pieces: list[Buffer] = []
        self.waiting_bytes = 0
        self._window = http2.DEFAULT_WINDOW
        self._first_window = http2.DEFAULT_WINDOW
        self._max_frame = http2.DEFAULT_FRAME
        self._has_grown = False
        self._held: dict[int, Outgoing] = {}
        self.ended: list[int] = []
        """Streams whose trailers went after a wait, for whoever keeps streams to clear."""

    def add(self, piece: bytes) -> None:
        """Queues frames that no window counts. Small ones go together: a client that does not read
        has us answer a million pings before we stop to read."""
        pieces = self._pieces
        last = pieces[-1] if pieces else None
        if isinstance(last, bytes) and len(last) + len(piece) <= _JOINED_BYTES:
            pieces[-1] = last + piece
        else:
            pieces.append(piece)
        self.waiting_bytes += len(piece)

    def add_whole(self, outgoing: Outgoing, head: bytes, message: bytes, tail: bytes) -> bool:
        """Queues `head`, a message in one frame, and `tail` where all of it may go now; else it
        queues nothing and says False. The hot path."""
        size = len(message) + _PREFIX_BYTES
        if (
            size > self._max_frame
            or size > self._window
            or size > self._first_window + outgoing.window
            or outgoing.waits
            or self.waiting_bytes > AHEAD_BYTES
        ):
            return False
        self._window -= size
        outgoing.window -= size
        prefix = _WHOLE.pack(0, size, http2.DATA, 0, outgoing.number, 0, size - _PREFIX_BYTES)
        piece = b"".join((head, prefix, message, tail))
        self._pieces.append(piece)
        self.waiting_bytes += len(piece)
        return True

    def add_parts(
        self, outgoing: Outgoing, head: bytes, parts: Sequence[Buffer], tail: bytes
    ) -> bool:
        """As `add_whole`, for a message that lies in parts and takes as many frames as it does.
        What is queued are views of the parts: see `keep`."""
        size = sum(map(len, parts)) + _PREFIX_BYTES
        if (
            size > self._window
            or size > self._first_window + outgoing.window
            or size > AHEAD_BYTES - self.waiting_bytes
            or outgoing.waits
        ):
            return False
        self._window -= size
        outgoing.window -= size
        max_frame = self._max_frame
        pieces = self._pieces
        pieces.append(head)
        queued_bytes = len(head) + size + len(tail)
        full = http2.HEAD.pack(max_frame >> 16, max_frame & 0xFFFF, http2.DATA, 0, outgoing.number)
        room = 0  # of the frame that was begun
        prefix: Buffer = http2.MESSAGE_PREFIX.pack(0, size - _PREFIX_BYTES)
        for part in (prefix, *parts):
            view = memoryview(part)
            at, end = 0, len(part)
            while at < end:
                if not room:
                    room = min(max_frame, size)
                    size -= room
                    pieces.append(
                        full
                        if room == max_frame
                        else http2.HEAD.pack(0, room, http2.DATA, 0, outgoing.number)
                    )
                    queued_bytes += http2.HEAD.size
                stop = min(at + room, end)
                pieces.append(view[at:stop])
                room -= stop - at
                at = stop
        pieces.append(tail)
        self.waiting_bytes += queued_bytes
        return True

    def keep(self) -> None:
        """What is queued stays as it is, whatever becomes of the parts: copies those that are not
        bytes of Python's own, and what holds far more than itself. A slow client's part of a batch
        would keep the message that brought all of it."""
        pieces = self._pieces
        waiting: dict[int, int] = {}  # bytes by the object that holds them
        for piece in pieces:
            if isinstance(piece, memoryview):
                holder = id(piece.obj)
                waiting[holder] = waiting.get(holder, 0) + len(piece)
        if not waiting:
            return
        for at, piece in enumerate(pieces):
            if isinstance(piece, memoryview):
                whole = piece.obj
                if not isinstance(whole, bytes) or len(whole) > 2 * waiting[id(whole)]:
                    pieces[at] = bytes(piece)

    def add_message(self, outgoing: Outgoing, message: bytes) -> None:
        """Queues a message behind those of its stream."""
        if outgoing.messages is None:
            outgoing.messages = deque()
        outgoing.messages.append(message)
        outgoing.waiting_bytes += len(message)
        self._unsent.bytes += len(message)
        outgoing.waits = True
        self._held[outgoing.number] = outgoing
        self._release(outgoing)

    def end(self, outgoing: Outgoing, trailers: bytes) -> None:
        """Queues what ends a stream behind its messages."""
        if outgoing.waits:
            outgoing.trailers = trailers
        else:
            self.add(trailers)

    def cut(self, outgoing: Outgoing) -> None:
        """Drops a stream's messages, but the one that has begun to go."""
        outgoing.messages = None
        outgoing.waits = outgoing.rest is not None
        self._unsent.bytes -= outgoing.waiting_bytes
        outgoing.waiting_bytes = 0 if outgoing.rest is None else len(outgoing.rest)
        self._unsent.bytes += outgoing.waiting_bytes
        if not outgoing.waits:
            self._held.pop(outgoing.number, None)

    def forget(self, outgoing: Outgoing) -> None:
        """The stream is no more."""
        if outgoing.waits:
            outgoing.rest = None
            self.cut(outgoing)
        outgoing.trailers = None

    # --- what the client lets us send -----------------------------------------------------

    def grow(self, growth: int) -> bool:
        """The connection's window grew: see `release`. False: by more than a window may have."""
        self._window += growth
        self._has_grown = True
        return self._window <= http2.MAX_WINDOW

    def grow_stream(self, outgoing: Outgoing, growth: int) -> bool:
        """A stream's window grew. False: by more than a window may have."""
        outgoing.window += growth
        if outgoing.waits:
            self._release(outgoing)
        return self._first_window + outgoing.window <= http2.MAX_WINDOW

    def set_first_window(self, size_bytes: int) -> None:
        """The client's setting for the window of each stream, those that exist included: see
        `release`."""
        self._first_window = size_bytes
        self._has_grown = True

    def release(self) -> None:
        """Moves on what may go since `grow` and `set_first_window`. Once a read, not once a frame:
        it looks at each stream that waits, and a read has thousands of frames."""
        if self._has_grown:
            self._has_grown = False
            self._release_all()

    def set_max_frame(self, size_bytes: int) -> None:
        """The client's setting for the largest frame it takes."""
        # Larger ones save nothing worth a third shape of `_WHOLE`.
        self._max_frame = min(size_bytes, 0xFFFF)

    # --- to the socket --------------------------------------------------------------------

    def take(self, max_pieces: int) -> list[Buffer]:
        """What is to be sent next."""
        pieces = self._pieces
        return pieces if len(pieces) <= max_pieces else pieces[:max_pieces]

    def on_sent(self, size_bytes: int) -> None:
        """So many of the first bytes went."""
        pieces = self._pieces
        self.waiting_bytes -= size_bytes
        if not self.waiting_bytes:
            pieces.clear()
        else:
            whole = 0
            for piece in pieces:
                if size_bytes < len(piece):
                    break
                size_bytes -= len(piece)
                whole += 1
            del pieces[:whole]
            if size_bytes:
                pieces[0] = memoryview(pieces[0])[size_bytes:]
        if self._held and self.waiting_bytes < AHEAD_BYTES // 2:
            self._release_all()

    def _release_all(self) -> None:
        for outgoing in list(self._held.values()):
            if self._window <= 0 or self.waiting_bytes >= AHEAD_BYTES:
                return
            self._release(outgoing)

    def _release(self, outgoing: Outgoing) -> None:
        """Moves on what may go of a stream; its trailers when nothing is left."""
        while outgoing.waits:
            room = min(
                self._max_frame,
                self._window,
                self._first_window + outgoing.window,
                AHEAD_BYTES - self.waiting_bytes,
            )
            rest = outgoing.rest
            # A client whose whole window is smaller than a prefix gets it in parts.
            is_tiny = self._first_window < _PREFIX_BYTES
            if room < (_PREFIX_BYTES if rest is None and not is_tiny else 1):
                return
            prefix = b""
            if rest is None:
                assert outgoing.messages, "it waits"
                rest = memoryview(outgoing.messages.popleft())
                prefix = http2.MESSAGE_PREFIX.pack(0, len(rest))
                if room < _PREFIX_BYTES:
                    rest, prefix = memoryview(prefix + rest), b""
                    outgoing.waiting_bytes += _PREFIX_BYTES
                    self._unsent.bytes += _PREFIX_BYTES
            part = rest[: room - len(prefix)]
            outgoing.rest = rest[len(part) :] if len(part) < len(rest) else None
            size = len(prefix) + len(part)
            head = http2.HEAD.pack(size >> 16, size & 0xFFFF, http2.DATA, 0, outgoing.number)
            self._pieces.append(head + prefix)
            self._pieces.append(part)
            self._window -= size
            outgoing.window -= size
            outgoing.waiting_bytes -= len(part)
            self._unsent.bytes -= len(part)
            outgoing.waits = outgoing.rest is not None or bool(outgoing.messages)
            self.waiting_bytes += http2.HEAD.size + size
        del self._held[outgoing.number]
        if outgoing.trailers is not None:
            self.add(outgoing.trailers)
            outgoing.trailers = None
            self.ended.append(outgoing.number)
