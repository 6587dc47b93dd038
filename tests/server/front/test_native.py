"""What only the native front does: ring itself awake, forward streams, refuse settings."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tideserve.server.errors import UnsupportedFrontError
from tideserve.server.front import Call, FrontSettings, HalfClose, TlsFiles
from tideserve.server.front.native import DOORBELL_PATH, NativeFront
from tideserve.v1.methods import Kind

UNARY, BIDI = "/test.Echo/Unary", "/test.Echo/Bidi"
METHODS = ((UNARY, Kind.UNARY), (BIDI, Kind.BIDI))
WAIT_S = 20.0


@pytest.fixture
def front() -> Iterator[NativeFront]:
    front = NativeFront(METHODS, FrontSettings(port=0))
    front.start()
    yield front
    front.close()


@pytest.fixture
def channel(front: NativeFront) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(
        f"127.0.0.1:{front.port}", options=(("grpc.use_local_subchannel_pool", 1),)
    ) as channel:
        yield channel


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (FrontSettings(tls=TlsFiles(Path("a.crt"), Path("a.key"))), "has no TLS"),
        (FrontSettings(max_connections=5), "cannot limit the number of connections"),
    ],
)
def test_settings_it_cannot_serve_are_refused_with_the_way_out(
    settings: FrontSettings, reason: str
) -> None:
    with pytest.raises(UnsupportedFrontError, match=f"{reason}.*--front grpcio"):
        NativeFront(METHODS, settings)


def test_the_constructor_binds_nothing_and_starts_no_thread() -> None:
    before = threading.enumerate()
    front = NativeFront(METHODS, FrontSettings(port=0))
    assert front.port == 0
    assert threading.enumerate() == before
    front.close()


def test_a_ring_from_outside_does_no_harm(front: NativeFront, channel: grpc.Channel) -> None:
    ring: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(DOORBELL_PATH)
    futures = [ring.future(b"x" * n, timeout=WAIT_S) for n in range(100)]
    while not all(future.done() for future in futures):
        assert front.recv(10, 0.05) == []
    for future in futures:
        error = future.exception()
        assert isinstance(error, grpc.RpcError)
        assert error.code() is grpc.StatusCode.UNIMPLEMENTED
    assert front.open_calls == 0
    _wakes(front)


def test_calls_of_the_fallback_have_negative_ids(front: NativeFront, channel: grpc.Channel) -> None:
    unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(UNARY)
    bidi: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(BIDI)
    for _ in range(3):
        future = unary.future(b"", timeout=WAIT_S)
        (call,) = front.recv(1, WAIT_S)
        assert call.call_id > 0
        front.respond(call.call_id, b"")
        assert future.result() == b""
        answers = bidi(iter(()), timeout=WAIT_S)
        begun, half_closed = _take(front, 2)
        assert isinstance(begun, Call)
        assert begun.call_id < 0
        assert half_closed == HalfClose(begun.call_id)
        front.end(begun.call_id)
        assert list(answers) == []


def test_an_event_of_the_fallback_ends_a_wait_at_once(
    front: NativeFront, channel: grpc.Channel
) -> None:
    bidi: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(BIDI)
    begun: list[object] = []  # a call that nobody holds is cancelled

    def begin() -> None:
        begun.append(bidi(iter((b"hello",)), timeout=WAIT_S))

    for _ in range(5):
        timer = threading.Timer(0.05, begin)
        timer.start()
        started_s = time.monotonic()
        events = _take(front, 3, WAIT_S)
        assert time.monotonic() - started_s < WAIT_S / 2
        front.end(events[0].call_id)
        timer.join()


def test_a_lost_doorbell_is_replaced(front: NativeFront) -> None:
    connection = front._doorbell._socket
    assert connection is not None
    connection.shutdown(2)
    _wakes(front)
    assert front._doorbell._socket is not connection


def test_a_doorbell_that_cannot_be_had_makes_recv_look_often(front: NativeFront) -> None:
    front._doorbell.close()
    front.recv(1, 0.0)
    front._ringing = False
    front._waiting = True
    front.wake()
    assert front.recv(1, WAIT_S) == []
    started_s = time.monotonic()
    assert front.recv(1, WAIT_S) == []
    assert time.monotonic() - started_s < 1.0


def test_the_sockets_directory_is_private_and_gone_after_close() -> None:
    front = NativeFront(METHODS, FrontSettings(port=0))
    front.start()
    directory = front._directory
    assert directory is not None
    assert directory.stat().st_mode & 0o777 == 0o700
    front.close()
    assert not directory.exists()


def test_without_bidirectional_methods_there_is_no_fallback() -> None:
    front = NativeFront(METHODS[:1], FrontSettings(port=0))
    before = threading.enumerate()
    front.start()
    try:
        assert threading.enumerate() == before
        _wakes(front)
    finally:
        front.close()


def _wakes(front: NativeFront) -> None:
    """A wake while recv waits, by a thread that sees it wait."""

    def wake() -> None:
        while not front._waiting:
            threading.Event().wait(0.001)
        front.wake()

    waker = threading.Thread(target=wake)
    waker.start()
    started_s = time.monotonic()
    assert front.recv(1, WAIT_S) == []
    waker.join()
    assert time.monotonic() - started_s < WAIT_S / 2


def _take(front: NativeFront, count: int, wait_s: float = 1.0) -> list[Call | HalfClose]:
    events: list[Call | HalfClose] = []
    end_s = time.monotonic() + WAIT_S
    while len(events) < count:
        assert time.monotonic() < end_s, events
        got = front.recv(count - len(events), wait_s)
        events += got  # type: ignore[arg-type]
    return events
