"""`tideserve record`: how many requests came each second, for `tideserve simulate`."""

import csv
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
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
_LONGEST_GAP_S: Final = 60.0
HEADING: Final = "rate_per_s"
MODEL_HEADING: Final = "model"


def record(
    models: Annotated[
        list[str],
        typer.Argument(metavar="MODEL...", help="The models' names; all versions of each count."),
    ],
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
    """Record arrivals, one rate a second and model, without any content. Ctrl-C ends it early."""
    from rich.console import Console
    from rich.progress import track

    seconds = max(1, round(seconds_of(duration)))
    models = list(dict.fromkeys(models))
    with ExitStack() as stack:
        client = stack.enter_context(
            control_client(
                address, token_file, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
            )
        )
        # Before the file is opened: what is in it shall outlive a wrong address or name.
        first = client.status()
        for model in models:
            _check_served(first, model)
        file = stack.enter_context(out.open("w", encoding="utf-8", newline=""))

        def looks() -> Iterator[ServerStatus]:
            yield first
            due_s = time.monotonic()
            for _ in track(range(seconds), "recording", console=Console(stderr=True)):
                due_s += _SECOND_S
                time.sleep(max(0.0, due_s - time.monotonic()))
                yield client.status()

        several = len(models) > 1
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow([HEADING, MODEL_HEADING] if several else [HEADING])
        seconds_recorded, came = 0, 0.0
        try:
            for second in rates(looks(), models):
                seconds_recorded += 1
                came += sum(second)
                for model, rate in zip(models, second, strict=True):
                    lines.writerow([f"{rate:.3f}", model] if several else [f"{rate:.3f}"])
                file.flush()
        except KeyboardInterrupt:
            typer.echo(f"ended early: {out} has what came until now", err=True)
    mean = came / max(1, seconds_recorded)
    typer.echo(f"{out}: {seconds_recorded} s, {mean:.1f} requests/s on average")


def rates(looks: Iterable[ServerStatus], models: Sequence[str]) -> Iterator[tuple[float, ...]]:
    """Arrivals a second of each of `models`, of each second from the first look on by the server's
    clock: one that no look fell into has the rate of those between the two around it."""
    before: tuple[float, dict[tuple[str, str], int]] | None = None
    began_s, told = 0.0, 0
    for status in looks:
        counts: dict[tuple[str, str], int] = {}
        for one in status.models:
            # All generations of a version have the same numbers.
            key = one.name, one.version
            counts[key] = max(one.arrivals, counts.get(key, 0))
        if before is None:
            before, began_s = (status.time_s, counts), status.time_s
            continue
        span_s = status.time_s - before[0]
        if not 0.0 <= span_s <= _LONGEST_GAP_S:
            # Of another machine's clock, where the server was started anew.
            span_s, began_s = _SECOND_S, status.time_s - told - _SECOND_S
        whole = round(status.time_s - began_s) - told
        if whole > 0:
            came = dict.fromkeys(models, 0)
            for key, count in counts.items():
                # A version that is new, or of a restarted server, counts from 0.
                known = before[1].get(key, 0)
                if key[0] in came:
                    came[key[0]] += count - known if count >= known else count
            yield from [tuple(count / span_s for count in came.values())] * whole
            told += whole
            before = status.time_s, before[1] | counts


def _check_served(status: ServerStatus, model: str) -> None:
    """Ends the command if the server has no such model."""
    if not any(one.name == model for one in status.models):
        names = ", ".join(sorted({one.name for one in status.models})) or "none"
        fail(f"model '{model}' is not served; there are: {names}", REFUSED)
