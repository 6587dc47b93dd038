"""`tideserve status`: what there is, what is asked of it, and what the autoscaler makes of it."""

import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Final

import typer

from tideserve.cli.options import (
    ADDRESS,
    Address,
    Json,
    Timeout,
    TlsCa,
    TlsCert,
    TlsKey,
    TokenFile,
    control_client,
)
from tideserve.cli.output import write_json
from tideserve.client import ModelStatus, ServerStatus

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_QUANTILE: Final = 0.95


def status(
    address: Address = ADDRESS,
    json: Json = False,
    once: Annotated[bool, typer.Option("--once", help="Look once, and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between looks.", min=0.1)] = 1.0,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Show models, load, replicas and the autoscaler's decisions, live in a terminal."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with control_client(
        address, token_file, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
    ) as client:
        last = client.status()
        if json:
            write_json(asdict(last))
            return
        if once or not console.is_terminal:
            # Rates are of two looks.
            time.sleep(interval)
            wide = console if console.is_terminal else Console(width=200)
            wide.print(_screen(last, client.status()))
            return
        with Live(_screen(last, last), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(interval)
                now = client.status()
                live.update(_screen(last, now), refresh=True)
                last = now


def _screen(last: ServerStatus, now: ServerStatus) -> "Group":
    from rich.console import Group

    return Group(status_table(last, now), replica_table(last, now))


def status_table(last: ServerStatus, now: ServerStatus) -> "Table":
    """A row a model version; rates and quantiles are of the time between the two looks."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        "model",
        "version",
        "state",
        "requests/s",
        "queue p95",
        "waiting",
        "ready",
        "starting",
        "desired",
        "because",
        header_style="bold",
    )
    before = {(model.name, model.version): model for model in last.models}
    for model in now.models:
        earlier = before.get((model.name, model.version), model)
        span_s = now.time_s - last.time_s
        rate = (model.arrivals - earlier.arrivals) / span_s if span_s > 0.0 else 0.0
        wait_s = model.queue_wait_since(earlier, _QUANTILE)
        table.add_row(
            model.name,
            model.version,
            model.state,
            f"{max(0.0, rate):.1f}",
            "-" if wait_s is None else f"{wait_s * 1e3:.1f} ms",
            str(model.queued_requests),
            str(model.ready),
            str(model.starting),
            "-" if model.desired is None else str(model.desired),
            escape(_because(model)),
        )
    table.caption = f"{now.standby} standing by; autoscaler at {now.autoscaler_http or '-'}"
    return table


def replica_table(last: ServerStatus, now: ServerStatus) -> "Table":
    """A row a replica; how busy it was is of the time between the two looks."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(
        "replica", "model", "version", "state", "for", "busy", "device", "note", header_style="bold"
    )
    before = {replica.id: replica.busy_s for replica in last.replicas}
    span_s = now.time_s - last.time_s
    for replica in now.replicas:
        worked_s = replica.busy_s - before.get(replica.id, 0.0)
        table.add_row(
            replica.id,
            replica.model or "-",
            replica.version or "-",
            replica.state,
            f"{replica.state_age_s:.0f} s",
            f"{min(1.0, max(0.0, worked_s / span_s)):.0%}" if span_s > 0.0 else "-",
            replica.device,
            escape(replica.reason or replica.phase),
        )
    return table


def _because(model: ModelStatus) -> str:
    parts = [model.reason or model.decision]
    if model.limited_by:
        parts.append(f"limited by {model.limited_by}")
    if model.pinned is not None:
        parts.append(f"pinned at {model.pinned} for {model.pin_remaining_s:.0f} s")
    return "; ".join(part for part in parts if part)
