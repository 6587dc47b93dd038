"""Requests, cancels and answers in any order leave nothing behind."""

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.front.native.caller import BIDI, FIRST_ID, STREAM, UNARY, Caller, packed
from tideserve.server.front import Call, Cancel, Event, HalfClose, Status
from tideserve.v1 import http2

TOO_LARGE = b"\0\xff\xff\xff\xff"


class World:
    """One connection's calls, by the order in which they began."""

    def __init__(self) -> None:
        self.caller = Caller(s4=100)
        self.caller.talk()
        self.streams: list[int] = []
        self.sending: set[int] = set()  # whose caller has not ended
        self.events: dict[int, list[Event]] = {}
        self.sent: dict[int, list[bytes]] = {}
        self.ended: dict[int, int] = {}  # by the server, with which status

    def step(self, name: str, pick: int, size: int) -> None:
        if name in ("unary", "stream", "bidi"):
            self._begin({"unary": UNARY, "stream": STREAM, "bidi": BIDI}[name], pick, size)
        elif name in ("reads", "stops"):
            self.caller.reads = name == "reads"
        elif name == "window":
            self.caller.set(s4=size)
        elif self.streams:
            stream = self.streams[pick % len(self.streams)]
            if name in ("data", "finish", "trailers", "cancel", "bad"):
                self._request(name, stream, size)
            else:
                self._answer(name, stream, size)
        self.look()

    def _begin(self, path: str, pick: int, size: int) -> None:
        headers = [("grpc-timeout", "1S")] if pick % 2 else []
        ends = size % 2 == 0 or size > 1000  # h2 must not see its own windows too small
        body = None if pick % 5 == 0 else packed(bytes(min(size, 1000)))
        stream = self.caller.request(path, body, *headers, ends=ends)
        self.streams.append(stream)
        self.sent[stream], self.events[stream] = [], []
        if not ends:
            self.sending.add(stream)

    def _request(self, name: str, stream: int, size: int) -> None:
        caller, h2 = self.caller, self.caller.h2
        answer = caller.answers[stream]
        if answer.reset is not None or (answer.ended and stream not in self.sending):
            return
        if name == "cancel":
            h2.reset_stream(stream, http2.CANCEL)
            answer.reset = http2.CANCEL
            self.sending.discard(stream)
        elif stream in self.sending:
            if name in ("data", "bad"):
                h2.send_data(stream, TOO_LARGE if name == "bad" else packed(bytes(size))[:1000])
                return
            if name == "finish":
                h2.end_stream(stream)
            else:
                h2.send_headers(stream, [("some", "trailer")], end_stream=True)
            self.sending.discard(stream)

    def _answer(self, name: str, stream: int, size: int) -> None:
        server, path = self.caller.server, self.path(stream)
        is_open = stream in self.caller.calls.open
        if path is None:
            return
        payload = bytes((len(self.sent[stream]) + 1,)) * size
        if name == "fail":
            assert server.fail(stream, Status(8, "full")) is is_open
            if is_open:
                self.ended[stream] = 8
        elif path == UNARY:
            assert server.respond(stream, payload) is is_open
            if is_open:
                self.ended[stream] = 0
                self.sent[stream].append(payload)
        elif name == "send":
            assert server.send(stream, payload) is is_open
            if is_open:
                self.sent[stream].append(payload)
        else:
            server.end(stream)
            if is_open:
                self.ended[stream] = 0

    def path(self, stream: int) -> str | None:
        """None: its call has not begun."""
        events = self.events[stream]
        return events[0].path if events and isinstance(events[0], Call) else None

    def look(self) -> None:
        for event in self.caller.talk():
            self.events[event.call_id - FIRST_ID].append(event)
        for stream, events in self.events.items():
            if events:
                assert_a_life(events)
                is_over = stream in self.ended or isinstance(events[-1], Cancel)
                assert (stream in self.caller.calls.open) is not is_over
            answer = self.caller.answers[stream]
            if answer.status is not None and stream in self.ended:
                assert answer.status == self.ended[stream]
                assert answer.messages == self.sent[stream]
        kept = sum(stream.waiting_bytes for stream in self.caller.calls._streams.values())
        assert self.caller.shared.unsent.bytes == kept
        deadlines = self.caller.shared.deadlines
        assert len(deadlines) == sum(
            FIRST_ID + stream in deadlines for stream in self.caller.calls.open
        )
        assert self.caller.shared.held_bytes == sum(
            stream.request.held_bytes if stream.request else 0
            for stream in self.caller.calls._streams.values()
        )


def assert_a_life(events: list[Event]) -> None:
    """One call's events: it begins once, and nothing is told after a cancel."""
    assert isinstance(events[0], Call)
    kinds = [type(event) for event in events]
    assert kinds.count(Call) == 1
    assert kinds.count(HalfClose) <= 1
    assert Cancel not in kinds[:-1]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["unary", "stream", "bidi"] * 2
            + ["data", "finish", "trailers", "cancel", "bad"]
            + ["fail", "send", "end"] * 2
            + ["reads", "stops", "window"]
        ),
        st.integers(0, 9),
        st.integers(0, 2000),
    ),
    max_size=30,
)


def assert_nothing_is_left(world: World) -> None:
    shared, outbox = world.caller.shared, world.caller.server.outbox
    assert (shared.held_bytes, len(shared.deadlines)) == (0, 0)
    assert (world.caller.calls._streams, outbox._held, outbox.ended) == ({}, {}, [])


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_when_all_calls_are_cancelled_or_answered_nothing_is_left(
    steps: list[tuple[str, int, int]],
) -> None:
    world = World()
    for step in steps:
        world.step(*step)
    # All callers read and are done; who is answered and not begun is cancelled.
    h2 = world.caller.h2
    world.step("reads", 0, 0)
    world.step("window", 0, 10_000_000)
    h2.increment_flow_control_window(10_000_000)
    world.look()
    for number, stream in enumerate(world.streams):
        if stream in world.caller.calls.open:
            world.step("end", number, 100)
        else:
            world.step("cancel", number, 0)
    world.look()
    assert world.caller.goaway is None
    for stream, status in world.ended.items():
        answer = world.caller.answers[stream]
        if answer.reset in (None, http2.NO_ERROR):
            assert answer.status == status
    assert_nothing_is_left(world)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_when_the_client_is_lost_nothing_is_left(steps: list[tuple[str, int, int]]) -> None:
    world = World()
    for step in steps:
        world.step(*step)
    begun = set(world.caller.calls.open)
    world.caller.calls.on_lost()
    events = world.caller.connection.take_events()
    assert sorted(events) == sorted(Cancel(FIRST_ID + stream) for stream in begun)
    assert_nothing_is_left(world)
