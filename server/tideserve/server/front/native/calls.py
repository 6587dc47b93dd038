"""The calls of one connection: what comes of them becomes events.

The hot path is a unary call whose message comes in one piece: one `Call` is made of it.
"""

from collections.abc import Iterable, MutableSequence
from typing import Any, Final

from tideserve.server.errors import Code
from tideserve.server.front import Call, Cancel, Event, HalfClose, Status, StreamMessage
from tideserve.server.front.native.answers import Answers
from tideserve.server.front.native.errors import ProtocolError, RefusedMessageError
from tideserve.server.front.native.frames import Buffer
from tideserve.server.front.native.headers import RequestHead
from tideserve.server.front.native.messages import PARTS_BYTES
from tideserve.server.front.native.request import NOT_ONE_MESSAGE, Request
from tideserve.server.front.native.shared import Shared
from tideserve.server.front.native.stream import Stream
from tideserve.server.parts import OWN_AFTER_S, Parts, own
from tideserve.v1 import http2
from tideserve.v1.methods import Kind

#: Of a client's window, given back to it at a time.
WINDOW_STEP: Final = http2.MAX_WINDOW // 4
_PREFIX_BYTES: Final = http2.MESSAGE_PREFIX.size


class Calls:
    """Owns the streams of a client, which `answers` ends. Ids are `first_id` plus the stream's
    number. What comes in becomes events in `events`."""

    def __init__(self, shared: Shared, first_id: int, peer: str) -> None:
        self._shared = shared
        self._first_id = first_id
        self._peer = peer
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self.answers = Answers(shared, self._streams)
        self._outbox = self.answers.outbox
        self.events: list[Event] = []
        self.kept_bytes = 0
        """Of requests that are not whole yet, in views, since whoever reads this set it to 0; all
        but their first parts."""

    @property
    def last(self) -> int:
        """The number of the latest stream."""
        return self._last

    @property
    def open(self) -> list[int]:
        """Numbers of calls begun and neither answered nor cancelled."""
        return [n for n, s in self._streams.items() if s.begun and not s.answered]

    def on_headers(self, number: int, head: RequestHead, now_s: float, *, ends: bool) -> None:
        """A call begins, or its caller ends it with trailers."""
        if number <= self._last:
            stream = self._streams.get(number)
            if stream is not None and not stream.answered and ends:
                self._half_close(stream, now_s)
            return
        self._last = number
        if len(self._streams) >= self._shared.max_concurrent_streams:
            self.answers.refuse_stream(number)
            return
        if head.malformed is not None:
            self.answers.refuse_http(number, head.malformed)
            return
        kind = self._shared.methods.get(head.path)
        stream = Stream(number, self._first_id + number, head, kind or Kind.UNARY, now_s)
        self._streams[number] = stream
        if kind is None:
            self.answers.fail(number, Status(Code.UNIMPLEMENTED, f"there is no method {head.path}"))
            return
        if kind is Kind.BIDI:
            self._begin(stream, b"", now_s)
        if ends:
            self._half_close(stream, now_s)

    def on_data(self, number: int, data: Buffer, now_s: float, *, ends: bool) -> None:
        """Some of a call's messages came."""
        stream = self._streams.get(number)
        if stream is None or stream.answered or stream.half_closed:
            if number > self._last or not number:
                raise ProtocolError(
                    http2.PROTOCOL_ERROR, f"expected DATA of an open stream, got {number}"
                )
            return  # of a call that is over: it was on its way
        if not ends and stream.request is not None and stream.request.keep(data):
            came_bytes = len(data)
            if not isinstance(data, bytes):  # compiled, `memoryview` would be looked up
                self.kept_bytes += came_bytes
            self._give_window(stream, came_bytes)
            return
        size = len(data) - _PREFIX_BYTES
        if (
            ends
            and stream.request is None
            and stream.kind is not Kind.BIDI
            and 0 <= size <= self._shared.max_message_bytes
            and http2.MESSAGE_PREFIX.unpack_from(data) == (0, size)
        ):
            stream.half_closed = True
            if size >= PARTS_BYTES and isinstance(data, memoryview):
                self._begin(stream, b"", now_s, Parts([data[_PREFIX_BYTES:]], size))
            else:
                self._begin(stream, bytes(data[_PREFIX_BYTES:]), now_s)
            return
        self._take_parts(stream, data)
        if ends and not stream.answered:
            self._half_close(stream, now_s)

    def kept(self, numbers: Iterable[int]) -> list[MutableSequence[Any]]:
        """What these streams, and the calls in `events`, have of what was read, for
        `parts.let_go`."""
        kept: list[MutableSequence[Any]] = []
        for number in numbers:
            stream = self._streams.get(number)
            if stream is not None and stream.request is not None:
                kept += stream.request.kept()
        for event in self.events:
            if isinstance(event, Call) and event.parts is not None:
                kept.append(event.parts.pieces)
        return kept

    def on_padding(self, number: int, size_bytes: int) -> None:
        """So many bytes came around a stream's DATA: they count as if they were DATA."""
        stream = self._streams.get(number)
        if stream is not None and not stream.half_closed:
            self._give_window(stream, size_bytes)

    def work(self, number: int, now_s: float) -> None:
        """Goes on with a call in `Shared.at_work`, for some milliseconds at most."""
        stream = self._streams.get(number)
        request = None if stream is None else stream.request
        if stream is None or request is None or not request.has_work:
            return  # it was ended
        self._take_parts(stream, None)
        self._end_if_read(stream, now_s)

    def on_reset(self, number: int) -> None:
        """The caller gave up."""
        stream = self._streams.get(number)
        if stream is not None:
            self._cancel(stream)

    def on_window(self, number: int, growth: int) -> bool:
        """The caller of a stream takes so many bytes more. False: that is no window any more."""
        stream = self._streams.get(number)
        if stream is None:
            return True
        return self._outbox.grow_stream(stream, growth)

    def refuse_slow(self, now_s: float, *, is_short: bool, is_read: bool) -> None:
        """Ends the calls whose requests have begun and come too slowly (`pace`). `is_short`: others
        need what is held; without `is_read` it is not their callers' fault."""
        for stream in list(self._streams.values()):
            request = stream.request
            if request is not None:
                why = request.why_too_slow(now_s, is_short=is_short, is_read=is_read)
                if why is not None:
                    self._refuse(stream, why)

    def let_go_of_old(self, now_s: float, most_bytes: int) -> int:
        """Requests that have been coming for a while keep little more than what came of them; how many
        bytes were copied for it. It stops after `most_bytes`: the others are left for later."""
        copied_bytes = 0
        for stream in self._streams.values():
            if copied_bytes >= most_bytes:
                break
            if stream.request is not None and now_s - stream.began_s >= OWN_AFTER_S:
                copied_bytes += sum([own(pieces) for pieces in stream.request.kept()])
        return copied_bytes

    def on_lost(self) -> None:
        """The client is gone."""
        for stream in list(self._streams.values()):
            self._cancel(stream)

    # --- inside ---------------------------------------------------------------------------

    def _begin(
        self, stream: Stream, payload: bytes, now_s: float, parts: Parts | None = None
    ) -> None:
        stream.begun = True
        head = stream.head
        left_s = head.timeout_s
        if left_s is not None:
            # It counts from the call's headers: a large request takes its time.
            left_s = max(0.0, left_s - (now_s - stream.began_s))
            self._shared.deadlines.add(stream.call_id, now_s + left_s)
        # As Call(...) does, in half its time.
        call = (stream.call_id, head.path, payload, head.metadata, self._peer, left_s, parts)
        self.events.append(tuple.__new__(Call, call))

    def _take_parts(self, stream: Stream, data: Buffer | None) -> None:
        """Reads on in a request; None: in what came of it before."""
        request = stream.request
        if request is None:
            is_stream = stream.kind is Kind.BIDI
            request = Request(self._shared, stream.head.encoding, is_stream=is_stream)
            stream.request = request
        had_work = request.has_work
        try:
            messages = request.take(data)
        except RefusedMessageError as refused:
            self._refuse(stream, refused.status)
            return
        self.events += [StreamMessage(stream.call_id, message) for message in messages]
        if request.has_work and (data is None or not had_work):
            self._shared.at_work.append(stream.call_id)
        if data is not None:
            self._give_window(stream, len(data))

    def _give_window(self, stream: Stream, size_bytes: int) -> None:
        """So many bytes of the stream were taken: its caller may send as many more."""
        stream.taken_bytes += size_bytes
        if stream.taken_bytes > WINDOW_STEP:
            self._outbox.add(http2.window_update(stream.number, stream.taken_bytes))
            stream.taken_bytes = 0

    def _half_close(self, stream: Stream, now_s: float) -> None:
        if stream.half_closed:
            return
        stream.half_closed = True
        if stream.request is None or not stream.request.has_work:
            self._end_request(stream, now_s)

    def _end_if_read(self, stream: Stream, now_s: float) -> None:
        """Looks, after a step, whether it was the last one."""
        request = stream.request  # None where the call was refused
        if stream.half_closed and request is not None and not request.has_work:
            self._end_request(stream, now_s)

    def _end_request(self, stream: Stream, now_s: float) -> None:
        """All of it was read."""
        try:
            payload = None if stream.request is None else stream.request.end()
        except RefusedMessageError as refused:
            self._refuse(stream, refused.status)
            return
        if stream.kind is Kind.BIDI:
            self.events.append(HalfClose(stream.call_id))
        elif payload is None:
            self._refuse(stream, NOT_ONE_MESSAGE)
        else:
            stream.release(self._shared.deadlines)
            if isinstance(payload, Parts):
                self._begin(stream, b"", now_s, payload)
            else:
                self._begin(stream, payload, now_s)

    def _refuse(self, stream: Stream, status: Status) -> None:
        """Ends a call for what its caller sent. Who knows of the call is told that it is over."""
        if stream.begun:
            self.events.append(Cancel(stream.call_id))
        self.answers.fail(stream.number, status)

    def _cancel(self, stream: Stream) -> None:
        if stream.begun and not stream.answered:
            self.events.append(Cancel(stream.call_id))
        self.answers.drop(stream)
