"""One gRPC method called over blocking sockets of its own, in the caller's thread.

Each call has a connection to itself: two threads call at a time (compute and link), so there
are two. A thread that waits for an answer waits in the kernel; nothing hands the answer over.
"""

import socket
import struct
import threading
from collections.abc import Sequence
from time import monotonic
from typing import Final

from tideserve.replica.errors import CallBrokenError, Http2Error
from tideserve.replica.http2 import Reply, UnaryConnection, request_block

_CONNECT_TIMEOUT_S: Final = 2.0
_READ_BYTES: Final = 65_536
_LARGE_READ_BYTES: Final = 1 << 20
# One that was left alone for longer is looked at before it is used: the server may have asked
# whether it lives, or have gone.
_UNWATCHED_S: Final = 0.5


class UnaryMethod:
    """Owns the connections. `call` from several threads; `close` from any ends all calls."""

    def __init__(
        self, address: str, path: str, metadata: Sequence[tuple[str, str]], timeout_s: int
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        authority = "localhost" if address.startswith("unix:") else address
        self._request_headers = request_block(path, authority, timeout_s, metadata)
        self._lock = threading.Lock()  # guards the two below
        self._connections: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._closed = False

    def call(self, message: bytes) -> Reply:
        """One call. Raises `CallBrokenError` where no answer came."""
        try:
            connection = self._take()
        except OSError as error:
            raise CallBrokenError(f"cannot connect to {self._address}: {error}") from error
        try:
            reply = connection.call(message)
        except (OSError, Http2Error) as error:
            self._drop(connection)
            raise CallBrokenError(f"{self._address}: {error}") from error
        with self._lock:
            keep = connection.reusable and not self._closed
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

    def _take(self) -> "_Connection":
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

    def _connect(self) -> "_Connection":
        connection = _Connection(_open_socket(self._address), self._request_headers)
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

    def _drop(self, connection: "_Connection") -> None:
        with self._lock:
            self._connections.discard(connection)
        connection.close()


class _Connection:
    """A socket and its protocol, used by one thread at a time."""

    def __init__(self, sock: socket.socket, request_headers: bytes) -> None:
        self._socket = sock
        self._protocol = UnaryConnection(request_headers)
        self._used_s = monotonic()

    @property
    def reusable(self) -> bool:
        return self._protocol.reusable

    def open(self, timeout_s: int) -> None:
        """Waits until each side has the other's settings."""
        # The kernel's timeouts: Python's own would add a poll to each read.
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._socket.setsockopt(socket.SOL_SOCKET, option, struct.pack("@ll", timeout_s, 0))
        self._socket.setblocking(True)
        self._protocol.open()
        while not self._protocol.ready:
            self._turn()

    def call(self, message: bytes) -> Reply:
        protocol = self._protocol
        protocol.begin(message)
        while protocol.reply is None:
            self._turn()
        self._used_s = monotonic()
        return protocol.reply

    def lives(self) -> bool:
        """False: the server has closed it. Answers what the server asked meanwhile."""
        if monotonic() - self._used_s < _UNWATCHED_S:
            return True
        try:
            while data := self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT):
                self._protocol.receive(data)
                self._socket.sendall(self._protocol.take_outgoing())
        except BlockingIOError:
            return self._protocol.reusable
        except (OSError, Http2Error):
            return False
        return False

    def shut_down(self) -> None:
        """Wakes the thread that uses it; that one closes it."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it is no longer connected: nothing waits on it

    def close(self) -> None:
        self._socket.close()

    def _turn(self) -> None:
        protocol = self._protocol
        while out := protocol.take_outgoing():
            self._socket.sendall(out)
        wanted = min(max(_READ_BYTES, protocol.expected_bytes), _LARGE_READ_BYTES)
        try:
            data = self._socket.recv(wanted)
        except BlockingIOError as error:
            raise TimeoutError("expected an answer in time, got none") from error
        if not data:
            raise ConnectionResetError("the server closed the connection")
        protocol.receive(data)


def _open_socket(address: str) -> socket.socket:
    """Connects to HOST:PORT or unix:/PATH. Raises OSError."""
    if address.startswith("unix:"):
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            unix.settimeout(_CONNECT_TIMEOUT_S)
            unix.connect(address.removeprefix("unix:"))
        except OSError:
            unix.close()
            raise
        return unix
    host, _, port = address.rpartition(":")
    tcp = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return tcp
