"""Where clients come in."""

import socket
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
