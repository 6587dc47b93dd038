"""The options that several commands share, and the client they open."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tideserve.cli.client_errors import errors_as_exit_codes
from tideserve.cli.exits import UsageFault
from tideserve.cli.token import find_token
from tideserve.client import Client, InvalidArgument, TlsOptions
from tideserve.client.connection import DEFAULT_ADDRESS

Address = Annotated[
    str,
    typer.Option(help="The server's HOST:PORT.", envvar="TIDESERVE_ADDRESS", metavar="HOST:PORT"),
]
Timeout = Annotated[float, typer.Option(help="Seconds for a call.", min=0.001)]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, for programs.")]
ModelVersion = Annotated[
    str, typer.Option("--version", help="The model's version; default: newest.")
]
TokenFile = Annotated[
    Path | None,
    typer.Option(help="File with the token; default: TIDESERVE_TOKEN, then what serve wrote."),
]
TlsCa = Annotated[Path | None, typer.Option(help="PEM of the authority to trust; turns TLS on.")]
TlsCert = Annotated[Path | None, typer.Option(help="PEM of this client's certificate (mTLS).")]
TlsKey = Annotated[Path | None, typer.Option(help="PEM of this client's key (mTLS).")]

ADDRESS = DEFAULT_ADDRESS


@contextmanager
def open_client(
    address: str,
    *,
    timeout_s: float,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> Iterator[Client]:
    """A client without the token, which only `control_client` reads. What goes wrong with it,
    or is raised inside, ends the command with a line on stderr and an exit code."""
    with (
        errors_as_exit_codes(),
        _client(address, None, timeout_s, _tls(ca, certificate, key)) as client,
    ):
        yield client


@contextmanager
def control_client(
    address: str,
    token_file: Path | None,
    *,
    timeout_s: float,
    ca: Path | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
) -> Iterator[Client]:
    """A client for the control plane, with errors as `open_client`'s."""
    with errors_as_exit_codes():
        token = find_token(address, token_file, os.environ)
        with _client(address, token, timeout_s, _tls(ca, certificate, key)) as client:
            yield client


def _client(address: str, token: str | None, timeout_s: float, tls: TlsOptions | None) -> Client:
    """What the constructor refuses was wrong in the arguments."""
    try:
        return Client(address, token=token, timeout_s=timeout_s, tls=tls)
    except InvalidArgument as error:
        raise UsageFault(str(error)) from error


def _tls(ca: Path | None, certificate: Path | None, key: Path | None) -> TlsOptions | None:
    if ca is None and certificate is None and key is None:
        return None
    return TlsOptions(ca, certificate, key)
