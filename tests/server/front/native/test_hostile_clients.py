"""What a hostile or an odd client found: each of these once hurt the other clients."""

import errno
import socket
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress

import pytest
from hpack import Decoder

from tideserve.server.front import Call, Cancel, Event, FrontSettings, Status, StreamMessage
from tideserve.server.front.native.connection import Connection
from tideserve.server.front.native.errors import ProtocolError
from tideserve.server.front.native.front import NativeFront
from tideserve.server.front.native.headers import status_block
from tideserve.server.front.native.shared import Shared
from tideserve.v1 import http2
from tideserve.v1.methods import Kind

UNARY, BIDI = "/test.Echo/Unary", "/test.Echo/Bidi"
FIRST_ID = 1 << 31
RESERVED_BIT = 1 << 31
#: A turn of the loop that takes longer than this is felt by every client.
TURN_S = 1.0


def shared(max_held_bytes: int = 1 << 30, max_concurrent_streams: int = 4096) -> Shared:
    methods = {UNARY: Kind.UNARY, BIDI: Kind.BIDI}
    return Shared(methods, 64 << 20, max_held_bytes, 1 << 30, max_concurrent_streams)


def connected(of: Shared | None = None) -> Connection:
    """A connection whose client has taken the server's settings."""
    connection = Connection(of or shared(), FIRST_ID, "ipv4:127.0.0.1:1")
    connection.open()
    ack = http2.frame(http2.SETTINGS, http2.ACK, 0, b"")
    connection.receive(http2.PREFACE + http2.settings({}) + ack, 0.0)
    return connection


def block(path: str = UNARY) -> bytes:
    return b"\x83\x86" + b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value
        for name, value in (
            (b":path", path.encode()),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        )
    )


def headers(stream: int, path: str = UNARY) -> bytes:
    return http2.frame(http2.HEADERS, http2.END_HEADERS, stream, block(path))


def data(stream: int, payload: bytes, *, ends: bool = False) -> bytes:
    return http2.frame(http2.DATA, http2.END_STREAM if ends else 0, stream, payload)


def message(payload: bytes) -> bytes:
    return http2.MESSAGE_PREFIX.pack(0, len(payload)) + payload


def call_of(events: list[Event]) -> Call:
    (call,) = events
    assert isinstance(call, Call)
    return call


def took_s(what: Callable[[], object]) -> float:
    """CPU, which is the same beside other work."""
    started_s = time.thread_time()
    what()
    return time.thread_time() - started_s


def test_the_reserved_bit_of_a_stream_gives_no_other_connections_call() -> None:
    connection = connected()
    stream = 1 | RESERVED_BIT
    call = call_of(connection.receive(headers(stream) + data(stream, message(b""), ends=True), 0.0))
    assert call.call_id == FIRST_ID + 1
    assert connection.answers.respond(1, b"")


def test_many_small_messages_in_one_read_take_the_time_of_their_bytes() -> None:
    """Copying what was left after each of them took minutes for 4 MB."""
    connection = connected()
    connection.receive(headers(1, BIDI), 0.0)
    count = 100_000
    sent = data(1, message(b"abcde") * count)
    events: list[Event] = []
    assert took_s(lambda: events.extend(connection.receive(sent, 0.0))) < TURN_S
    assert [event.payload for event in events if isinstance(event, StreamMessage)] == [
        b"abcde"
    ] * count


@pytest.mark.parametrize("part", [b"ab", b""])
def test_small_parts_take_the_memory_that_is_counted(part: bytes) -> None:
    """2 GB of what counted as 64 MB: an object a part, and those of no bytes too."""
    of = shared()
    connection = connected(of)
    size = 1 << 20
    connection.receive(headers(1) + data(1, http2.MESSAGE_PREFIX.pack(0, size)), 0.0)
    parts = data(1, part) * 1000
    tracemalloc.start()
    for _ in range(200):
        connection.receive(parts, 0.0)
    taken_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert of.held_bytes == 200_000 * len(part)
    assert taken_bytes < 2 * of.held_bytes + 256 * 1024
    rest = data(1, bytes(size - of.held_bytes), ends=True)
    call = call_of(connection.receive(rest, 0.0))
    assert call.whole() == part * 200_000 + bytes(size - 200_000 * len(part))
    assert of.held_bytes == 0


@pytest.mark.parametrize(
    "growth",
    [
        http2.window_update(0, 1),
        http2.settings({http2.INITIAL_WINDOW_SIZE: 0}),
        http2.settings({http2.INITIAL_WINDOW_SIZE: 1}),
    ],
    ids=["window", "settings", "settings-that-grow"],
)
def test_windows_that_grow_byte_by_byte_do_not_stop_the_loop(growth: bytes) -> None:
    """Each looked at every answer that waits: 23 s for one read of them and 4096 answers."""
    connection = connected()
    connection.receive(http2.settings({http2.INITIAL_WINDOW_SIZE: 0}), 0.0)
    for stream in range(1, 2 * 4096, 2):
        connection.receive(headers(stream) + data(stream, message(b""), ends=True), 0.0)
        assert connection.answers.respond(stream, b"answer")
    flood = growth * (256 * 1024 // len(growth))
    assert took_s(lambda: connection.receive(flood, 0.0)) < TURN_S
    outbox = connection.answers.outbox
    outbox.on_sent(outbox.waiting_bytes)
    connection.receive(http2.settings({http2.INITIAL_WINDOW_SIZE: 100}), 0.0)
    sent = b"".join(outbox.take(100_000))
    assert sent.count(b"answer") == 4096


def test_headers_are_bounded_by_what_they_unpack_to() -> None:
    """65,000 bytes of a static table's index are 4 MB of headers, which were kept as well."""
    connection = connected()
    bomb = block() + b"\x90" * 65_000
    flags = http2.END_HEADERS
    with pytest.raises(ProtocolError, match="at most 65536 bytes of headers"):
        connection.receive(http2.frame(http2.HEADERS, flags, 1, bomb), 0.0)
    connection = connected()
    bomb = block() + b"\x90" * 1500
    with pytest.raises(ProtocolError, match="at most 65536 bytes of headers"):
        connection.receive(http2.frame(http2.HEADERS, flags, 1, bomb), 0.0)


def test_a_client_whose_headers_are_large_and_differ_is_not_remembered() -> None:
    connection = connected()
    tracemalloc.start()
    for number in range(64):
        key = b"key-%02d" % number
        large = block() + b"\0\x06" + key + b"\x7f\x81\xf6\x02" + bytes(48_000)
        stream = 1 + 2 * number
        connection.receive(http2.frame(http2.HEADERS, http2.END_HEADERS, stream, large), 0.0)
        connection.receive(data(stream, message(b""), ends=True), 0.0)
        assert connection.answers.respond(stream, b"")
    taken_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken_bytes < 1 << 20


def test_a_whole_message_whose_call_goes_on_counts_as_held() -> None:
    """Its caller may never end the request: 4096 such streams of 128 MB were bounded by nothing."""
    of = shared(max_held_bytes=10_000)
    connection = connected(of)
    for stream in (1, 3):
        connection.receive(headers(stream) + data(stream, message(bytes(4000))), 0.0)
    assert of.held_bytes == 8000
    connection.receive(headers(5) + data(5, message(bytes(4000))), 0.0)
    assert of.held_bytes == 8000
    assert connection.answers.fail(5, Status(13, "")) is False  # it was refused
    reset = http2.frame(http2.RST_STREAM, 0, 1, http2.CANCEL.to_bytes(4))
    assert connection.receive(reset, 0.0) == []
    assert of.held_bytes == 4000
    assert len(call_of(connection.receive(data(3, b"", ends=True), 0.0)).payload) == 4000
    assert of.held_bytes == 0
    connection.receive(headers(7) + data(7, message(bytes(4000)) * 2), 0.0)
    assert of.held_bytes == 0
    connection.receive(headers(9) + data(9, message(bytes(4000)) + b"\1\2\3"), 0.0)
    connection.calls.on_lost()
    assert of.held_bytes == 0


def test_who_sends_faster_than_is_served_waits_at_its_socket() -> None:
    """Each turn took 256 events out of a queue and put what a socket had into it: thousands."""
    front = NativeFront(((BIDI, Kind.BIDI),), FrontSettings(port=0))
    front.start()
    part = memoryview(data(1, message(bytes(1000)) * 250))
    sent_bytes, at = 0, 0
    try:
        with socket.create_connection(("127.0.0.1", front.port)) as client:
            client.sendall(http2.PREFACE + http2.settings({}) + headers(1, BIDI))
            while not front.recv(1, 1.0):
                pass
            client.setblocking(False)
            for _ in range(400):
                with suppress(BlockingIOError):
                    sent = client.send(part[at:])
                    sent_bytes += sent
                    at = (at + sent) % len(part)
                front.recv(1, 0.0)
            assert sent_bytes < 32 << 20  # what both sockets hold, of 100 MB
    finally:
        front.close()


@pytest.mark.parametrize("how", ["respond", "fail", "end", "not-grpc"])
def test_a_client_that_wants_a_smaller_header_table_is_told_that_it_is(how: str) -> None:
    """h2load --header-table-size=0 and others end a connection whose first block does not say."""
    connection = connected()
    outbox = connection.answers.outbox
    outbox.on_sent(outbox.waiting_bytes)
    smaller = http2.settings({http2.HEADER_TABLE_SIZE: 0})
    if how == "not-grpc":
        get = http2.frame(http2.HEADERS, http2.END_HEADERS | http2.END_STREAM, 1, b"\x82\x86\x84")
        connection.receive(smaller + get, 0.0)
    elif how == "end":
        connection.receive(smaller + headers(1, BIDI), 0.0)
        connection.answers.end(1)
    else:
        connection.receive(smaller + headers(1) + data(1, message(b""), ends=True), 0.0)
        if how == "respond":
            connection.answers.respond(1, b"")
        else:
            connection.answers.fail(1, Status(13, ""))
    decoder = Decoder()
    decoder.max_allowed_table_size = 0
    blocks = [frame for kind, frame in frames(outbox.take(100)) if kind == http2.HEADERS]
    assert decoder.decode(blocks[0])
    connection.receive(headers(3) + data(3, message(b""), ends=True), 0.0)
    connection.answers.respond(3, b"")
    blocks = [frame for kind, frame in frames(outbox.take(100)) if kind == http2.HEADERS]
    assert [block[:1] == b"\x20" for block in blocks] == [True] + [False] * (len(blocks) - 1)


def frames(pieces: Sequence[bytes | memoryview]) -> list[tuple[int, bytes]]:
    """Types and payloads."""
    sent = b"".join(pieces)
    found = []
    at = 0
    while at < len(sent):
        high, length, kind, _, _ = http2.HEAD.unpack_from(sent, at)
        begin = at + http2.HEAD.size
        at = begin + (high << 16 | length)
        found.append((kind, sent[begin:at]))
    return found


def test_pings_whose_client_does_not_read_go_in_few_pieces() -> None:
    """A million pieces took 400 ms to leave, a millisecond of moving the list for each send."""
    connection = connected()
    ping = http2.frame(http2.PING, 0, 0, bytes(8))
    for _ in range(100):
        connection.receive(ping * 1000, 0.0)
    outbox = connection.answers.outbox
    pieces = outbox.take(1_000_000)
    assert len(pieces) < 1000
    answers = http2.frame(http2.PING, http2.ACK, 0, bytes(8)) * 100_000
    assert b"".join(pieces).endswith(answers)
    first_bytes = len(pieces[0])
    outbox.on_sent(first_bytes + 5)
    connection.receive(ping, 0.0)
    left = b"".join(outbox.take(1_000_000))
    assert len(left) == outbox.waiting_bytes
    assert left.endswith(answers[-17 * 50_000 :])


@pytest.fixture
def front() -> Iterator[NativeFront]:
    front = NativeFront(((UNARY, Kind.UNARY), (BIDI, Kind.BIDI)), FrontSettings(port=0))
    front.start()
    yield front
    front.close()


def until_closed(front: NativeFront, client: socket.socket) -> bool:
    """The front has ended it."""
    client.settimeout(0.01)
    for _ in range(500):
        assert front.recv(10, 0.0) == []
        try:
            if not client.recv(65_536):
                return True
        except TimeoutError:
            pass
        except ConnectionResetError:
            return True
    return False


@pytest.mark.interpreted
def test_a_mistake_of_ours_ends_one_connection(
    front: NativeFront, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It ended the dispatcher's thread, and the server."""

    def fail(*_: object) -> list[Event]:
        raise KeyError("a mistake")

    good = socket.create_connection(("127.0.0.1", front.port))
    good.sendall(http2.PREFACE + http2.settings({}) + headers(1, BIDI))
    while not front.recv(10, 1.0):
        pass
    with monkeypatch.context() as patch, good:
        patch.setattr(Connection, "receive", fail)
        with socket.create_connection(("127.0.0.1", front.port)) as client:
            client.sendall(http2.PREFACE)
            assert until_closed(front, client)
        patch.undo()
        good.sendall(data(1, message(b"still here")))
        events: list[Event] = []
        while not events:
            events = front.recv(10, 1.0)
    assert [event.payload for event in events if isinstance(event, StreamMessage)] == [
        b"still here"
    ]
    assert "failed inside the server" in caplog.text


@pytest.mark.interpreted
@pytest.mark.parametrize("said", [b"", http2.PREFACE[:5]])
def test_a_client_that_never_says_what_it_speaks_is_let_go(
    front: NativeFront, monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    """It had its socket for the two hours of keepalive."""
    monkeypatch.setattr("tideserve.server.front.native.front._PREFACE_S", 0.2)
    with (
        socket.create_connection(("127.0.0.1", front.port)) as client,
        socket.create_connection(("127.0.0.1", front.port)) as quiet,
    ):
        client.sendall(said)
        quiet.sendall(http2.PREFACE + http2.settings({}))
        assert until_closed(front, client)
        assert not front.recv(10, 0.3)
        quiet.sendall(headers(1, BIDI))
        assert call_of(front.recv(10, 5.0)).path == BIDI


@pytest.mark.parametrize("window", [1, 3, 4, 5])
def test_a_window_smaller_than_a_prefix_gets_its_answer(window: int) -> None:
    """Its client waited for ever: a window that is not used up is not given back."""
    connection = connected()
    outbox = connection.answers.outbox
    connection.receive(http2.settings({http2.INITIAL_WINDOW_SIZE: window}), 0.0)
    connection.receive(headers(1) + data(1, message(b""), ends=True), 0.0)
    connection.answers.respond(1, b"an answer")
    got = b""
    for _ in range(30):
        sent = frames(outbox.take(100))
        outbox.on_sent(outbox.waiting_bytes)
        parts = b"".join(payload for kind, payload in sent if kind == http2.DATA)
        assert len(parts) <= window
        got += parts
        if parts:
            connection.receive(http2.window_update(1, len(parts)), 0.0)
    assert got == message(b"an answer")
    assert connection.calls.on_window(1, 1)  # its stream is no more
    assert not connection.answers.outbox.ended


@pytest.mark.interpreted
def test_no_more_files_is_said_once(
    front: NativeFront, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: socket.socket) -> tuple[socket.socket, str]:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("tideserve.server.front.native.listener.accept", fail)
        client = socket.create_connection(("127.0.0.1", front.port))
        assert front.recv(10, 0.3) == []
    with client:
        client.sendall(http2.PREFACE + http2.settings({}) + headers(1, BIDI))
        assert call_of(front.recv(10, 5.0)).path == BIDI
    assert caplog.text.count("no more connections for now") == 1


@pytest.mark.interpreted
def test_a_client_that_stalls_does_not_keep_what_the_others_need(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One with 1 GB of half a request each, frozen, had every request of 1 MB of the others refused
    until it went."""
    monkeypatch.setattr("tideserve.server.front.native.front._MAX_HELD_BYTES", 1)
    monkeypatch.setattr("tideserve.server.front.native.pace._SHORT_WINDOW_S", 0.1)
    monkeypatch.setattr("tideserve.server.front.native.front.LOOK_S", 0.1)
    settings = FrontSettings(port=0, max_message_bytes=10_000)
    front = NativeFront(((UNARY, Kind.UNARY), (BIDI, Kind.BIDI)), settings)
    front.start()
    part = http2.MESSAGE_PREFIX.pack(0, 9000) + bytes(8000)
    preface = http2.PREFACE + http2.settings({})
    try:
        with (
            socket.create_connection(("127.0.0.1", front.port)) as stalled,
            socket.create_connection(("127.0.0.1", front.port)) as good,
        ):
            stalled.sendall(preface + headers(1, BIDI) + data(1, part) + headers(3) + data(3, part))
            begun = call_of(front.recv(10, 5.0))
            assert front.recv(10, 5.0) == [Cancel(begun.call_id)]
            good.sendall(preface + headers(1) + data(1, part))
            assert front.recv(10, 0.05) == []
            good.sendall(data(1, bytes(1000), ends=True))
            assert len(call_of(front.recv(10, 5.0)).payload) == 9000
            stalled.sendall(headers(5, BIDI))  # its other calls are served
            assert call_of(front.recv(10, 5.0)).path == BIDI
    finally:
        front.close()


def test_the_same_refusal_is_written_once() -> None:
    """At 40 us each, one read of 4,000 calls that are refused was 150 ms of the loop."""
    refusal = Status(8, "the queue is full", 100)
    assert status_block(refusal, begins=True) is status_block(refusal, begins=True)
    assert status_block(refusal, begins=True) != status_block(refusal, begins=False)
    assert status_block(refusal, begins=True) != status_block(Status(8, "other"), begins=True)
