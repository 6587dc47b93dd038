"""A client's socket and the connection that it carries."""

import logging
import os
import select
import socket
from collections.abc import Sequence
from typing import Final

from tideserve.server.front import Event
from tideserve.server.front.native.connection import Connection
from tideserve.server.front.native.errors import ProtocolError
from tideserve.server.front.native.frames import Buffer
from tideserve.server.front.native.shared import Shared
from tideserve.v1 import http2

logger = logging.getLogger(__name__)

#: A stream's number has 31 bits: the connection's goes above them in a call's id.
STREAM_BITS: Final = 31
STREAM_MASK: Final = 2**STREAM_BITS - 1
_READ_BYTES: Final = 256 * 1024
_LARGE_READ_BYTES: Final = 4 * 1024 * 1024
# Up to this size what waits is joined for one send; more goes as it lies.
_JOIN_BYTES: Final = 128 * 1024
_MAX_PIECES: Final = 512  # of one sendmsg; the kernel takes 1024
# A connection whose client does not read is not read either.
_MAX_UNSENT_BYTES: Final = 16 * 1024 * 1024


class Link:
    """Owns the socket. `interest` is what it is to be waited for: epoll's mask."""

    __slots__ = (
        "_file",
        "_socket",
        "answers",
        "calls",
        "connection",
        "fd",
        "heard_s",
        "interest",
        "number",
        "opened_s",
        "peer",
        "pinged_s",
    )

    def __init__(
        self, sock: socket.socket, shared: Shared, number: int, peer: str, now_s: float
    ) -> None:
        self._socket = sock
        self._file: int | None = None  # on its way to the client
        self.fd = sock.fileno()
        self.number = number
        self.peer = peer
        self.connection = Connection(shared, number << STREAM_BITS, peer)
        self.calls = self.connection.calls
        self.answers = self.connection.answers
        self.opened_s = self.heard_s = now_s
        self.pinged_s: float | None = None
        self.interest = select.EPOLLIN

    @property
    def has_output(self) -> bool:
        """There is something to send."""
        return self.answers.outbox.waiting_bytes > 0

    def read(self, now_s: float) -> list[Event] | None:
        """What came. None: the client is gone, or the connection is broken and it was told so."""
        connection = self.connection
        wanted = min(max(_READ_BYTES, connection.expected_bytes), _LARGE_READ_BYTES)
        try:
            data = self._socket.recv(wanted)
        except BlockingIOError:
            return []
        except OSError as error:
            logger.debug("%s: %s", self.peer, error)
            return None
        if not data:
            return None
        self.heard_s = now_s
        try:
            return connection.receive(data, now_s)
        except ProtocolError as error:
            logger.debug("%s: %s", self.peer, error)
            self._leave(error.code, str(error))
            return None
        except Exception:
            # The boundary of one connection: a mistake of ours ends it and nothing else.
            logger.exception("the connection of %s failed inside the server", self.peer)
            self._leave(http2.INTERNAL_ERROR, "the server failed on this connection")
            return None

    def work(self, stream: int, now_s: float) -> list[Event] | None:
        """Goes on with a call in `Shared.at_work`. None: the connection is broken."""
        try:
            return self.connection.work(stream, now_s)
        except Exception:
            logger.exception("the connection of %s failed inside the server", self.peer)
            self._leave(http2.INTERNAL_ERROR, "the server failed on this connection")
            return None

    def send(self) -> bool:
        """Sends until the socket takes no more. False: the client is gone."""
        outbox = self.answers.outbox
        try:
            while outbox.waiting_bytes:
                pieces = outbox.take(_MAX_PIECES)
                if self._file is not None:
                    sent = socket.send_fds(self._socket, pieces, [self._file])
                    self._close_file()
                elif len(pieces) == 1:
                    sent = self._socket.send(pieces[0])
                elif outbox.waiting_bytes <= _JOIN_BYTES:
                    sent = self._socket.send(b"".join(pieces))
                else:
                    sent = self._socket.sendmsg(pieces)
                outbox.on_sent(sent)
        except BlockingIOError:
            pass  # the rest goes when epoll says so
        except OSError as error:
            logger.debug("%s: %s", self.peer, error)
            return False
        self.answers.forget_ended()
        return True

    def respond_parts(self, stream: int, parts: Sequence[Buffer]) -> bool:
        """Answers a unary call with what the parts hold now: what the socket does not take at once
        is copied. False: the call is already gone."""
        answered = self.answers.respond_parts(stream, parts)
        self.send()  # a client that is gone is noticed again
        self.answers.outbox.keep()
        return answered

    def pass_file(self, fd: int) -> bool:
        """Sends a copy of an open file with what is sent next. False: another one waits, or this
        socket carries none."""
        if self._socket.family != socket.AF_UNIX or self._file is not None:
            return False
        self._file = os.dup(fd)
        return True

    def _leave(self, code: int, why: str) -> None:
        self.connection.leave(code, why)
        self.send()

    def wanted_interest(self) -> int:
        """What to wait for from now on."""
        waiting_bytes = self.answers.outbox.waiting_bytes
        interest = select.EPOLLIN if waiting_bytes <= _MAX_UNSENT_BYTES else 0
        return interest | select.EPOLLOUT if waiting_bytes else interest

    def shut_down(self) -> bool:
        """Says that nothing more will come. False: the client is gone."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return False
        return True

    def has_ended(self) -> bool:
        """Reads what nobody wants any more; True at its end."""
        try:
            return not self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Closes the socket, and ends the calls that were left: `connection.take_events`."""
        self.calls.on_lost()
        self._socket.close()
        self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None
