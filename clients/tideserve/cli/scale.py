"""`tideserve scale`."""

from typing import Annotated

import typer

from tideserve.cli.duration import seconds_of
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
