"""Where the server is and how to reach it: address, TLS, channel options."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc

from tideserve.client.errors import InvalidArgument, TlsError
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import CONTROL_SERVICE

ChannelOption = tuple[str, str | int]

DEFAULT_ADDRESS: Final = "localhost:8001"
DEFAULT_TIMEOUT_S: Final = 60.0
# Schemes gRPC resolves itself.
_CONTROL_PREFIX: Final = f"/{CONTROL_SERVICE}/"
_SCHEMES: Final = ("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:")

CHANNEL_OPTIONS: Final[tuple[ChannelOption, ...]] = (
    # The server's limit holds, and its error says so.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A dead peer is found out during a long call. gRPC servers close connections that ping
    # more often than every 300 s unless told otherwise.
    ("grpc.keepalive_time_ms", 300_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # Back within 2 s of a restarted server; gRPC's own bound is 120 s.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A connection of this client's own, which close() ends.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class TlsOptions:
    """PEM files. `ca` None trusts the system's authorities; `certificate` and `key` are for
    servers that ask for the client's (mTLS); `server_name` is the name to expect in the
    server's certificate where it is not the address's."""

    ca: Path | str | None = None
    certificate: Path | str | None = None
    key: Path | str | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """All that opens a channel. `credentials` None: no TLS."""

    address: str
    options: tuple[ChannelOption, ...]
    credentials: grpc.ChannelCredentials | None
    token: str | None

    def control_metadata(self, path: str) -> tuple[tuple[str, str], ...]:
        """The token goes with calls of the control plane only."""
        if self.token is None or not path.startswith(_CONTROL_PREFIX):
            return ()
        return ((TOKEN_METADATA_KEY, self.token),)


def connection_of(
    address: str,
    token: str | None,
    tls: TlsOptions | None,
    options: Sequence[ChannelOption] = (),
) -> Connection:
    """Raises `InvalidArgument` for an address or token that cannot be one, `TlsError`."""
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise InvalidArgument("token: expected printable ASCII characters")
    credentials = None if tls is None else _credentials(tls)
    server_name: tuple[ChannelOption, ...] = ()
    if tls is not None and tls.server_name:
        server_name = (("grpc.ssl_target_name_override", tls.server_name),)
    return Connection(
        address=checked_address(address),
        options=(*CHANNEL_OPTIONS, *server_name, *options),
        credentials=credentials,
        token=token,
    )


def checked_address(address: str) -> str:
    """The address, if it is HOST:PORT or one of gRPC's own schemes; else `InvalidArgument`."""
    if address.startswith(_SCHEMES):
        return address
    host, colon, port = address.rpartition(":")
    if not colon or not host or "/" in address or not port.isdecimal() or int(port) > 65535:
        raise InvalidArgument(f"address: expected HOST:PORT, got {address!r}")
    return address


def checked_timeout_s(timeout_s: float | None, default_s: float) -> float:
    """Seconds for a call; infinity is no deadline. Raises `InvalidArgument`."""
    if timeout_s is None:
        return default_s
    if math.isnan(timeout_s) or timeout_s <= 0:
        raise InvalidArgument(f"timeout_s: expected more than 0, got {timeout_s}")
    return timeout_s


def _credentials(tls: TlsOptions) -> grpc.ChannelCredentials:
    if (tls.certificate is None) != (tls.key is None):
        given = "certificate" if tls.key is None else "key"
        raise TlsError(f"expected both certificate and key, got only the {given}")
    return grpc.ssl_channel_credentials(
        root_certificates=_pem("ca", tls.ca),
        private_key=_pem("key", tls.key),
        certificate_chain=_pem("certificate", tls.certificate),
    )


def _pem(what: str, path: Path | str | None) -> bytes | None:
    if path is None:
        return None
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise TlsError(f"{what}: cannot read {path}: {error.strerror}") from error
    if b"-----BEGIN" not in data:
        raise TlsError(f"{what}: expected a PEM file, got {path}")
    return data
