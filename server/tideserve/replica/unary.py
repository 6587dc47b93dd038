"""One gRPC method called over blocking sockets of its own, in the caller's thread.

Each call that is out has a connection to itself: two threads call Exchange at a time (compute
and link), so there are two. A thread that waits for an answer waits in the kernel; nothing hands
the answer over.
"""

import threading
from collections.abc import Sequence

from tideserve.replica.errors import CallBrokenError, Http2Error
from tideserve.replica.http2 import request_block
from tideserve.replica.messages import Reply, reply_of
from tideserve.replica.sockets import CallSocket, authority_of, open_socket


class UnaryMethod:
    """Owns the connections. `call` from several threads; `close` from any ends all calls."""

    def __init__(
        self, address: str, path: str, metadata: Sequence[tuple[str, str]], timeout_s: int
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._request_headers = request_block(path, authority_of(address), timeout_s, metadata)
        self._lock = threading.Lock()  # guards the two below
        self._connections: set[CallSocket] = set()
        self._idle: list[CallSocket] = []
        self._closed = False

    def call(self, message: bytes) -> Reply:
        """One call. Raises `CallBrokenError` where no answer came."""
        try:
            connection = self._take()
        except OSError as error:
            raise CallBrokenError(f"cannot connect to {self._address}: {error}") from error
        try:
            reply = _call(connection, message)
        except (OSError, Http2Error) as error:
            self._drop(connection)
            raise CallBrokenError(f"{self._address}: {error}") from error
        with self._lock:
            keep = connection.protocol.reusable and not self._closed
            if keep:
                self._idle.append(connection)
        if not keep:
            self._drop(connection)
        return reply

    def close(self) -> None:
        """Ends every call that is out, and all later ones."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            busy = self._connections.difference(idle)
            self._connections.clear()
        for connection in idle:
            connection.close()
        for connection in busy:
            connection.shut_down()

    def _take(self) -> CallSocket:
        while True:
            with self._lock:
                if self._closed:
                    raise CallBrokenError("the life is closed")
                connection = self._idle.pop() if self._idle else None
            if connection is None:
                return self._connect()
            if connection.lives():
                return connection
            self._drop(connection)

    def _connect(self) -> CallSocket:
        connection = CallSocket(open_socket(self._address), self._request_headers)
        with self._lock:
            if self._closed:
                connection.close()
                raise CallBrokenError("the life is closed")
            self._connections.add(connection)
        try:
            connection.open(self._timeout_s)
        except (OSError, Http2Error) as error:
            self._drop(connection)
            raise CallBrokenError(f"{self._address}: {error}") from error
        return connection

    def _drop(self, connection: CallSocket) -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()


def _call(connection: CallSocket, message: bytes) -> Reply:
    protocol = connection.protocol
    protocol.begin(message)
    while protocol.ending is None:
        connection.turn()
    connection.left_alone()
    return reply_of(protocol.ending, protocol.take_body())
