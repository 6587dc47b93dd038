"""Where clients come in."""

import socket
from pathlib import Path
from typing import Final

_BACKLOG: Final = 1024


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    both = family == socket.AF_INET6 and host in ("", "::") and socket.has_dualstack_ipv6()
    listener = socket.create_server(
        (str(address[0]), port), family=family, backlog=_BACKLOG, dualstack_ipv6=both
    )
    listener.setblocking(False)
    return listener


def listen_on_file(path: Path) -> socket.socket:
    """A listening unix socket that only this user can reach. Raises OSError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.parent.chmod(0o700)
    # Of a server that ended without a chance to remove it: the port of its name is ours now.
    path.unlink(missing_ok=True)
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
