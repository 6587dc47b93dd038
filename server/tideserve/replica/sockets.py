"""A blocking socket that speaks HTTP/2 for one thread, which waits for answers in the kernel."""

import logging
import os
import socket
import struct
from time import monotonic
from typing import Final

from tideserve.replica.errors import Http2Error
from tideserve.replica.http2 import CallConnection

_LOG: Final = logging.getLogger(__name__)
_CONNECT_TIMEOUT_S: Final = 2.0
_READ_BYTES: Final = 65_536
_LARGE_READ_BYTES: Final = 1 << 20
# One that was left alone for longer is looked at before it is used: the server may have asked
# whether it lives, or have gone.
_UNWATCHED_S: Final = 0.5
# A host that vanished, or a network that drops everything, is noticed on a silent connection
# within 10 + 3 * 5 s (tcp(7)): the life line may be silent for days.
_KEEPALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
# And as soon where something was sent that nobody acknowledges.
_UNACKNOWLEDGED_MS: Final = 25_000


class CallSocket:
    """A connected socket and its protocol, used by one thread at a time; `shut_down` from any.

    What waits raises `OSError` where the connection breaks or its time is over, and
    `Http2Error`.
    """

    def __init__(
        self, sock: socket.socket, request_headers: bytes, *, takes_files: bool = False
    ) -> None:
        self._socket = sock
        self._takes_files = takes_files
        self._file: int | None = None
        self.protocol = CallConnection(request_headers)
        self._used_s = monotonic()

    def open(self, timeout_s: int) -> None:
        """Waits until each side has the other's settings. The time limit goes for every later
        wait too, until `limit` sets another."""
        self.limit(timeout_s)
        self._socket.setblocking(True)
        self.protocol.open()
        while not self.protocol.ready:
            self.turn()
        if not self.protocol.reusable:
            raise Http2Error("the server leaves")

    def limit(self, receive_timeout_s: int) -> None:
        """How long a wait for what comes may last; 0: for ever."""
        # The kernel's timeouts: Python's own would add a poll to each read.
        timeout = struct.pack("@ll", receive_timeout_s, 0)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
        if receive_timeout_s:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeout)

    def turn(self) -> None:
        """Sends what is due, then waits for something to come."""
        protocol = self.protocol
        while out := protocol.take_outgoing():
            self._socket.sendall(out)
        wanted = min(max(_READ_BYTES, protocol.expected_bytes), _LARGE_READ_BYTES)
        try:
            data = (
                self._receive_with_file(wanted) if self._takes_files else self._socket.recv(wanted)
            )
        except BlockingIOError as error:
            raise TimeoutError("expected an answer in time, got none") from error
        if not data:
            raise ConnectionResetError("the server closed the connection")
        protocol.receive(data)

    def take_file(self) -> int | None:
        """The latest open file that came beside the bytes; the caller's to close."""
        file, self._file = self._file, None
        return file

    def left_alone(self) -> None:
        """Nothing reads it from now on: `lives` looks after it."""
        self._used_s = monotonic()

    def lives(self) -> bool:
        """False: the server has closed it. Answers what the server asked meanwhile."""
        if monotonic() - self._used_s < _UNWATCHED_S:
            return True
        try:
            while data := self._socket.recv(_READ_BYTES, socket.MSG_DONTWAIT):
                self.protocol.receive(data)
                self._socket.sendall(self.protocol.take_outgoing())
        except BlockingIOError:
            return self.protocol.reusable
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
        self._close_file()

    def _receive_with_file(self, wanted: int) -> bytes:
        data, files, _, _ = socket.recv_fds(self._socket, wanted, 1)
        if files:
            self._close_file()
            os.set_inheritable(files[0], False)  # Python 3.11 drops MSG_CMSG_CLOEXEC
            self._file = files[0]
        return data

    def _close_file(self) -> None:
        file = self.take_file()
        if file is not None:
            os.close(file)


def open_socket(address: str) -> socket.socket:
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
    try:
        tcp = socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S)
    except UnicodeError as error:
        raise OSError(f"expected a host name, got {host!r}") from error
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for option in _KEEPALIVE:
        tcp.setsockopt(*option)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
    return tcp


def nearest_of(local_address: str, address: str) -> str:
    """`local_address` where somebody listens there now, else `address`."""
    if not local_address:
        return address
    try:
        open_socket(local_address).close()
    except OSError as error:
        _LOG.warning("%s is dialled, for %s cannot be: %s", address, local_address, error)
        return address
    return local_address


def authority_of(address: str) -> str:
    """What a request calls the server at `address`."""
    return "localhost" if address.startswith("unix:") else address
