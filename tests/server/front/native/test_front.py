"""NativeFront: which sockets it looks at, and what it does with clients that are silent, many or
greedy. What both fronts must do is in `tests/server/front/test_front.py`."""

import errno
import gzip
import logging
import os
import select
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hpack import Decoder, Encoder

from tests.server.front.native.caller import BIDI, METHODS, UNARY, packed
from tideserve.server.errors import StartError, UnsupportedFrontError
from tideserve.server.front import (
    Call,
    Cancel,
    Event,
    FrontSettings,
    Status,
    StreamMessage,
    TlsFiles,
)
from tideserve.server.front.native import link as link_module
from tideserve.server.front.native import listener, unsupported
from tideserve.server.front.native.front import NativeFront, poll
from tideserve.server.front.native.inflation import Inflation
from tideserve.server.parts import OWN_AFTER_S
from tideserve.v1 import http2

WAIT_S = 20.0
PING = http2.frame(http2.PING, 0, 0, b"pingpong")
ACCEPT = listener.accept
PONG = http2.frame(http2.PING, http2.ACK, 0, b"pingpong")

Make = Callable[..., NativeFront]


@pytest.fixture
def make() -> Iterator[Make]:
    """Fronts that are started, and closed when the test is over."""
    fronts: list[NativeFront] = []

    def make(**changes: object) -> NativeFront:
        settings = FrontSettings(port=0, **changes)  # type: ignore[arg-type]
        front = NativeFront(tuple(METHODS.items()), settings)
        fronts.append(front)
        front.start()
        return front

    yield make
    for front in fronts:
        front.close()


def request(
    stream: int, path: str = UNARY, body: bytes = packed(b""), *headers: tuple[str, str]
) -> bytes:
    fields = [(":method", "POST"), (":path", path), ("content-type", "application/grpc"), *headers]
    block = Encoder().encode(fields, huffman=False)
    ends = 0 if path == BIDI else http2.END_STREAM
    head = http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block)
    return head + http2.frame(http2.DATA, ends, stream, body)


class Client:
    """A socket, to the port or a path, and the frames that came out of it."""

    def __init__(
        self, front: NativeFront, host: str = "127.0.0.1", path: Path | None = None
    ) -> None:
        self._front = front
        if path is None:
            self.socket = socket.create_connection((host, front.port), timeout=WAIT_S)
        else:
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.connect(str(path))
        self.socket.sendall(http2.PREFACE + http2.settings({}))
        self.socket.setblocking(False)
        self.got = b""
        self.is_closed = False
        self.events: list[Event] = []

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def frames(self) -> list[tuple[int, int, bytes]]:
        """Type, stream and payload of each that is whole."""
        frames, at = [], 0
        while len(self.got) - at >= http2.HEAD.size:
            high, size, kind, _, stream = http2.HEAD.unpack_from(self.got, at)
            at += http2.HEAD.size + (high << 16 | size)
            frames.append((kind, stream, self.got[at - size : at]))
        return frames

    def kinds(self) -> list[int]:
        return [kind for kind, _, _ in self.frames()]

    def status(self, stream: int) -> str | None:
        for kind, number, payload in reversed(self.frames()):
            if (kind, number) == (http2.HEADERS, stream):
                block = {str(name): str(value) for name, value in Decoder().decode(payload)}
                return block.get("grpc-status")
        return None

    def until(self, is_enough: Callable[[], object], step_s: float = 0.005) -> None:
        """Lets the front work and reads, until something is so."""
        end_s = time.monotonic() + WAIT_S
        while not is_enough():
            assert time.monotonic() < end_s, (self.events, self.frames())
            self.events += self._front.recv(100, step_s)
            self.read()

    def read(self) -> None:
        try:
            data = self.socket.recv(1_000_000)
        except BlockingIOError:
            return
        except ConnectionError:
            data = b""
        self.got += data
        self.is_closed |= not data

    def call(self, stream: int, *headers: tuple[str, str]) -> Call:
        self.socket.sendall(request(stream, UNARY, packed(b"question"), *headers))
        before = len(self.events)
        self.until(lambda: len(self.events) > before)
        event = self.events[before]
        assert isinstance(event, Call)
        return event

    def echo(self, stream: int) -> None:
        assert self._front.respond(self.call(stream).call_id, b"answer")
        self.until(lambda: self.status(stream))
        assert self.status(stream) == "0"


@pytest.mark.interpreted
def test_a_streams_messages_that_come_in_one_read_are_one_turns_and_answers_one_write(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = make()
    writes = []
    send = link_module.Link.send

    def count(link: link_module.Link) -> bool:
        writes.append(link.answers.outbox.waiting_bytes)
        return send(link)

    with Client(front) as client:
        client.until(lambda: http2.SETTINGS in client.kinds())
        bodies = [b"%d" % at for at in range(5)]
        client.socket.sendall(request(1, BIDI, b"".join(map(packed, bodies))))
        begun, *messages = front.recv(100, WAIT_S)
        assert isinstance(begun, Call)
        assert messages == [StreamMessage(begun.call_id, body) for body in bodies]
        monkeypatch.setattr(link_module.Link, "send", count)
        for body in bodies:
            assert front.send(begun.call_id, body)
        front.recv(100, 0.0)
        assert len(writes) == 1
        monkeypatch.undo()
        client.until(lambda: client.kinds().count(http2.DATA) == len(bodies))


def test_connections_have_a_bound_and_room_again(make: Make) -> None:
    front = make(max_connections=1)
    with Client(front) as first:
        first.echo(1)
        with Client(front) as second:
            second.until(lambda: second.is_closed)
            assert second.got == b""
        first.echo(3)
    with Client(front) as third:
        third.echo(1)


def test_a_deadline_that_passes_ends_the_call(make: Make) -> None:
    front = make()
    with Client(front) as client:
        call = client.call(1, ("grpc-timeout", "1m"))
        assert call.time_left_s == pytest.approx(0.001)
        assert front.open_calls == 1
        client.until(lambda: client.status(1))
        assert client.status(1) == "4"
        assert client.events[1:] == [Cancel(call.call_id)]
        assert not front.respond(call.call_id, b"late")
        assert front.open_calls == 0
        client.echo(3)


def test_a_client_that_answers_no_ping_is_dropped(make: Make) -> None:
    front = make(keepalive_time_s=0.05, keepalive_timeout_s=0.05)
    with Client(front) as client:
        call = client.call(1)
        client.until(lambda: client.is_closed)
        assert client.kinds().count(http2.PING) == 1
        assert client.events[1:] == [Cancel(call.call_id)]
        assert front.open_calls == 0


def test_a_client_that_answers_pings_stays(make: Make) -> None:
    front = make(keepalive_time_s=0.03, keepalive_timeout_s=5.0)
    with Client(front) as client:
        for pings in range(1, 4):
            client.until(lambda: client.kinds().count(http2.PING) >= pings)  # noqa: B023
            client.socket.sendall(http2.frame(http2.PING, http2.ACK, 0, bytes(8)))
        client.echo(1)


def test_a_client_that_breaks_http2_is_told_and_dropped(make: Make) -> None:
    front = make()
    with Client(front) as good, Client(front) as bad:
        call = bad.call(1)
        bad.socket.sendall(PING + request(2))
        bad.until(lambda: bad.is_closed)
        kind, _, payload = bad.frames()[-1]
        assert (kind, payload[:8]) == (http2.GOAWAY, b"\0\0\0\1\0\0\0\1")
        assert b"odd stream, got 2" in payload
        assert bad.events[1:] == [Cancel(call.call_id)]
        good.echo(1)


@pytest.mark.interpreted
def test_a_client_that_does_not_read_is_not_read(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it asks for without taking it has a bound, and comes when it does read."""
    most = 100_000
    monkeypatch.setattr(link_module, "_MAX_UNSENT_BYTES", most)
    front = make()
    with Client(front) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.echo(1)
        (link,) = front._links.values()
        flood = PING * 10_000
        sent = idle = 0
        while idle < 5:  # neither end's socket takes more
            idle += 1
            try:
                sent += client.socket.send(flood[sent % len(PING) :])
                idle = 0
            except BlockingIOError:
                pass
            front.recv(1, 0.001)
            assert link.answers.outbox.waiting_bytes <= most + link_module._READ_BYTES
        assert link.answers.outbox.waiting_bytes > most
        assert not link.interest & select.EPOLLIN
        whole = sent // len(PING)
        client.until(lambda: len(client.got) >= whole * len(PONG), step_s=0.0)
        assert client.got.endswith(PONG * whole)
        client.socket.sendall(PING[sent % len(PING) :] if sent % len(PING) else b"")
        client.echo(3)


def test_events_that_wait_have_a_bound(make: Make) -> None:
    """A read may bring thousands: no more is read till those were taken."""
    front = make()
    with Client(front) as client:
        client.socket.sendall(request(1, BIDI, b""))
        client.until(lambda: client.events)
        messages = http2.frame(http2.DATA, 0, 1, packed(b"") * 100)
        sent = taken = 0
        data = messages * 1000
        one_read = link_module._READ_BYTES // len(packed(b""))
        for _ in range(200):
            with suppress(BlockingIOError):
                sent += client.socket.send(data[sent % len(messages) :])
            taken += len(front.recv(100, 0.0))
            assert len(front._events) <= one_read + 100
        assert taken > 10_000


def test_who_waits_behind_many_events_is_heard(make: Make) -> None:
    front = make()
    with Client(front) as busy, Client(front) as other:
        busy.socket.sendall(request(1, BIDI, packed(b"") * 3000))
        busy.until(lambda: busy.events, step_s=0.0)
        other.socket.sendall(request(1))
        other.until(lambda: any(isinstance(event, Call) for event in other.events), step_s=0.0)
        assert len(other.events) < 3100


@pytest.mark.interpreted
@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
def test_a_front_that_ran_out_of_files_accepts_again(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, code: int
) -> None:
    front = make()
    fails = iter((True, True))
    with Client(front) as client:
        with monkeypatch.context() as patch:
            patch.setattr(listener, "accept", lambda of: _fail(code, fails, of))
            with caplog.at_level(logging.WARNING):
                client.echo(1)
        assert len([r for r in caplog.records if "no more connections" in r.getMessage()]) == 1


def _fail(code: int, fails: Iterator[bool], of: socket.socket) -> tuple[socket.socket, str]:
    if next(fails, False):
        raise OSError(code, "no")
    return ACCEPT(of)


def test_a_client_that_is_gone_again_is_no_news(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    front = make()
    fails = iter((True,))
    monkeypatch.setattr(listener, "accept", lambda of: _fail(errno.ECONNABORTED, fails, of))
    with Client(front) as client:
        client.echo(1)
    assert caplog.records == []


def test_calls_of_two_connections_are_told_apart(make: Make) -> None:
    front = make()
    with Client(front) as first, Client(front) as second:
        calls = [client.call(1) for client in (first, second)]
        assert calls[0].call_id != calls[1].call_id
        assert front.respond(calls[1].call_id, b"answer")
        second.until(lambda: second.status(1))
        assert first.status(1) is None
        assert front.open_calls == 1
        assert front.fail(calls[0].call_id, Status(5, "none"))
        first.until(lambda: first.status(1))
        assert (first.status(1), second.status(1)) == ("5", "0")


def test_a_request_that_is_inflated_holds_up_nobody(make: Make) -> None:
    """It came out at once, 0.3 s in which the others were not looked at."""
    front = make()
    size = 100_000_000
    bomb = gzip.compress(bytes(size))
    body = http2.MESSAGE_PREFIX.pack(1, len(bomb)) + bomb
    large = request(1, UNARY, body, ("grpc-encoding", "gzip"))
    with Client(front) as busy, Client(front) as other:
        other.echo(1)
        busy.socket.sendall(large[:-1])
        busy.until(lambda: front._shared.held_bytes >= len(bomb) - 1)
        busy.socket.sendall(large[-1:])
        other.socket.sendall(request(3))
        first = front.recv(100, WAIT_S)
        assert [event.payload for event in first if isinstance(event, Call)] == [b""]
        busy.until(lambda: busy.events)
        (call,) = busy.events
        assert isinstance(call, Call)
        assert len(call.payload) == size
        other.echo(5)


@pytest.mark.interpreted
def test_a_mistake_while_a_request_is_inflated_ends_one_connection(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a mistake")

    front = make()
    packed_ = gzip.compress(b"message")
    body = http2.MESSAGE_PREFIX.pack(1, len(packed_)) + packed_
    with Client(front) as good, Client(front) as bad:
        good.echo(1)
        with monkeypatch.context() as patch:
            patch.setattr(Inflation, "step", fail)
            bad.socket.sendall(request(1, UNARY, body, ("grpc-encoding", "gzip")))
            bad.until(lambda: bad.is_closed)
        assert bad.kinds()[-1] == http2.GOAWAY
        good.echo(3)
    assert "failed inside the server" in caplog.text


def open_as(file: int) -> int:
    """How often this process has it open: other tests' threads open others meanwhile."""
    same = os.fstat(file)
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed since
            count += os.path.samestat(os.fstat(int(link.name)), same)
    return count


def test_a_file_goes_ahead_of_what_is_sent_next_over_a_unix_socket(
    make: Make, tmp_path: Path
) -> None:
    front = make(link_folder=tmp_path)
    read, write = os.pipe()
    os.write(write, b"text")
    os.close(write)
    before = open_as(read)
    with Client(front, path=tmp_path / "front.sock") as client, Client(front) as other:
        call = client.call(1)
        assert front.send_file(call.call_id, read)
        assert not front.send_file(call.call_id, read), "one at a time"
        assert front.respond(call.call_id, b"answer")
        assert not front.send_file(other.call(1).call_id, read), "a port carries none"
        front.recv(1, 0.0)
        data, files, _, _ = socket.recv_fds(client.socket, 65_536, 2)
        assert b"answer" in data
        (file,) = files
        assert os.read(file, 100) == b"text"
        os.close(file)
        client.got += data
        client.echo(3)
        # One that nobody reads any more is closed with its connection.
        assert front.send_file(client.call(5).call_id, read)
    while front._links:
        front.recv(10, 0.01)
    assert not front.send_file(call.call_id, read), "it is gone"
    assert open_as(read) == before
    os.close(read)


def test_close_tells_every_client(make: Make) -> None:
    front = make()
    with Client(front) as waiting, Client(front) as idle:
        waiting.call(1)
        idle.echo(1)
        front.close()
        for client in (waiting, idle):
            while not client.is_closed:
                client.read()
            assert client.kinds()[-1] == http2.GOAWAY
        assert waiting.status(1) == "14"
    assert front.recv(10, WAIT_S) == []
    assert front.open_calls == 0


def test_a_caller_over_ipv6_has_a_name(make: Make) -> None:
    try:
        front = make(host="::1")
    except StartError:
        pytest.skip("no IPv6 here")
    with Client(front, "::1") as client:
        assert client.call(1).peer.startswith("ipv6:%5B::1%5D:")


def test_a_front_that_has_not_started_does_nothing() -> None:
    front = NativeFront(tuple(METHODS.items()), FrontSettings(port=0))
    assert (front.port, front.open_calls, front.recv(10, WAIT_S)) == (0, 0, [])
    front.close()


def test_settings_that_need_another_front_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    tls = TlsFiles(tmp_path / "cert", tmp_path / "key")  # type: ignore[operator]
    assert unsupported(FrontSettings()) is None
    with pytest.raises(UnsupportedFrontError, match=r"no TLS: .*--front grpcio"):
        NativeFront((), FrontSettings(tls=tls))
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(UnsupportedFrontError, match="epoll"):
        NativeFront((), FrontSettings())


class CountedPolls:
    """An epoll that has something after so many looks; `waits_s` are what it was told to wait."""

    def __init__(self, looks: int) -> None:
        self.looks = looks
        self.waits_s: list[float] = []

    def poll(self, timeout_s: float, _max_events: int) -> list[tuple[int, int]]:
        self.waits_s.append(timeout_s)
        return [(7, select.EPOLLIN)] if len(self.waits_s) >= self.looks else []


def test_a_busy_front_looks_again_and_again_and_does_not_sleep() -> None:
    epoll = CountedPolls(looks=3)
    assert poll(epoll, 60.0, 60.0) == [(7, select.EPOLLIN)]  # type: ignore[arg-type]
    assert epoll.waits_s == [0, 0, 0]


def test_a_busy_front_sleeps_for_the_rest() -> None:
    epoll = CountedPolls(looks=10**9)
    assert poll(epoll, 0.05, 0.001) == []  # type: ignore[arg-type]
    *busy, slept_s = epoll.waits_s
    assert busy
    assert not any(busy)
    assert 0.01 < slept_s <= 0.05


@pytest.mark.parametrize(("wait_s", "busy_s"), [(0.02, 0.0), (0.0, 0.001)])
def test_without_time_to_wait_or_to_be_busy_it_asks_once(wait_s: float, busy_s: float) -> None:
    epoll = CountedPolls(looks=10**9)
    assert poll(epoll, wait_s, busy_s) == []  # type: ignore[arg-type]
    assert epoll.waits_s == [wait_s]


def test_a_busy_front_takes_calls_and_wakes(make: Make) -> None:
    front = make(busy_poll_s=0.01)
    with Client(front) as client:
        client.echo(1)
        front.wake()
        assert front.recv(8, WAIT_S) == []
        client.echo(3)


def test_a_request_that_takes_long_lets_go_of_what_was_read_with_it(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    front = make()
    real, later_s = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + later_s[0])

    def viewed_bytes() -> int:
        streams = [it for link in front._links.values() for it in link.calls._streams.values()]
        kept = [it for stream in streams if stream.request for it in stream.request.kept()]
        pieces = [piece for pieces in kept for piece in pieces]
        return sum(len(piece) for piece in pieces if isinstance(piece, memoryview))

    with Client(front) as client:
        prefix = http2.MESSAGE_PREFIX.pack(0, 1_000_000)
        for stream in (1, 3):
            whole = request(stream, UNARY, prefix)
            head = whole[: -len(prefix) - http2.HEAD.size]
            client.socket.sendall(head + http2.frame(http2.DATA, 0, stream, prefix))
        sent = [http2.frame(http2.DATA, 0, stream, bytes(14_000)) for stream in (1, 3, 3, 3)]
        client.socket.sendall(b"".join(sent))
        client.until(lambda: viewed_bytes() == 4 * 14_000)
        client.socket.sendall(http2.frame(http2.RST_STREAM, 0, 3, bytes(4)))
        client.until(lambda: viewed_bytes() == 14_000)
        later_s[0] = 2 * OWN_AFTER_S
        client.until(lambda: not viewed_bytes())
    assert not client.is_closed
