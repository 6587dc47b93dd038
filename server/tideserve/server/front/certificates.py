"""TLS files are read and checked before a socket is bound, so that each fault names its file."""

import ssl
from dataclasses import dataclass
from pathlib import Path

from tideserve.server.errors import CertificateError
from tideserve.server.front import TlsFiles


@dataclass(frozen=True, slots=True)
class TlsBytes:
    """The PEM bytes of `TlsFiles`. `client_ca` None: clients need no certificate."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None


def read_tls_files(files: TlsFiles) -> TlsBytes:
    """Reads the files and checks that they are PEM and that the key fits the certificate.

    Raises `CertificateError` with the file, what was expected and what came.
    """
    certificate = _read(files.certificate, "certificate", b"-----BEGIN CERTIFICATE-----")
    key = _read(files.key, "private key", b"PRIVATE KEY-----")
    client_ca = None
    if files.client_ca is not None:
        client_ca = _read(files.client_ca, "client CA", b"-----BEGIN CERTIFICATE-----")
        _check_ca(files.client_ca)
    _check_pair(files.certificate, files.key)
    return TlsBytes(certificate, key, client_ca)


def _read(path: Path, what: str, marker: bytes) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CertificateError(
            f"TLS {what} file {path} cannot be read: {error.strerror}; "
            "expected a PEM file that this user may read"
        ) from error
    if marker not in content:
        raise CertificateError(
            f"TLS {what} file {path} is not what it should be: expected PEM with a line "
            f"{marker.decode()!r}, got {len(content)} bytes without one"
        )
    return content


def _check_ca(path: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cafile=path)
    except ssl.SSLError as error:
        raise CertificateError(
            f"TLS client CA file {path} holds no usable certificate: {_reason(error)}"
        ) from error


def _check_pair(certificate: Path, key: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key would make OpenSSL ask at the terminal; an empty password fails.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise CertificateError(
                f"TLS key file {key} does not belong to certificate file {certificate}: "
                "expected the private key that the certificate was made for"
            ) from error
        raise CertificateError(
            f"TLS certificate file {certificate} with key file {key} is not usable: "
            f"{_reason(error)}; expected a PEM certificate chain and its unencrypted key"
        ) from error


def _reason(error: ssl.SSLError) -> str:
    return (error.reason or str(error)).replace("_", " ").lower()
