"""`tideserve logs`: what a replica wrote, from the autoscaler that started it."""

import http.client
import os
import time
from ipaddress import ip_address
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
# The most that an autoscaler gives at a time.
_MAX_LINES: Final = 5000
_ANY_ADDRESSES: Final = ("0.0.0.0", "[::]")  # noqa: S104 - compared, not bound
_LOOPBACK: Final = "127.0.0.1"


def logs(
    replica: Annotated[str, typer.Argument(help="The replica's id, as in `tideserve replicas`.")],
    lines: Annotated[
        int, typer.Option(help="The last so many lines.", min=1, max=_MAX_LINES)
    ] = 100,
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
    where = reachable(where, address)
    if tls_ca is not None and not is_loopback(where):
        fail(
            f"the autoscaler at {where} answers without TLS, and the token would be sent in "
            "clear: run `tideserve logs` on its machine",
            REFUSED,
        )
    token = find_token(address, token_file, os.environ) or ""
    known = read_log(where, token, replica, _MAX_LINES if follow else lines, timeout)
    _write(known[-lines:])
    while follow:
        time.sleep(_FOLLOW_S)
        now = read_log(where, token, replica, _MAX_LINES, timeout)
        _write(what_came(known, now))
        known = now


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
    """Where the autoscaler that says it is at `where` is reached by one who reaches the server
    at `address`. Ends the command if it cannot be: the token is for nobody else's ears."""
    host, _, port = where.rpartition(":")
    server = _LOOPBACK if address.startswith("unix:") else address.rpartition(":")[0]
    if host in _ANY_ADDRESSES:
        return f"{server}:{port}"
    if is_loopback(where) and not is_loopback(f"{server}:{port}"):
        fail(
            f"the autoscaler answers at {where} of the server's machine only: run `tideserve "
            "logs` there, or have it listen where it can be reached (`serve --host`, "
            "`autoscale --http-host`)",
            REFUSED,
        )
    return where


def is_loopback(where: str) -> bool:
    """Whether HOST:PORT stays on this machine."""
    host = where.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def what_came(known: list[str], now: list[str]) -> list[str]:
    """The lines of `now`, the end of a log, after those of `known`, its end a moment ago.

    Lines leave at the front when there are more than an autoscaler gives or a file was
    rotated away. The last line known may have been unfinished: then it comes once more, whole.
    """
    for gone in range(len(known)):
        kept = known[gone:]
        if len(kept) > len(now):
            continue
        if now[: len(kept)] == kept:
            return now[len(kept) :]
        last = len(kept) - 1
        if now[:last] == kept[:last] and now[last].startswith(kept[last]):
            return now[last:]
    return now


def _write(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)
