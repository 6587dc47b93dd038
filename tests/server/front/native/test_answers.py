"""Answers, as the h2 library takes them."""

import pytest

from tests.server.front.native.caller import (
    BIDI,
    FULL,
    PATHS,
    STREAM,
    UNARY,
    Caller,
    assert_nothing_is_left,
    packed,
)
from tideserve.server.errors import Code
from tideserve.v1 import http2


@pytest.fixture
def caller() -> Caller:
    return Caller()


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_530, 65_531, 300_000])
def test_an_answer_of_any_size(caller: Caller, size: int) -> None:
    stream = caller.request(UNARY, packed(b""))
    caller.talk()
    assert caller.server.respond(stream, bytes(size))
    caller.talk()
    assert caller.answers[stream].messages == [bytes(size)]
    assert caller.answers[stream].status == 0
    assert_nothing_is_left(caller)


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 65_530, 65_531, 300_000, 5_000_000])
@pytest.mark.parametrize("window", [http2.DEFAULT_WINDOW, http2.MAX_WINDOW])
def test_an_answer_in_parts(caller: Caller, size: int, window: int) -> None:
    caller.h2.increment_flow_control_window(window - http2.DEFAULT_WINDOW or 1)
    caller.set(s4=window)
    caller.talk()
    memory = bytearray(at % 251 for at in range(size))
    expected = b"begins" + bytes(memory)
    stream = caller.request(UNARY, packed(b""))
    caller.talk()
    assert caller.server.respond_parts(stream, [b"begins", memoryview(memory)])
    caller.server.outbox.keep()
    memory[:] = bytes(size)
    assert not caller.server.respond_parts(stream, [b"again"])
    caller.talk()
    assert caller.answers[stream].messages == [expected]
    assert caller.answers[stream].status == 0
    assert_nothing_is_left(caller)


def test_a_server_stream_fails_after_what_was_sent(caller: Caller) -> None:
    stream = caller.request(STREAM, packed(b"go"))
    caller.talk()
    for number in range(3):
        assert caller.server.send(stream, b"%d" % number)
    assert caller.server.fail(stream, FULL)
    assert not caller.server.send(stream, b"late")
    caller.talk()
    answer = caller.answers[stream]
    assert (answer.messages, answer.status, answer.message) == ([b"0", b"1", b"2"], 8, "queue full")
    assert answer.trailers["grpc-retry-pushback-ms"] == "250"
    assert_nothing_is_left(caller)


@pytest.mark.parametrize("path", PATHS)
def test_a_call_that_fails_at_once_has_one_block(caller: Caller, path: str) -> None:
    stream = caller.request(path, packed(b""))
    caller.talk()
    assert caller.server.fail(stream, FULL)
    caller.talk()
    answer = caller.answers[stream]
    assert (answer.status, answer.trailers, answer.body) == (8, {}, b"")
    assert_nothing_is_left(caller)


def test_a_stream_may_end_without_a_message(caller: Caller) -> None:
    stream = caller.request(STREAM, packed(b""))
    caller.talk()
    caller.server.end(stream)
    caller.server.end(stream)
    caller.talk()
    assert (caller.answers[stream].status, caller.answers[stream].body) == (0, b"")
    assert_nothing_is_left(caller)


def test_a_call_that_is_answered_early_is_let_go_by_its_caller(caller: Caller) -> None:
    stream = caller.request(BIDI, packed(b"one"), ends=False)
    caller.talk()
    assert caller.server.fail(stream, FULL)
    caller.talk()
    assert (caller.answers[stream].status, caller.answers[stream].reset) == (8, http2.NO_ERROR)
    assert_nothing_is_left(caller)


def test_a_caller_that_does_not_read_is_cut_off() -> None:
    caller = Caller(s4=1000)
    caller.reads = False
    stream = caller.request(STREAM, packed(b""))
    caller.talk()
    sent = 0
    while caller.server.send(stream, bytes(1_000_000)):
        sent += 1
    assert sent == 16
    assert caller.server.outbox.waiting_bytes < 2000
    caller.h2.increment_flow_control_window(2_000_000)
    caller.h2.increment_flow_control_window(2_000_000, stream)
    assert caller.talk() == []
    assert caller.answers[stream].messages == [bytes(1_000_000)]
    assert caller.answers[stream].status == Code.RESOURCE_EXHAUSTED
    assert_nothing_is_left(caller)
