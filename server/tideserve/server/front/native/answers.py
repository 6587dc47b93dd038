"""The answers to the calls of one connection: what the server says becomes frames.

The hot path is the answer to a unary call: it is one piece of bytes, which ends its stream.
"""

import struct
from collections.abc import Sequence
from typing import Final

from tideserve.server.front import Status
from tideserve.server.front.native.frames import Buffer
from tideserve.server.front.native.headers import (
    ANSWER_BEGINS,
    ANSWER_IS_OK,
    NO_TABLE,
    http_status_block,
    status_block,
)
from tideserve.server.front.native.outbox import Outbox
from tideserve.server.front.native.shared import Shared
from tideserve.server.front.native.stream import Stream
from tideserve.server.front.refusal import (
    nobody_reads,
    reads_too_slowly,
    stream_backlog_is_full,
)
from tideserve.v1 import http2

# What goes before and after the message of a whole answer.
_BEGIN: Final = struct.Struct(f">BHBBL{len(ANSWER_BEGINS)}s")
_OK: Final = struct.Struct(f">BHBBL{len(ANSWER_IS_OK)}s")


class Answers:
    """Owns what a client is to be sent. It ends the streams that `Calls` has begun in `streams`: one
    goes once its answer needs it no more, or its caller is gone."""

    def __init__(self, shared: Shared, streams: dict[int, Stream]) -> None:
        self._shared = shared
        self._streams = streams
        self._has_begun = False  # a header block went
        self.outbox = Outbox(shared.unsent)

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

    # --- for `Calls` ----------------------------------------------------------------------

    def refuse_stream(self, number: int) -> None:
        """There are too many: its caller may try again."""
        self.outbox.add(_reset(number, http2.REFUSED_STREAM))

    def refuse_http(self, number: int, http_status: int) -> None:
        """What began is no call of gRPC's."""
        answer = self._answer_headers(number, http_status_block(http_status), http2.END_STREAM)
        self.outbox.add(answer + _reset(number, http2.NO_ERROR))

    def drop(self, stream: Stream) -> None:
        """Its caller wants no answer any more."""
        self.outbox.forget(stream)
        self._forget(stream)

    # --- inside ---------------------------------------------------------------------------

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

    def _answer_headers(self, number: int, block: bytes, flags: int = 0) -> bytes:
        """The headers that begin an answer, and maybe all answers of the connection."""
        if not self._has_begun:
            self._has_begun = True
            block = NO_TABLE + block
        return _headers(number, block, flags)

    def _end(self, stream: Stream, trailers: bytes) -> None:
        """The server has said all; the caller may still be sending."""
        number = stream.number
        stream.answered = True
        if not stream.half_closed:
            trailers += _reset(number, http2.NO_ERROR)
        self.outbox.end(stream, trailers)
        if stream.waits:
            stream.release(self._shared.deadlines)
        else:
            self._forget(stream)

    def _forget(self, stream: Stream) -> None:
        stream.release(self._shared.deadlines)
        self._streams.pop(stream.number, None)


def _headers(number: int, block: bytes, flags: int = 0) -> bytes:
    return http2.frame(http2.HEADERS, flags | http2.END_HEADERS, number, block)


def _reset(number: int, code: int) -> bytes:
    return http2.frame(http2.RST_STREAM, 0, number, code.to_bytes(4))
