"""Flow control: nothing goes that the client did not let go, and in the end everything does."""

import sys
from collections import defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tideserve.server.front.native.frames import FrameReader
from tideserve.server.front.native.outbox import AHEAD_BYTES, Outbox, Outgoing, Unsent
from tideserve.v1 import http2

HEAD, TAIL = http2.frame(http2.PING, 0, 0, b"head...."), http2.frame(http2.PING, 0, 0, b"tail....")
numbers = st.integers(0, 3).map(lambda at: 2 * at + 1)


class Flow(RuleBasedStateMachine):
    """A client that counts both windows by what it gets, and reads what it likes."""

    @initialize()
    def begin(self) -> None:
        self.unsent = Unsent()
        self.outbox = Outbox(self.unsent)
        self.reader = FrameReader()
        self.reader.read(http2.PREFACE)
        self.streams = {number: Outgoing(number) for number in (1, 3, 5, 7)}
        self.ended: set[int] = set()
        self.expected: defaultdict[int, bytes] = defaultdict(bytes)
        self.got: defaultdict[int, bytes] = defaultdict(bytes)
        self.trailers: list[int] = []
        self.window = self.first_window = http2.DEFAULT_WINDOW
        self.windows: dict[int, int] = dict.fromkeys(self.streams, 0)
        self.largest_frame = http2.DEFAULT_FRAME

    def _message(self, number: int, message: bytes) -> None:
        self.expected[number] += http2.MESSAGE_PREFIX.pack(0, len(message)) + message

    @rule(number=numbers, size=st.integers(0, 40) | st.integers(10_000, 200_000))
    def send(self, number: int, size: int) -> None:
        if number in self.ended:
            return
        message = bytes([number]) * size
        self._message(number, message)
        if not self.outbox.add_whole(self.streams[number], HEAD, message, TAIL):
            self.outbox.add_message(self.streams[number], message)

    @rule(
        number=numbers, sizes=st.lists(st.integers(0, 40) | st.integers(10_000, 90_000), max_size=4)
    )
    def send_parts(self, number: int, sizes: list[int]) -> None:
        """Parts of memory that is used again as soon as the outbox kept what it needs."""
        if number in self.ended:
            return
        memory = bytearray(at % 251 for at in range(sum(sizes)))
        self._message(number, bytes(memory))
        parts: list[bytes | memoryview] = []
        at = 0
        for size in sizes:
            parts.append(memoryview(memory)[at : at + size])
            at += size
        if not self.outbox.add_parts(self.streams[number], HEAD, parts, TAIL):
            self.outbox.add_message(self.streams[number], bytes(memory))
        self.outbox.keep()
        memory[:] = bytes(len(memory))

    @rule(number=numbers)
    def end(self, number: int) -> None:
        if number not in self.ended:
            self.ended.add(number)
            trailers = http2.frame(http2.HEADERS, http2.END_STREAM, number, b"trailers")
            self.outbox.end(self.streams[number], trailers)

    @rule(growth=st.integers(1, 3) | st.integers(1_000, 100_000))
    def grow(self, growth: int) -> None:
        assert self.outbox.grow(growth)
        self.window += growth
        self.outbox.release()

    @rule(number=numbers, growth=st.integers(1, 3) | st.integers(1_000, 100_000))
    def grow_stream(self, number: int, growth: int) -> None:
        self.windows[number] += growth
        assert self.outbox.grow_stream(self.streams[number], growth)

    @rule(size=st.integers(0, 4) | st.integers(5, 300_000))
    def settings(self, size: int) -> None:
        self.first_window = size
        self.outbox.set_first_window(size)
        self.outbox.release()

    @rule(size=st.integers(http2.DEFAULT_FRAME, http2.MAX_FRAME))
    def largest(self, size: int) -> None:
        self.largest_frame = max(self.largest_frame, size)
        self.outbox.set_max_frame(size)

    @rule(share=st.floats(0, 1), most=st.integers(1, 5))
    def read(self, share: float, most: int) -> None:
        data = b"".join(map(bytes, self.outbox.take(most)))
        taken = data[: round(share * len(data))]
        self.outbox.on_sent(len(taken))
        self._count(taken)

    def _count(self, data: bytes) -> None:
        for kind, _, number, payload in self.reader.read(data):
            if kind == http2.DATA:
                assert number not in self.trailers
                self.got[number] += payload
                assert len(payload) <= self.largest_frame
            elif kind == http2.HEADERS:
                self.trailers.append(number)

    @invariant()
    def what_is_kept_back_is_counted(self) -> None:
        kept = sum(stream.waiting_bytes for stream in self.streams.values())
        assert self.unsent.bytes == kept

    @invariant()
    def what_went_is_what_was_sent_in_order(self) -> None:
        for number, data in self.got.items():
            assert self.expected[number].startswith(data)

    def teardown(self) -> None:
        """A client that opens its windows and reads gets all of it."""
        if not hasattr(self, "outbox"):
            return
        # What was sent ahead of a window that shrank since is not more than was allowed once.
        sent = sum(map(len, self.got.values()))
        assert sent <= self.window
        self.outbox.set_first_window(http2.DEFAULT_WINDOW)
        self.outbox.grow(2**28)
        self.outbox.release()
        for stream in self.streams.values():
            self.outbox.grow_stream(stream, 2**28)
        while self.outbox.waiting_bytes:
            data = b"".join(map(bytes, self.outbox.take(100)))
            self.outbox.on_sent(len(data))
            self._count(data)
        assert dict(self.got) == {n: data for n, data in self.expected.items() if data}
        assert sorted(self.trailers) == sorted(self.ended)
        assert len(set(self.outbox.ended)) == len(self.outbox.ended)
        assert not any(stream.waits for stream in self.streams.values())
        assert self.unsent.bytes == 0
        assert all(stream.waiting_bytes == 0 for stream in self.streams.values())


TestFlow = Flow.TestCase
TestFlow.settings = settings(max_examples=50, stateful_step_count=30)


def test_nothing_goes_past_a_streams_window() -> None:
    outbox, stream = Outbox(Unsent()), Outgoing(1)
    outbox.set_first_window(1000)
    outbox.add_message(stream, bytes(5000))
    sent = b"".join(map(bytes, outbox.take(100)))
    assert len(sent) == 1000 + http2.HEAD.size
    outbox.on_sent(len(sent))
    # The client takes back what it let go: nothing until it has caught up.
    outbox.set_first_window(10)
    outbox.release()
    outbox.grow_stream(stream, 990)
    assert outbox.take(100) == []
    outbox.grow_stream(stream, 7)
    assert b"".join(map(bytes, outbox.take(100)))[http2.HEAD.size :] == bytes(7)


def test_windows_that_pass_their_limit_are_told() -> None:
    outbox, stream = Outbox(Unsent()), Outgoing(1)
    assert outbox.grow(http2.MAX_WINDOW - http2.DEFAULT_WINDOW)
    assert not outbox.grow(1)
    assert outbox.grow_stream(stream, http2.MAX_WINDOW - http2.DEFAULT_WINDOW)
    assert not outbox.grow_stream(stream, 1)


def test_a_cut_stream_keeps_the_message_that_has_begun_and_its_trailers() -> None:
    outbox, stream = Outbox(Unsent()), Outgoing(1)
    outbox.set_first_window(100)
    for fill in (b"a", b"b", b"c"):
        outbox.add_message(stream, fill * 200)
    outbox.cut(stream)
    outbox.end(stream, b"trailers")
    outbox.grow_stream(stream, 1000)
    sent = b"".join(map(bytes, outbox.take(100)))
    assert sent.count(b"a") == 200 + b"trailers".count(b"a")
    assert sent.endswith(b"trailers")
    assert b"bb" not in sent
    assert outbox.ended == [1]


def test_parts_go_as_far_ahead_of_the_socket_as_a_message_and_no_further() -> None:
    outbox, stream = Outbox(Unsent()), Outgoing(1)
    outbox.set_first_window(http2.MAX_WINDOW)
    outbox.grow(2**30)
    part = bytes(AHEAD_BYTES - http2.MESSAGE_PREFIX.size)
    assert not outbox.add_parts(stream, HEAD, [part, b"x"], TAIL)
    assert not outbox.waiting_bytes
    assert outbox.add_parts(stream, HEAD, [part], TAIL)
    assert outbox.waiting_bytes == sum(map(len, outbox.take(1 << 20)))
    assert not outbox.add_parts(Outgoing(3), HEAD, [b"x"], TAIL)


def test_bytes_are_not_copied_to_be_kept() -> None:
    outbox = Outbox(Unsent())
    part, lent = bytes(20_000), memoryview(bytearray(20_000))
    assert outbox.add_parts(Outgoing(1), HEAD, [part, lent], TAIL)
    outbox.keep()
    kept = [piece.obj for piece in outbox.take(100) if isinstance(piece, memoryview)]
    assert any(it is part for it in kept)
    assert all(isinstance(it, bytes) for it in kept)
    lent[:] = bytes([1]) * len(lent)
    assert b"".join(map(bytes, outbox.take(100))).count(1) < 100


def test_what_waits_of_an_answer_in_parts_does_not_hold_all_of_its_batch() -> None:
    outbox = Outbox(Unsent())
    batch = bytes(1_000_000)
    before = sys.getrefcount(batch)
    parts = [memoryview(batch)[:30_000]]
    assert outbox.add_parts(Outgoing(1), HEAD, parts, TAIL)
    outbox.on_sent(len(HEAD) + 20_000)
    outbox.keep()
    del parts
    assert sys.getrefcount(batch) == before
