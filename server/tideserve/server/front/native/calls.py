"""The calls of one connection: requests in, answers out.

The hot path is a unary call whose message comes in one piece: one `Call` is made of it, and its
answer is one piece of bytes.
"""

import struct
from collections.abc import Iterable, MutableSequence, Sequence
from typing import Any, Final

from tideserve.server.errors import Code
from tideserve.server.front import Call, Cancel, Event, HalfClose, Status, StreamMessage
from tideserve.server.front.native.errors import ProtocolError, RefusedMessageError
from tideserve.server.front.native.frames import Buffer
from tideserve.server.front.native.headers import (
    ANSWER_BEGINS,
    ANSWER_IS_OK,
    NO_TABLE,
    RequestHead,
    http_status_block,
    status_block,
)
from tideserve.server.front.native.messages import PARTS_BYTES
from tideserve.server.front.native.outbox import Outbox
from tideserve.server.front.native.request import NOT_ONE_MESSAGE, Request
from tideserve.server.front.native.shared import Shared
from tideserve.server.front.native.stream import Stream
from tideserve.server.front.refusal import (
    nobody_reads,
    reads_too_slowly,
    stream_backlog_is_full,
)
from tideserve.server.parts import OWN_AFTER_S, Parts, own
from tideserve.v1 import http2
from tideserve.v1.methods import Kind

#: Of a client's window, given back to it at a time.
WINDOW_STEP: Final = http2.MAX_WINDOW // 4
_PREFIX_BYTES: Final = http2.MESSAGE_PREFIX.size
# What goes before and after the message of a whole answer.
_BEGIN: Final = struct.Struct(f">BHBBL{len(ANSWER_BEGINS)}s")
_OK: Final = struct.Struct(f">BHBBL{len(ANSWER_IS_OK)}s")


class Calls:
    """Owns the streams of a client and what it is to be sent. Ids are `first_id` plus the stream's
    number. What comes in becomes events in `events`."""

    def __init__(self, shared: Shared, first_id: int, peer: str) -> None:
        self._shared = shared
        self._first_id = first_id
        self._peer = peer
        self._streams: dict[int, Stream] = {}
        self._last = 0
        self._has_begun = False  # a header block went
        self.outbox = Outbox(shared.unsent)
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

    # --- requests in ----------------------------------------------------------------------

    def on_headers(self, number: int, head: RequestHead, now_s: float, *, ends: bool) -> None:
        """A call begins, or its caller ends it with trailers."""
        if number <= self._last:
            stream = self._streams.get(number)
            if stream is not None and not stream.answered and ends:
                self._half_close(stream, now_s)
            return
        self._last = number
        if len(self._streams) >= self._shared.max_concurrent_streams:
            self.outbox.add(_reset(number, http2.REFUSED_STREAM))
            return
        if head.malformed is not None:
            answer = self._answer_headers(
                number, http_status_block(head.malformed), http2.END_STREAM
            )
            self.outbox.add(answer + _reset(number, http2.NO_ERROR))
            return
        kind = self._shared.methods.get(head.path)
        stream = Stream(number, self._first_id + number, head, kind or Kind.UNARY, now_s)
        self._streams[number] = stream
        if kind is None:
            self.fail(number, Status(Code.UNIMPLEMENTED, f"there is no method {head.path}"))
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
        return self.outbox.grow_stream(stream, growth)

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

    # --- answers out ----------------------------------------------------------------------

    def respond(self, number: int, payload: bytes) -> bool:
        """Answers a unary call. False: it is already gone."""
        stream = self._streams.get(number)
        if stream is None or stream.answered:
            return False
        had_begun = self._has_begun
        begin, end = self._around_answer(number)
        if self.outbox.add_whole(stream, begin, payload, end):
            self._forget(stream)
            return True
        return self._respond_later(stream, begin, payload, end, had_begun=had_begun)

    def respond_parts(self, number: int, parts: Sequence[Buffer]) -> bool:
        """As `respond`, with a large message in parts: `Outbox.keep` is to be called before they
        change."""
        stream = self._streams.get(number)
        if stream is None or stream.answered:
            return False
        had_begun = self._has_begun
        begin, end = self._around_answer(number)
        if self.outbox.add_parts(stream, begin, parts, end):
            self._forget(stream)
            return True
        return self._respond_later(stream, begin, b"".join(parts), end, had_begun=had_begun)

    def _around_answer(self, number: int) -> tuple[bytes, bytes]:
        """The headers that begin and end it."""
        if self._has_begun:
            begin = _BEGIN.pack(
                0, len(ANSWER_BEGINS), http2.HEADERS, http2.END_HEADERS, number, ANSWER_BEGINS
            )
        else:
            begin = self._answer_headers(number, ANSWER_BEGINS)
        flags = http2.END_HEADERS | http2.END_STREAM
        end = _OK.pack(0, len(ANSWER_IS_OK), http2.HEADERS, flags, number, ANSWER_IS_OK)
        return begin, end

    def _respond_later(
        self, stream: Stream, begin: bytes, payload: bytes, end: bytes, *, had_begun: bool
    ) -> bool:
        """Answers as its client's windows let it."""
        shared = self._shared
        if shared.unsent.bytes > shared.max_unsent_bytes:
            self._has_begun = had_begun  # what begins the answer does not go
            status = nobody_reads(shared.unsent.bytes, shared.max_unsent_bytes)
            return self.fail(stream.number, status)
        self.outbox.add(begin)
        self.outbox.add_message(stream, payload)
        self._end(stream, end)
        return True

    def send(self, number: int, payload: bytes) -> bool:
        """Sends one message on a streaming call. False: it is already gone, or ends here because
        its caller does not read."""
        stream = self._streams.get(number)
        if stream is None or stream.answered:
            return False
        messages, waiting_bytes = stream.waiting_messages, stream.waiting_bytes
        if stream_backlog_is_full(messages, waiting_bytes, len(payload)):
            refusal = reads_too_slowly(messages, waiting_bytes)
            self.outbox.cut(stream)
            self.fail(number, refusal)
            return False
        begin = b"" if stream.opened else self._answer_headers(number, ANSWER_BEGINS)
        stream.opened = True
        if not self.outbox.add_whole(stream, begin, payload, b""):
            if begin:
                self.outbox.add(begin)
            self.outbox.add_message(stream, payload)
        return True

    def fail(self, number: int, status: Status) -> bool:
        """Ends any call with a status. False: it is already gone."""
        stream = self._streams.get(number)
        if stream is None or stream.answered:
            return False
        block = status_block(status, begins=not stream.opened)
        self._end(stream, self._answer_headers(number, block, http2.END_STREAM))
        return True

    def end(self, number: int) -> None:
        """Ends a streaming call with OK, after what was sent."""
        stream = self._streams.get(number)
        if stream is None or stream.answered:
            return
        begin = b"" if stream.opened else self._answer_headers(number, ANSWER_BEGINS)
        self._end(stream, begin + _headers(number, ANSWER_IS_OK, http2.END_STREAM))

    def forget_ended(self) -> None:
        """Streams whose trailers went are no more."""
        ended = self.outbox.ended
        while ended:
            self._streams.pop(ended.pop(), None)

    # --- inside ---------------------------------------------------------------------------

    def _answer_headers(self, number: int, block: bytes, flags: int = 0) -> bytes:
        """The headers that begin an answer, and maybe all answers of the connection."""
        if not self._has_begun:
            self._has_begun = True
            block = NO_TABLE + block
        return _headers(number, block, flags)

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
            self.outbox.add(http2.window_update(stream.number, stream.taken_bytes))
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
            self._release(stream)
            if isinstance(payload, Parts):
                self._begin(stream, b"", now_s, payload)
            else:
                self._begin(stream, payload, now_s)

    def _refuse(self, stream: Stream, status: Status) -> None:
        """Ends a call for what its caller sent. Who knows of the call is told that it is over."""
        if stream.begun:
            self.events.append(Cancel(stream.call_id))
        self.fail(stream.number, status)

    def _cancel(self, stream: Stream) -> None:
        if stream.begun and not stream.answered:
            self.events.append(Cancel(stream.call_id))
        self.outbox.forget(stream)
        self._forget(stream)

    def _end(self, stream: Stream, trailers: bytes) -> None:
        """The server has said all; the caller may still be sending."""
        number = stream.number
        stream.answered = True
        if not stream.half_closed:
            trailers += _reset(number, http2.NO_ERROR)
        self.outbox.end(stream, trailers)
        if stream.waits:
            self._release(stream)
        else:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        self._release(stream)
        self._streams.pop(stream.number, None)

    def _release(self, stream: Stream) -> None:
        """What a call has of the front's bounds."""
        if stream.request is not None:
            stream.request.release()
            stream.request = None
        if stream.head.timeout_s is not None:
            self._shared.deadlines.drop(stream.call_id)


def _headers(number: int, block: bytes, flags: int = 0) -> bytes:
    return http2.frame(http2.HEADERS, flags | http2.END_HEADERS, number, block)


def _reset(number: int, code: int) -> bytes:
    return http2.frame(http2.RST_STREAM, 0, number, code.to_bytes(4))
