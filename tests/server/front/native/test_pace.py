"""Requests that come slowly: who is refused, who is not."""

import pytest

from tests.server.front.native.caller import BIDI, FIRST_ID, LIMIT_BYTES, STREAM, UNARY, Caller
from tests.server.front.native.caller import packed as whole
from tideserve.server.errors import Code
from tideserve.server.front import Call, Cancel, Event
from tideserve.v1.http2 import MESSAGE_PREFIX

PATHS = (UNARY, STREAM, BIDI)
LINK_BYTES_S = 125_000  # 1 Mbit/s


@pytest.fixture
def caller() -> Caller:
    caller = Caller()
    caller.talk()
    return caller


def second(
    caller: Caller, now_s: float, *, is_short: bool = False, is_read: bool = True
) -> list[Event]:
    """What goes on in one."""
    events = caller.talk(now_s)
    caller.calls.refuse_slow(now_s, is_short=is_short, is_read=is_read)
    return events + caller.connection.take_events() + caller.talk(now_s)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("is_short", "most_s"), [(False, 31), (True, 11)])
def test_a_request_that_trickles_is_refused(
    caller: Caller, path: str, is_short: bool, most_s: int
) -> None:
    """It held what had come of it for as long as its client liked."""
    stream = caller.request(path, MESSAGE_PREFIX.pack(0, LIMIT_BYTES), ends=False)
    caller.h2.send_data(stream, bytes(900_000))
    events: list[Event] = []
    for now_s in range(most_s + 1):
        if not caller.answers[stream].ended:
            caller.h2.send_data(stream, b"x")
            for _ in range(8):  # padding moves nothing on
                caller.h2.send_data(stream, b"", pad_length=255)
        events += second(caller, float(now_s), is_short=is_short)
    answer = caller.answers[stream]
    assert answer.status == Code.RESOURCE_EXHAUSTED
    assert "came" in answer.message
    assert (Cancel(FIRST_ID + stream) in events) is (path == BIDI)
    assert caller.shared.held_bytes == 0
    assert caller.calls._streams == {}


@pytest.mark.parametrize("path", [UNARY, STREAM])
def test_a_whole_request_that_its_caller_does_not_end_is_refused(caller: Caller, path: str) -> None:
    stream = caller.request(path, whole(bytes(50_000)), ends=False)
    for now_s in range(62):
        second(caller, float(now_s))
    assert caller.answers[stream].status == Code.RESOURCE_EXHAUSTED
    assert caller.shared.held_bytes == 0


@pytest.mark.parametrize("is_short", [False, True])
def test_a_slow_link_gets_its_large_request_through(caller: Caller, is_short: bool) -> None:
    """Four of 4 MB side by side over 1 Mbit/s, and one of 16 MB after."""
    caller.shared.max_message_bytes = 16_000_000
    caller.shared.max_held_bytes = 64_000_000
    now_s = 0.0
    for size, count in ((4_000_000, 4), (16_000_000, 1)):
        streams = [caller.request(UNARY, None, ends=False) for _ in range(count)]
        left = dict.fromkeys(streams, whole(bytes(size)))
        calls: list[Event] = []
        while len(calls) < count:
            for stream in streams:
                part = left[stream][: LINK_BYTES_S // count]
                left[stream] = left[stream][len(part) :]
                if part:
                    caller.h2.send_data(stream, part, end_stream=not left[stream])
            now_s += 1.0
            calls += second(caller, now_s, is_short=is_short)
            assert not any(caller.answers[stream].ended for stream in streams)
        assert [len(call.whole()) for call in calls if isinstance(call, Call)] == [size] * count


@pytest.mark.parametrize("is_short", [False, True])
def test_who_says_nothing_between_messages_is_left_alone(caller: Caller, is_short: bool) -> None:
    stream = caller.request(BIDI, whole(b"one"), ends=False)
    asked = caller.request(UNARY, whole(b"waits for its answer"))
    begins = caller.request(UNARY, None, ends=False)
    now_s = 0.0
    for _ in range(3):
        for _ in range(100):
            now_s += 1.0
            second(caller, now_s, is_short=is_short)
        caller.h2.send_data(stream, whole(b"next"))
    assert [caller.answers[number].status for number in (stream, asked, begins)] == [None] * 3


def test_who_is_not_read_is_not_too_slow(caller: Caller) -> None:
    """Its client is slow to take answers, so that it is not read; what it sends is not here."""
    stream = caller.request(BIDI, whole(bytes(50_000))[:-1], ends=False)
    now_s = 0.0
    for is_read in (True, False, True):
        for _ in range(20 if is_read else 100):
            now_s += 1.0
            second(caller, now_s, is_read=is_read)
    assert caller.answers[stream].status is None
    for _ in range(20):
        now_s += 1.0
        second(caller, now_s)
    assert caller.answers[stream].status == Code.RESOURCE_EXHAUSTED
