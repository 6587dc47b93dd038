"""How the grpcio server is set up: options, TLS and the bind."""

from typing import Final

import grpc
import grpc.aio

from tideserve.server.front import FrontSettings
from tideserve.server.front.address import (
    bind_error,
    first_address,
    host_port,
    own_socket_error,
    why_unbindable,
)
from tideserve.server.front.certificates import read_tls_files

_METADATA_BYTES: Final = 16_384


def server_credentials(settings: FrontSettings) -> grpc.ServerCredentials | None:
    """TLS or mTLS as the settings ask; None for plain text. Raises `CertificateError`."""
    if settings.tls is None:
        return None
    tls = read_tls_files(settings.tls)
    return grpc.ssl_server_credentials(
        [(tls.key, tls.certificate)],
        root_certificates=tls.client_ca,
        require_client_auth=tls.client_ca is not None,
    )


def bind(
    server: grpc.aio.Server,
    settings: FrontSettings,
    credentials: grpc.ServerCredentials | None,
) -> int:
    """Binds host and port of the settings; the bound port.

    Raises `AddressInUseError`, `StartError` for any other reason.
    """
    try:
        # grpc-core binds all addresses of a name and is content with one: where another process has
        # the port on the other, that one would be called.
        host = settings.host and first_address(settings.host, settings.port)[1]
        target = host_port(host, settings.port)
        if credentials is None:
            return server.add_insecure_port(target)
        return server.add_secure_port(target, credentials)
    except (OSError, RuntimeError) as error:
        number, reason = why_unbindable(settings.host, settings.port)
        raise bind_error(settings.host, settings.port, number, reason or str(error)) from error


def bind_own_socket(server: grpc.aio.Server, settings: FrontSettings, port: int) -> None:
    """Beside the port, the plain unix socket of our own processes. Raises `StartError`."""
    path = settings.own_socket(port)
    if path is None:
        return
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        server.add_insecure_port(f"unix:{path}")
    except (OSError, RuntimeError) as error:
        raise own_socket_error(path, str(error)) from error


def server_options(settings: FrontSettings) -> list[tuple[str, int]]:
    """grpc-core's channel arguments."""
    options = [
        ("grpc.so_reuseport", 0),  # or a second server would silently share the port
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_answer_bytes),
        ("grpc.max_concurrent_streams", settings.max_concurrent_streams),
        ("grpc.keepalive_time_ms", round(settings.keepalive_time_s * 1000)),
        ("grpc.keepalive_timeout_ms", round(settings.keepalive_timeout_s * 1000)),
        ("grpc.keepalive_permit_without_calls", 1),
        # Clients may ping as often as they like, as on the native front.
        ("grpc.http2.max_ping_strikes", 0),
        # One limit; with its default softer one grpc-core refuses some calls at random.
        ("grpc.max_metadata_size", _METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", _METADATA_BYTES),
    ]
    if settings.max_connections is not None:
        options.append(("grpc.max_allowed_incoming_connections", settings.max_connections))
    return options
