"""Where a front listens, and what to say when it cannot."""

import errno
import socket
from pathlib import Path

from tideserve.server.errors import AddressInUseError, StartError
from tideserve.server.front import MAX_SOCKET_PATH_BYTES


def host_port(host: str, port: int) -> str:
    """`host:port`, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def first_address(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    """The one of a name's addresses that is served; empty: any of this machine's. Raises OSError."""
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return found[0][0], str(found[0][4][0])


def bind_error(host: str, port: int, number: int | None, reason: str) -> StartError:
    """The error for a bind that failed with errno `number`."""
    address = host_port(host, port)
    if number == errno.EADDRINUSE:
        return AddressInUseError(
            f"{address} is already in use: stop what listens there or choose another port "
            "(port 0 picks a free one)"
        )
    return StartError(
        f"cannot listen on {address}: {reason}; expected a free port on an address of this machine"
    )


def own_socket_error(path: Path, reason: str) -> StartError:
    """The error for a unix socket of the server's own replicas that cannot be had."""
    return StartError(
        f"the socket {path} of the server's own replicas cannot be bound: {reason}; a path "
        f"may have at most {MAX_SOCKET_PATH_BYTES} bytes: set XDG_RUNTIME_DIR to a shorter one"
    )


def link_socket_error(path: Path, reason: str) -> StartError:
    """The error for the unix socket of replicas in containers."""
    return StartError(
        f"--link-folder: the socket {path} cannot be bound: {reason}; expected a folder of this "
        f"server alone, and a path of at most {MAX_SOCKET_PATH_BYTES} bytes"
    )


def why_unbindable(host: str, port: int) -> tuple[int | None, str]:
    """Errno and reason of a bind to `host:port`, tried once; (None, "") when it works.

    For servers that only say that a bind failed, as grpc-core does.
    """
    try:
        found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_ADDRCONFIG
        )
    except OSError as error:
        return error.errno, str(error)
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as error:
            return error.errno, error.strerror or str(error)
    return None, ""
