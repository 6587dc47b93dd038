"""A gRPC client by the h2 library, against a native `Connection`, without sockets."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    ConnectionTerminated,
    DataReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.events import Event as H2Event

from tideserve.server.front import Event, Status
from tideserve.server.front.native.connection import Connection
from tideserve.server.front.native.shared import Shared
from tideserve.v1.http2 import MESSAGE_PREFIX
from tideserve.v1.methods import Kind

UNARY, STREAM, BIDI = "/test.Echo/Unary", "/test.Echo/Stream", "/test.Echo/Bidi"
METHODS = {UNARY: Kind.UNARY, STREAM: Kind.SERVER_STREAM, BIDI: Kind.BIDI}
PATHS = tuple(METHODS)
LIMIT_BYTES = 1_000_000
FIRST_ID = 7 << 31
PEER = "ipv4:192.0.2.1:1234"
FULL = Status(8, "queue full", 250)


def packed(message: bytes) -> bytes:
    """As it travels in DATA."""
    return MESSAGE_PREFIX.pack(0, len(message)) + message


@dataclass
class Answer:
    """What came on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    trailers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended: bool = False
    reset: int | None = None

    @property
    def messages(self) -> list[bytes]:
        messages, at = [], 0
        while at < len(self.body):
            _, size = MESSAGE_PREFIX.unpack_from(self.body, at)
            at += MESSAGE_PREFIX.size + size
            messages.append(self.body[at - size : at])
        assert at == len(self.body)
        return messages

    @property
    def status(self) -> int | None:
        """None where it has not ended."""
        status = self.trailers.get("grpc-status", self.headers.get("grpc-status"))
        assert (status is not None) <= self.ended
        return None if status is None else int(status)

    @property
    def message(self) -> str:
        return self.trailers.get("grpc-message", self.headers.get("grpc-message", ""))


class Caller:
    """Both ends, and what came to each. `server` answers. `reads` False: it grows no window."""

    def __init__(self, *, max_concurrent_streams: int = 100, **settings: int) -> None:
        self.shared = Shared(METHODS, LIMIT_BYTES, 4 * LIMIT_BYTES, 1 << 30, max_concurrent_streams)
        self.connection = Connection(self.shared, FIRST_ID, PEER)
        self.calls = self.connection.calls
        self.server = self.connection.answers
        self.h2 = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.answers: dict[int, Answer] = {}
        self.reads = True
        self.goaway: ConnectionTerminated | None = None
        self.connection.open()
        self.h2.initiate_connection()
        if settings:
            self.set(**settings)

    def set(self, **settings: int) -> None:
        """Changes the client's settings: `s` and their number."""
        self.h2.update_settings({int(name[1:]): value for name, value in settings.items()})

    def request(
        self, path: str, body: bytes | None = None, *headers: tuple[str, str], ends: bool = True
    ) -> int:
        """Begins a call; its stream. `body` None: headers alone."""
        stream = self.h2.get_next_available_stream_id()
        head: Sequence[tuple[str, str]] = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "test"),
            ("content-type", "application/grpc"),
            *headers,
        ]
        self.answers[stream] = Answer()
        self.h2.send_headers(stream, head, end_stream=body is None and ends)
        if body is not None:
            self.h2.send_data(stream, body, end_stream=ends)
        return stream

    def talk(self, now_s: float = 0.0) -> list[Event]:
        """Both sides say all that they have to say; what the server makes of it."""
        events: list[Event] = []
        while True:
            sent = self.h2.data_to_send()
            if sent:
                events += self.connection.receive(sent, now_s)
            while self.shared.at_work:
                number = self.shared.at_work.popleft() - FIRST_ID
                events += self.connection.work(number, now_s)
            back = self.take_pieces()
            for piece in back:  # h2 takes a new size of frames from the next call on
                for event in self.h2.receive_data(piece):
                    self._on(event)
            if not sent and not back:
                return events

    def take(self) -> bytes:
        """What the server has to say."""
        return b"".join(self.take_pieces())

    def take_pieces(self) -> list[bytes]:
        outbox = self.server.outbox
        pieces = []
        while outbox.waiting_bytes:
            piece = bytes(outbox.take(1)[0])
            pieces.append(piece)
            outbox.on_sent(len(piece))
        self.server.forget_ended()
        return pieces

    def _on(self, event: H2Event) -> None:
        match event:
            case ResponseReceived():
                self._answer(event).headers = {str(k): str(v) for k, v in event.headers}
            case TrailersReceived():
                self._answer(event).trailers = {str(k): str(v) for k, v in event.headers}
            case DataReceived():
                self._answer(event).body += event.data
                if event.flow_controlled_length and self.reads:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case StreamEnded():
                self._answer(event).ended = True
            case StreamReset():
                self._answer(event).reset = event.error_code
            case ConnectionTerminated():
                self.goaway = event

    def _answer(
        self,
        event: ResponseReceived | TrailersReceived | DataReceived | StreamEnded | StreamReset,
    ) -> Answer:
        assert event.stream_id is not None
        return self.answers[event.stream_id]


def assert_nothing_is_left(caller: Caller) -> None:
    """Of its calls, at the server."""
    assert caller.calls._streams == {}
    assert caller.server.outbox._held == {}
    assert caller.calls.open == []
    assert caller.shared.held_bytes == 0
    assert not caller.shared.at_work
    assert caller.shared.unsent.bytes == 0
    assert len(caller.shared.deadlines) == 0
