"""The other end of the replica's connections, by the h2 library."""

from collections.abc import Callable, Sequence

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset

from tideserve.replica.http2 import CallConnection

ANSWER_HEADERS = [(":status", "200"), ("content-type", "application/grpc")]
OK = [("grpc-status", "0")]


class Server:
    """The other end: what it was sent, and a way to answer."""

    def __init__(self, **settings_: int) -> None:
        self.h2 = H2Connection(H2Configuration(client_side=False, header_encoding="utf-8"))
        self.h2.initiate_connection()
        if settings_:
            self.h2.update_settings({int(key[1:]): value for key, value in settings_.items()})
        self.requests: list[dict[str, str]] = []
        self.bodies: dict[int, bytes] = {}
        self.ended: list[int] = []
        self.reset: list[int] = []
        self.reads = True

    def take(self, data: bytes) -> None:
        for event in self.h2.receive_data(data) if data else []:
            self._on(event)

    def _on(self, event: Event) -> None:
        match event:
            case RequestReceived():
                self.requests.append({str(k): str(v) for k, v in event.headers})
                self.bodies[event.stream_id] = b""
            case DataReceived():
                self.bodies[event.stream_id] += event.data
                if event.flow_controlled_length and self.reads:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case StreamEnded():
                self.ended.append(event.stream_id)
            case StreamReset():
                self.reset.append(event.stream_id)

    def answer(self, stream: int, message: bytes, trailers: list[tuple[str, str]] = OK) -> None:
        self.h2.send_headers(stream, ANSWER_HEADERS)
        self.say(stream, message)
        self.h2.send_headers(stream, trailers, end_stream=True)

    def say(self, stream: int, message: bytes) -> None:
        """A message, its headers have been sent."""
        body = b"\0" + len(message).to_bytes(4) + message
        frame = self.h2.max_outbound_frame_size
        for at in range(0, len(body), frame):
            self.h2.send_data(stream, body[at : at + frame])


Cut = Callable[[bytes], Sequence[bytes]]


def in_pieces(cuts: Sequence[int]) -> Cut:
    """Cuts what comes into pieces of these sizes, over and over."""

    def cut(data: bytes) -> Sequence[bytes]:
        parts, at, turn = [], 0, 0
        while at < len(data):
            size = cuts[turn % len(cuts)]
            parts.append(data[at : at + size])
            at, turn = at + size, turn + 1
        return parts

    return cut


def whole(data: bytes) -> Sequence[bytes]:
    return [data]


def talk(client: CallConnection, server: Server, cut: Cut = whole) -> None:
    """Both sides say all that they have to say."""
    while True:
        sent = client.take_outgoing()
        server.take(sent)
        back = server.h2.data_to_send()
        for part in cut(back):
            client.receive(part)
        if not sent and not back:
            return
