"""Where clients come in."""

import errno
import logging
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from tideserve.server.errors import StartError
from tideserve.server.front import FrontSettings
from tideserve.server.front.address import (
    bind_error,
    first_address,
    link_socket_error,
    own_socket_error,
)

logger = logging.getLogger(__name__)

_BACKLOG: Final = 1024
_ACCEPTS: Final = 64  # in a turn
# Who may call at the port may call here: what counts is the token.
_LINK_FOLDER_MODE: Final = 0o711
_LINK_SOCKET_MODE: Final = 0o666
# A server whose backlog is full lets others wait.
_ANSWER_S: Final = 2.0
_OUT_OF_FILES: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


class Listeners:
    """Owns the sockets where clients come in: the port's, and the files' of this machine's replicas.

    They are waited for with an epoll, but not while this process has no more files.
    """

    def __init__(self) -> None:
        self._sockets: dict[int, socket.socket] = {}
        self._files: list[Path] = []
        self._is_waited_for = False
        self._is_out_of_files = False
        self.port = 0
        """The bound one; 0 before `open`."""

    def open(self, settings: FrontSettings) -> None:
        """Binds. Raises `AddressInUseError`, `StartError` for any other reason."""
        try:
            listener = listen(settings.host, settings.port)
        except OSError as error:
            raise bind_error(settings.host, settings.port, error.errno, str(error)) from error
        self._sockets[listener.fileno()] = listener
        self.port = int(listener.getsockname()[1])
        own, link = settings.own_socket(self.port), settings.link_socket
        try:
            if own is not None:
                self._open_file(own, listen_on_file, own_socket_error)
            if link is not None:
                self._open_file(link, listen_for_containers, link_socket_error)
        except StartError:
            self.close()
            raise

    def wait(self, epoll: select.epoll) -> None:
        """Has them waited for, where they are not."""
        if not self._is_waited_for:
            self._is_waited_for = True
            for fd in self._sockets:
                epoll.register(fd, select.EPOLLIN)

    def accept(self, epoll: select.epoll, fd: int) -> Iterator[tuple[socket.socket, str]]:
        """Those who wait at one of them, and gRPC's name for each. Nobody where `fd` is no
        listener."""
        listener = self._sockets.get(fd)
        if listener is None:
            return
        for _ in range(_ACCEPTS):
            try:
                accepted = accept(listener)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _OUT_OF_FILES:
                    continue  # that client is gone again
                if not self._is_out_of_files:  # it is tried again twenty times a second
                    logger.warning("no more connections for now: %s", error)
                self._is_waited_for, self._is_out_of_files = False, True
                for other in self._sockets:
                    epoll.unregister(other)
                return
            self._is_out_of_files = False
            yield accepted

    def close(self) -> None:
        """Unbinds."""
        for file in self._files:
            # Before the port is free, and another server's file has that name.
            file.unlink(missing_ok=True)
        self._files.clear()
        for listener in self._sockets.values():
            listener.close()
        self._sockets.clear()

    def _open_file(
        self,
        path: Path,
        listen_on: Callable[[Path], socket.socket],
        error_of: Callable[[Path, str], StartError],
    ) -> None:
        try:
            listener = listen_on(path)
        except OSError as error:
            raise error_of(path, str(error)) from error
        self._sockets[listener.fileno()] = listener
        self._files.append(path)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    family, address = first_address(host, port)
    both = family == socket.AF_INET6 and host in ("", "::") and socket.has_dualstack_ipv6()
    listener = socket.create_server(
        (address, port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
    )
    listener.setblocking(False)
    return listener


def listen_on_file(path: Path) -> socket.socket:
    """A listening unix socket that only this user can reach. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    # Of a server that ended without a chance to remove it: the port of its name is ours now.
    path.unlink(missing_ok=True)
    return _bind(path)


def listen_for_containers(path: Path) -> socket.socket:
    """A listening unix socket that whoever can enter its folder can reach: replicas in containers
    have other users. Raises OSError, where another server listens there too."""
    with suppress(FileExistsError):
        path.parent.mkdir(parents=True)
        path.parent.chmod(_LINK_FOLDER_MODE)  # mkdir's own mode is cut by the umask
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.settimeout(_ANSWER_S)
        try:
            other.connect(str(path))
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            if not path.is_socket():
                raise OSError(errno.EEXIST, "something else has that name") from None
            path.unlink()  # of a server that ended without a chance to remove it
        else:
            raise OSError(errno.EADDRINUSE, "another server listens there")
    listener = _bind(path)
    path.chmod(_LINK_SOCKET_MODE)
    return listener


def _bind(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def accept(listener: socket.socket) -> tuple[socket.socket, str]:
    """The next client and gRPC's name for it
    (https://github.com/grpc/grpc/blob/master/doc/naming.md). Raises OSError."""
    accepted, address = listener.accept()
    accepted.setblocking(False)
    if accepted.family == socket.AF_UNIX:
        return accepted, "unix:"
    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    host, port = address[:2]
    if accepted.family == socket.AF_INET:
        return accepted, f"ipv4:{host}:{port}"
    return accepted, f"ipv6:%5B{host}%5D:{port}"
