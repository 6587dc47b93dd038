"""`tideserve logs`: what a replica wrote, from the autoscaler that started it."""

import http.client
import os
import time
from typing import Annotated, Final
from urllib.parse import quote

import typer

from tideserve.cli.exits import REFUSED, UNREACHABLE, fail
from tideserve.cli.options import (
    ADDRESS,
    Address,
    Timeout,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    control_client,
)
from tideserve.cli.token import find_token

_FOLLOW_S: Final = 0.5
# By these the end of what was shown is found again.
_OVERLAP_LINES: Final = 5
_ANY_ADDRESSES: Final = ("0.0.0.0", "[::]")  # noqa: S104 - compared, not bound


def logs(
    replica: Annotated[str, typer.Argument(help="The replica's id, as in `tideserve replicas`.")],
    lines: Annotated[int, typer.Option(help="The last so many lines.", min=1, max=5000)] = 100,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes.")] = False,
    address: Address = ADDRESS,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Show the log of a replica, also of one that ended not long ago."""
    with control_client(
        address, token_file, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
    ) as client:
        where = client.status().autoscaler_http
        if not where:
            fail("the server knows of no autoscaler that could be asked for logs", REFUSED)
        token = find_token(address, token_file, os.environ) or ""
        where = reachable(where, address)
        shown = read_log(where, token, replica, lines, timeout)
        _write(shown)
        while follow:
            time.sleep(_FOLLOW_S)
            now = read_log(where, token, replica, 5000, timeout)
            _write(what_came(shown, now))
            shown = now


def read_log(where: str, token: str, replica: str, lines: int, timeout_s: float) -> list[str]:
    """From the autoscaler at HOST:PORT. Ends the command where it does not answer, or with
    its words where it refuses."""
    connection = http.client.HTTPConnection(where, timeout=timeout_s)
    try:
        connection.request(
            "GET",
            f"/replicas/{quote(replica, safe='')}/log?lines={lines}",
            headers={"Authorization": f"Bearer {token}"},
        )
        response = connection.getresponse()
        text = response.read().decode("utf-8", errors="replace")
    except (OSError, http.client.HTTPException) as error:
        fail(f"cannot reach the autoscaler at {where}: {error}", UNREACHABLE)
    finally:
        connection.close()
    if response.status != http.client.OK:
        fail(text.strip() or f"the autoscaler answered {response.status}", REFUSED)
    return text.splitlines()


def reachable(where: str, address: str) -> str:
    """An autoscaler that listens on every address is reached where the server is."""
    host, _, port = where.rpartition(":")
    if host not in _ANY_ADDRESSES:
        return where
    return f"{address.rpartition(':')[0] or '127.0.0.1'}:{port}"


def what_came(shown: list[str], now: list[str]) -> list[str]:
    """The lines of `now` after the last ones that were shown."""
    tail = shown[-_OVERLAP_LINES:]
    for end in range(len(now), len(tail) - 1, -1):
        if tail and now[end - len(tail) : end] == tail:
            return now[end:]
    return now


def _write(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)
