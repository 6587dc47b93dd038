"""`tideserve record`: how many requests came each second, for `tideserve simulate`."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from tideserve.cli.duration import seconds_of
from tideserve.cli.exits import REFUSED, fail
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
from tideserve.client import ServerStatus

_SECOND_S: Final = 1.0
HEADING: Final = "rate_per_s"


def record(
    model: Annotated[str, typer.Argument(help="The model's name; all its versions count.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The trace file to write.")],
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long: seconds, 90s, 10m, 2h.")
    ] = "10m",
    address: Address = ADDRESS,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Record a model's arrivals, one rate a second, without any content. Ctrl-C ends it early."""
    from rich.console import Console
    from rich.progress import track

    seconds = max(1, round(seconds_of(duration)))
    with (
        control_client(
            address, token_file, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
        ) as client,
        out.open("w", encoding="utf-8") as file,
    ):

        def looks() -> Iterator[ServerStatus]:
            yield client.status()
            for _ in track(range(seconds), "recording", console=Console(stderr=True)):
                time.sleep(_SECOND_S)
                yield client.status()

        file.write(f"{HEADING}\n")
        recorded: list[float] = []
        try:
            for rate in rates(looks(), model):
                recorded.append(rate)
                file.write(f"{rate:.3f}\n")
                file.flush()
        except KeyboardInterrupt:
            typer.echo(f"ended early: {out} has what came until now", err=True)
    mean = sum(recorded) / max(1, len(recorded))
    typer.echo(f"{out}: {len(recorded)} s, {mean:.1f} requests/s on average")


def rates(looks: Iterable[ServerStatus], model: str) -> Iterator[float]:
    """Arrivals a second between one look and the next, by the server's clock. Ends the command
    if the server has no such model."""
    before: tuple[float, int] | None = None
    for status in looks:
        versions = [one for one in status.models if one.name == model]
        if not versions and before is None:
            names = ", ".join(sorted({one.name for one in status.models})) or "none"
            fail(f"model '{model}' is not served; there are: {names}", REFUSED)
        now = (status.time_s, sum(one.arrivals for one in versions))
        if before is not None:
            came, span_s = now[1] - before[1], now[0] - before[0]
            # A restarted server counts anew.
            yield (came if came >= 0 else now[1]) / span_s if span_s > 0.0 else 0.0
        before = now
