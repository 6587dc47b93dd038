"""`tideserve scale`."""

import re
from typing import Annotated, Final

import typer

from tideserve.cli.exits import UsageFault
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

_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def scale(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    replicas: Annotated[
        int | None, typer.Argument(min=0, help="How many; not with --clear.")
    ] = None,
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long: seconds, 90s, 10m, 2h.")
    ] = "10m",
    clear: Annotated[bool, typer.Option("--clear", help="End the pin.")] = False,
    model_version: Annotated[
        str, typer.Option("--version", help="The model's version; default: all.")
    ] = "",
    json: Json = False,
    address: Address = ADDRESS,
    token_file: TokenFile = None,
    timeout: Timeout = 10.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Pin a model's replica count for a while, in place of what the autoscaler decides."""
    with control_client(
        address, token_file, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
    ) as client:
        if clear == (replicas is not None):
            raise UsageFault("expected a number of replicas, or --clear to end the pin")
        duration_s = 0.0 if clear else seconds_of(duration)
        client.scale(model, replicas or 0, duration_s=duration_s, version=model_version)
    if json:
        write_json({"model": model, "replicas": replicas, "duration_s": duration_s})
    elif clear:
        typer.echo(f"{model}: the autoscaler decides")
    else:
        typer.echo(f"{model}: {replicas} replicas for {duration_s:g} s")


def seconds_of(text: str) -> float:
    """More than 0 s. Raises `UsageFault`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match is not None else 0.0
    if seconds <= 0.0:
        raise UsageFault(f"--for: expected a time such as 90s, 10m or 2h, got {text!r}")
    return seconds
