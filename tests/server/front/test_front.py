"""What both fronts must do: one suite, run on each."""

import gc
import logging
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import grpc
import pytest

from tideserve.server.errors import AddressInUseError, StartError
from tideserve.server.front import (
    ANSWER_HEAD_BYTES,
    Call,
    Cancel,
    Event,
    Front,
    FrontSettings,
    HalfClose,
    Status,
    StreamMessage,
)
from tideserve.server.front.grpcio import GrpcioFront
from tideserve.server.front.native.front import NativeFront
from tideserve.v1.methods import Kind

UNARY, STREAM, BIDI = "/test.Echo/Unary", "/test.Echo/Stream", "/test.Echo/Bidi"
METHODS = ((UNARY, Kind.UNARY), (STREAM, Kind.SERVER_STREAM), (BIDI, Kind.BIDI))
LIMIT_BYTES = 64 * 1024 * 1024
WAIT_S = 20.0

_Read = TypeVar("_Read")


class Cancellable(Protocol):
    def cancel(self) -> object: ...


class OwnedFront(Front, Protocol):
    @property
    def open_calls(self) -> int: ...


def make(kind: str, settings: FrontSettings) -> OwnedFront:
    if kind == "native":
        return NativeFront(METHODS, settings)
    return GrpcioFront(METHODS, settings)


def settings(port: int = 0, **changes: object) -> FrontSettings:
    return FrontSettings(port=port, max_message_bytes=LIMIT_BYTES, **changes)  # type: ignore[arg-type]


@pytest.fixture(params=["native", "grpcio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def front(kind: str, caplog: pytest.LogCaptureFixture) -> Iterator[OwnedFront]:
    """A started front. When the test is over its call table must be empty, and asyncio and
    grpc must have had nothing to complain about."""
    front = make(kind, settings())
    front.start()
    try:
        yield front
        assert front.open_calls == 0
    finally:
        front.close()
    gc.collect()  # a task whose exception nobody looked at complains when it is collected
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


class Client:
    """Raw bytes over one channel."""

    def __init__(self, port: int) -> None:
        self.channel = grpc.insecure_channel(
            f"127.0.0.1:{port}",
            options=(
                ("grpc.max_send_message_length", -1),
                ("grpc.max_receive_message_length", -1),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.enable_retries", 0),
            ),
        )
        self.unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(UNARY)
        self.stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = self.channel.unary_stream(STREAM)
        self.bidi: grpc.StreamStreamMultiCallable[bytes, bytes] = self.channel.stream_stream(BIDI)


@pytest.fixture
def client(front: Front) -> Iterator[Client]:
    client = Client(front.port)
    yield client
    client.channel.close()


def take(front: Front, count: int) -> list[Event]:
    """The next `count` events."""
    events: list[Event] = []
    end_s = time.monotonic() + WAIT_S
    while len(events) < count and time.monotonic() < end_s:
        events += front.recv(count - len(events), 1.0)
    assert len(events) == count, events
    return events


def take_call(front: Front) -> Call:
    (event,) = take(front, 1)
    assert isinstance(event, Call)
    return event


def echo(front: Front, client: Client, payload: bytes = b"still here") -> None:
    """The next good call is answered."""
    future = client.unary.future(payload, timeout=WAIT_S)
    call = take_call(front)
    assert front.respond(call.call_id, call.whole())
    assert result(front, future) == payload


class Waiting(Protocol):
    def done(self) -> bool: ...


class Future(Waiting, Protocol):
    def result(self) -> bytes: ...


def flush(front: Front, call: Waiting) -> None:
    """Until a call is over: answers leave with a `recv`."""
    while not call.done():
        assert front.recv(10, 0.01) == []


def result(front: Front, future: Future) -> bytes:
    flush(front, future)
    return future.result()


def pumped(front: Front, read: Callable[[], _Read]) -> _Read:
    """What `read` gives, which waits for answers."""
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        flush(front, reading)
        return reading.result()


def failure(front: Front, call: Waiting) -> grpc.RpcError:
    flush(front, call)
    with pytest.raises(grpc.RpcError) as caught:
        call.result()  # type: ignore[attr-defined]
    return caught.value


def trailers(error: grpc.RpcError) -> list[tuple[str, str | bytes]]:
    return [(entry.key, entry.value) for entry in error.trailing_metadata()]


def test_many_concurrent_unary_calls_each_get_their_own_answer(
    front: OwnedFront, client: Client
) -> None:
    futures = [client.unary.future(b"call %d" % n, timeout=WAIT_S) for n in range(300)]
    calls = [event for event in take(front, 300) if isinstance(event, Call)]
    assert len({call.call_id for call in calls}) == 300
    for call in reversed(calls):
        assert front.respond(call.call_id, b"answer to " + call.payload)
    assert [result(front, future) for future in futures] == [
        b"answer to call %d" % n for n in range(300)
    ]


def test_a_call_tells_path_metadata_peer_and_time_left(front: OwnedFront, client: Client) -> None:
    future = client.unary.future(
        b"", metadata=(("key", "value"), ("blob-bin", b"\x00\xff\xfe")), timeout=WAIT_S
    )
    call = take_call(front)
    assert call.path == UNARY
    assert ("key", "value") in call.metadata
    assert ("blob-bin", b"\x00\xff\xfe") in call.metadata
    assert call.peer.startswith("ipv4:127.0.0.1:")
    assert call.time_left_s is not None
    assert WAIT_S / 2 < call.time_left_s <= WAIT_S + 1
    assert front.respond(call.call_id, b"")
    assert result(front, future) == b""


def test_a_call_without_a_deadline_has_no_time_left(front: OwnedFront, client: Client) -> None:
    future = client.unary.future(b"")
    call = take_call(front)
    assert call.time_left_s is None
    front.respond(call.call_id, b"")
    result(front, future)


def test_recv_gives_at_most_max_events_and_keeps_the_rest(
    front: OwnedFront, client: Client
) -> None:
    futures = [client.unary.future(b"", timeout=WAIT_S) for _ in range(20)]
    seen = 0
    while seen < 20:
        events = front.recv(3, WAIT_S)
        assert 1 <= len(events) <= 3
        seen += len(events)
        for event in events:
            front.respond(event.call_id, b"")
    for future in futures:
        result(front, future)


@pytest.mark.parametrize("size", [0, 1_000, 100_000, 3_000_000, 10_000_000])
def test_an_answer_in_parts_is_what_they_held(front: OwnedFront, client: Client, size: int) -> None:
    """Their memory is used again at once, however much of the answer is on its way."""
    future = client.unary.future(b"", timeout=WAIT_S)
    memory = bytearray(bytes(range(250)) * (size // 250))
    expected = b"begins" + bytes(memory)
    call = take_call(front)
    assert front.respond_parts(call.call_id, [b"begins", memoryview(memory)])
    memory[:] = bytes(len(memory))
    assert front.respond_parts(call.call_id, [b"again"]) is False
    assert result(front, future) == expected
    echo(front, client)


def test_an_answer_in_parts_to_a_client_that_is_gone_fails_nobody_else(
    front: OwnedFront, client: Client
) -> None:
    gone = Client(front.port)
    future = gone.unary.future(b"", timeout=WAIT_S)
    call = take_call(front)
    gone.channel.close()
    assert future.done()
    front.respond_parts(call.call_id, [memoryview(bytearray(1_000_000))])
    while front.recv(10, 0.1) or front.open_calls:
        pass
    echo(front, client)


def test_a_message_of_50_mb_travels_both_ways(front: OwnedFront, client: Client) -> None:
    echo(front, client, bytes(range(256)) * 200_000)


def test_a_message_over_the_limit_is_refused_and_the_next_good_call_answered(
    front: OwnedFront, client: Client
) -> None:
    future = client.unary.future(bytes(LIMIT_BYTES + 1), timeout=WAIT_S)
    while not future.done():
        assert front.recv(10, 0.05) == []
    error = failure(front, future)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(LIMIT_BYTES) in (error.details() or "")
    assert str(LIMIT_BYTES + 1) in (error.details() or "")
    echo(front, client)


def test_an_answer_over_the_limit_is_refused_with_both_sizes(
    front: OwnedFront, client: Client
) -> None:
    future = client.unary.future(b"", timeout=WAIT_S)
    answer_bytes = LIMIT_BYTES + ANSWER_HEAD_BYTES + 1
    front.respond(take_call(front).call_id, bytes(answer_bytes))
    error = failure(front, future)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(answer_bytes) in (error.details() or "")
    echo(front, client)


def test_an_unknown_method_is_unimplemented(front: OwnedFront, client: Client) -> None:
    other: grpc.UnaryUnaryMultiCallable[bytes, bytes] = client.channel.unary_unary("/test.Echo/No")
    future = other.future(b"", timeout=WAIT_S)
    while not future.done():
        assert front.recv(10, 0.05) == []
    assert failure(front, future).code() is grpc.StatusCode.UNIMPLEMENTED
    echo(front, client)


def test_a_passed_deadline_cancels_the_call(front: OwnedFront, client: Client) -> None:
    future = client.unary.future(b"", timeout=0.3)
    call = take_call(front)
    assert take(front, 1) == [Cancel(call.call_id)]
    assert failure(front, future).code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert front.respond(call.call_id, b"late") is False
    echo(front, client)


@pytest.mark.parametrize("path", [UNARY, STREAM, BIDI])
def test_a_cancel_by_the_caller_is_an_event(front: OwnedFront, client: Client, path: str) -> None:
    started: Cancellable
    hold = threading.Event()
    if path == UNARY:
        started = client.unary.future(b"")
    elif path == STREAM:
        started = client.stream(b"")
    else:
        started = client.bidi(_held(hold))
    call = take_call(front)
    assert call.path == path
    started.cancel()
    hold.set()
    events = take(front, 1)
    while isinstance(events[-1], HalfClose):
        events = take(front, 1)
    assert events == [Cancel(call.call_id)]
    assert front.fail(call.call_id, Status(3, "late")) is False
    if path != UNARY:
        assert front.send(call.call_id, b"late") is False
    echo(front, client)


def _held(hold: threading.Event) -> Iterator[bytes]:
    hold.wait(WAIT_S)
    yield from ()


def test_a_lost_connection_cancels_its_calls(front: OwnedFront) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as raw:
        raw.sendall(_PREFACE + _request(1, UNARY) + _request(3, UNARY))
        calls = {event.call_id for event in take(front, 2)}
    assert {event.call_id for event in take(front, 2) if isinstance(event, Cancel)} == calls


@pytest.mark.parametrize("path", [STREAM, BIDI])
def test_a_connection_lost_in_the_middle_of_a_stream_cancels_it(
    front: OwnedFront, path: str
) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as raw:
        raw.sendall(_PREFACE + _request(1, path, end=path == STREAM))
        call = take_call(front)
        for _ in range(4):  # more than the flow-control window: some of it waits
            assert front.send(call.call_id, bytes(1_000_000))
        front.recv(1, 0.05)
    events = take(front, 1)
    while not isinstance(events[-1], Cancel):
        events = take(front, 1)
    assert events == [Cancel(call.call_id)]
    assert front.send(call.call_id, b"late") is False


def test_a_server_stream_brings_every_message_in_order_then_ends(
    front: OwnedFront, client: Client
) -> None:
    answers = client.stream(b"go", timeout=WAIT_S)
    call = take_call(front)
    assert (call.path, call.payload) == (STREAM, b"go")
    for n in range(200):
        assert front.send(call.call_id, b"%d" % n)
    front.end(call.call_id)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, answers)
        while not reading.done():
            assert front.recv(10, 0.01) == []
    assert reading.result() == [b"%d" % n for n in range(200)]
    assert front.send(call.call_id, b"after the end") is False


def test_a_stream_that_fails_brings_what_was_sent_first(front: OwnedFront, client: Client) -> None:
    answers = client.stream(b"", timeout=WAIT_S)
    call = take_call(front)
    for n in range(20):
        assert front.send(call.call_id, b"%d" % n)
    assert front.fail(call.call_id, Status(14, "no more"))
    got: list[bytes] = []

    def read() -> None:
        got.extend(answers)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        while not reading.done():
            front.recv(10, 0.01)
    assert failure(front, reading).code() is grpc.StatusCode.UNAVAILABLE
    assert got == [b"%d" % n for n in range(20)]


@pytest.mark.parametrize("path", [STREAM, BIDI])
def test_a_caller_that_does_not_read_is_cut_off_at_a_bound(
    front: OwnedFront, client: Client, path: str
) -> None:
    hold = threading.Event()
    answers = client.stream(b"") if path == STREAM else client.bidi(_held(hold))
    call = take_call(front)
    sent = 0
    while front.send(call.call_id, bytes(1_000_000)):
        sent += 1
        front.recv(1, 0.0)
        assert sent < 200
    assert sent >= 16
    hold.set()
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, answers)
        while not reading.done():
            front.recv(10, 0.01)
    error = failure(front, reading)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "too slowly" in (error.details() or "")
    echo(front, client)


def test_a_bidirectional_call_interleaves_and_half_closes(
    front: OwnedFront, client: Client
) -> None:
    answers = client.bidi(iter((b"one", b"two")), timeout=WAIT_S, metadata=(("key", "value"),))
    call, *messages = take(front, 4)
    assert isinstance(call, Call)
    assert (call.path, call.payload) == (BIDI, b"")
    assert ("key", "value") in call.metadata
    assert call.time_left_s is not None
    assert messages == [
        StreamMessage(call.call_id, b"one"),
        StreamMessage(call.call_id, b"two"),
        HalfClose(call.call_id),
    ]
    for message in (b"1", b"2", b"3"):
        assert front.send(call.call_id, message)
    front.end(call.call_id)
    assert pumped(front, lambda: list(answers)) == [b"1", b"2", b"3"]


def test_a_bidirectional_call_answers_before_its_caller_is_done(
    front: OwnedFront, client: Client
) -> None:
    hold = threading.Event()
    answers = client.bidi(_held(hold), timeout=WAIT_S)
    call = take_call(front)
    front.send(call.call_id, b"early")
    assert pumped(front, lambda: next(answers)) == b"early"
    assert front.fail(call.call_id, Status(9, "enough"))
    with pytest.raises(grpc.RpcError) as caught:
        pumped(front, lambda: next(answers))
    hold.set()
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details() == "enough"


def test_many_bidirectional_and_unary_calls_mix(front: OwnedFront, client: Client) -> None:
    streams = [client.bidi(iter((b"s%d" % n,)), timeout=WAIT_S) for n in range(30)]
    futures = [client.unary.future(b"u%d" % n, timeout=WAIT_S) for n in range(30)]
    ended = 0
    answered = 0
    end_s = time.monotonic() + WAIT_S
    while (ended < 30 or answered < 30) and time.monotonic() < end_s:
        for event in front.recv(16, 1.0):
            match event:
                case Call(path=path) if path == UNARY:
                    answered += front.respond(event.call_id, event.payload)
                case StreamMessage():
                    assert front.send(event.call_id, event.payload)
                case HalfClose():
                    front.end(event.call_id)
                    ended += 1
    assert [result(front, future) for future in futures] == [b"u%d" % n for n in range(30)]
    read = pumped(front, lambda: [list(stream) for stream in streams])
    assert read == [[b"s%d" % n] for n in range(30)]


def test_a_status_comes_with_message_and_pushback(front: OwnedFront, client: Client) -> None:
    future = client.unary.future(b"", timeout=WAIT_S)
    assert front.fail(take_call(front).call_id, Status(8, "queue full", pushback_ms=250))
    error = failure(front, future)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert error.details() == "queue full"
    assert ("tideserve-retry-pushback-ms", "250") in trailers(error)
    assert ("grpc-retry-pushback-ms", "250") in trailers(error)


def test_a_status_without_pushback_sends_no_trailer(front: OwnedFront, client: Client) -> None:
    future = client.unary.future(b"", timeout=WAIT_S)
    assert front.fail(take_call(front).call_id, Status(5, "no such model"))
    error = failure(front, future)
    assert error.code() is grpc.StatusCode.NOT_FOUND
    assert [key for key, _ in trailers(error) if "pushback" in key] == []


@pytest.mark.parametrize(
    "message", ["Modell „größe“ fehlt", "模型不存在", "100% \n two lines", "", "x" * 3000]
)
def test_any_status_message_arrives(front: OwnedFront, client: Client, message: str) -> None:
    future = client.unary.future(b"", timeout=WAIT_S)
    assert front.fail(take_call(front).call_id, Status(3, message))
    assert failure(front, future).details() == message


def test_wake_from_another_thread_ends_a_wait(front: OwnedFront) -> None:
    """Eight times in a row: a front that misses one waits for the whole timeout."""
    begun = threading.Semaphore(0)

    def wake() -> None:
        for _ in range(8):
            begun.acquire()
            threading.Event().wait(0.05)  # recv is most likely waiting by now; either is right
            front.wake()

    started_s = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(wake)
        for _ in range(8):
            begun.release()
            assert front.recv(10, WAIT_S) == []
    assert time.monotonic() - started_s < WAIT_S


def test_a_wait_may_be_without_end(front: OwnedFront) -> None:
    front.wake()
    assert front.recv(10, float("inf")) == []


def test_wake_before_recv_ends_the_next_wait_only(front: OwnedFront) -> None:
    front.wake()
    front.wake()
    started_s = time.monotonic()
    assert front.recv(10, WAIT_S) == []
    assert time.monotonic() - started_s < WAIT_S / 2
    started_s = time.monotonic()
    assert front.recv(10, 0.2) == []
    assert time.monotonic() - started_s >= 0.19


@pytest.mark.parametrize("timeout_s", [0.0, 0.0004, 0.003, 0.25])
def test_recv_waits_its_timeout_and_little_more(front: OwnedFront, timeout_s: float) -> None:
    front.recv(10, 0.0)
    started_s = time.monotonic()
    assert front.recv(10, timeout_s) == []
    waited_s = time.monotonic() - started_s
    assert timeout_s - 0.001 <= waited_s < timeout_s + 1.0


def test_a_port_in_use_is_refused_with_the_address(kind: str, front: OwnedFront) -> None:
    second = make(kind, settings(port=front.port))
    with pytest.raises(AddressInUseError, match=rf"127\.0\.0\.1:{front.port} is already in use"):
        second.start()
    second.close()


def test_a_name_whose_port_is_in_use_is_refused(kind: str) -> None:
    # localhost may have a second address, where the port is free: who calls the first would reach
    # somebody else.
    with socket.create_server(("localhost", 0)) as other:
        port = other.getsockname()[1]
        front = make(kind, settings(host="localhost", port=port))
        with pytest.raises(AddressInUseError, match=rf"localhost:{port} is already in use"):
            front.start()
        front.close()


def test_a_host_that_is_not_ours_is_refused(kind: str) -> None:
    front = make(kind, settings(host="192.0.2.1"))
    with pytest.raises(StartError, match=r"cannot listen on 192\.0\.2\.1:0"):
        front.start()
    front.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_any_local_host_is_served(kind: str, host: str) -> None:
    front = make(kind, settings(host=host))
    front.start()
    client = Client(front.port)
    try:
        echo(front, client)
        front.wake()
        assert front.recv(1, WAIT_S) == []
    finally:
        client.channel.close()
        front.close()


def test_a_port_is_free_again_after_close(kind: str) -> None:
    first = make(kind, settings())
    first.start()
    port = first.port
    first.close()
    second = make(kind, settings(port=port))
    second.start()
    assert second.port == port
    second.close()


def test_answers_to_a_call_that_is_gone_are_false(front: OwnedFront, client: Client) -> None:
    echo(front, client)
    for gone in (1, 10_000, -1, -10_000):
        assert front.respond(gone, b"") is False
        assert front.fail(gone, Status(13, "")) is False
        assert front.send(gone, b"") is False
        front.end(gone)
    echo(front, client)


def test_close_ends_the_calls_that_are_left(front: OwnedFront, client: Client) -> None:
    hold = threading.Event()
    future = client.unary.future(b"", timeout=WAIT_S)
    streams = [client.stream(b"", timeout=WAIT_S), client.bidi(_held(hold), timeout=WAIT_S)]
    take(front, 3)
    front.close()
    hold.set()
    codes = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
    assert failure(front, future).code() in codes
    for stream in streams:
        with pytest.raises(grpc.RpcError) as caught:
            next(stream)
        assert caught.value.code() in codes
    assert front.recv(10, 0.0) == []
    assert front.respond(1, b"") is False
    front.close()


def test_threads_end_at_close(kind: str) -> None:
    def stay() -> Iterator[bytes]:
        yield b"hello"

    before = set(threading.enumerate())
    for _ in range(3):
        front = make(kind, settings())
        front.start()
        client = Client(front.port)
        answers = client.bidi(stay())
        take(front, 3)
        front.close()
        with pytest.raises(grpc.RpcError):
            next(answers)
        client.channel.close()
    ours = [t.name for t in set(threading.enumerate()) - before if "channel" not in t.name]
    assert ours == []


def test_a_compressed_request_arrives_whole(front: OwnedFront, client: Client) -> None:
    payload = b"well compressible " * 1000
    future = client.unary.future(payload, timeout=WAIT_S, compression=grpc.Compression.Gzip)
    call = take_call(front)
    assert call.whole() == payload
    front.respond(call.call_id, b"")
    result(front, future)


def test_keepalive_pings_of_both_sides_keep_a_quiet_connection(kind: str) -> None:
    front = make(kind, settings(keepalive_time_s=0.1, keepalive_timeout_s=1.0))
    front.start()
    channel = grpc.insecure_channel(
        f"127.0.0.1:{front.port}",
        options=(
            ("grpc.keepalive_time_ms", 100),
            ("grpc.keepalive_timeout_ms", 1000),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.use_local_subchannel_pool", 1),
        ),
    )
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(UNARY)
    try:
        future = unary.future(b"", timeout=WAIT_S)
        call = take_call(front)
        # A strict server ends a connection at the third ping of this kind.
        assert front.recv(1, 1.5) == []
        assert front.respond(call.call_id, b"answer")
        assert result(front, future) == b"answer"
        front.wake()
        started_s = time.monotonic()
        assert front.recv(1, WAIT_S) == []
        assert time.monotonic() - started_s < WAIT_S / 2
    finally:
        channel.close()
        front.close()


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        bytes(range(256)) * 64,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
        b"",
    ],
    ids=["http1", "tls", "bytes", "bad-frames", "nothing"],
)
def test_bytes_that_are_no_http2_hurt_nobody(
    front: OwnedFront, client: Client, garbage: bytes
) -> None:
    future = client.unary.future(b"", timeout=WAIT_S)
    call = take_call(front)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", front.port)) as raw:
            raw.sendall(garbage)
    assert front.recv(10, 0.1) == []
    assert front.respond(call.call_id, b"fine")
    assert result(front, future) == b"fine"


def test_a_declared_length_of_4_gb_hurts_nobody(front: OwnedFront, client: Client) -> None:
    with socket.create_connection(("127.0.0.1", front.port)) as raw:
        raw.sendall(_PREFACE + _request(1, UNARY, b"\0\xff\xff\xff\xffshort"))
        front.recv(10, 0.2)
        echo(front, client)


def test_no_call_is_left_after_many_that_were_answered_cancelled_and_failed(
    front: OwnedFront, client: Client
) -> None:
    hold = threading.Event()
    for round_ in range(10):
        futures = [client.unary.future(b"", timeout=WAIT_S) for _ in range(6)]
        streams = [client.stream(b""), client.bidi(_held(hold)), client.bidi(_held(hold))]
        calls = {event.call_id: event for event in take(front, 9) if isinstance(event, Call)}
        unary = [call for call in calls.values() if call.path == UNARY]
        for future in futures[:2]:
            future.cancel()
        for stream in streams:
            stream.cancel()
        cancelled = 0
        while cancelled < 5:
            cancelled += sum(isinstance(event, Cancel) for event in front.recv(10, 1.0))
        for call in unary[: round_ % 6]:
            front.respond(call.call_id, b"")
        for call in unary:
            front.fail(call.call_id, Status(13, "over"))
    hold.set()
    assert front.open_calls == 0


_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0"


def _request(stream: int, path: str, message: bytes = b"\0\0\0\0\0", *, end: bool = True) -> bytes:
    """A POST as HTTP/2 frames (RFC 9113, RFC 7541), hand-made to be cut off."""
    headers = b"\x83\x86" + b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in (
            (b":path", path.encode()),
            (b":authority", b"test"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )
    return _frame(1, 4, stream, headers) + _frame(0, int(end), stream, message)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream)
        + payload
    )
