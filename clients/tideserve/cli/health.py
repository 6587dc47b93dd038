"""`tideserve health`."""

from typing import Annotated

import typer

from tideserve.cli.exits import OK, REFUSED
from tideserve.cli.options import (
    ADDRESS,
    Address,
    Json,
    ModelVersion,
    TlsCa,
    TlsCert,
    TlsKey,
    open_client,
)
from tideserve.cli.output import write_json


def health(
    address: Address = ADDRESS,
    model: Annotated[str, typer.Option(help="This model instead of the whole server.")] = "",
    version: ModelVersion = "",
    live: Annotated[
        bool, typer.Option("--live", help="Only whether it serves at all, by grpc.health.v1.")
    ] = False,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for it to become ready.", min=0.0)
    ] = 0.0,
    timeout: Annotated[float, typer.Option(help="Seconds for a call.", min=0.001)] = 5.0,
    json: Json = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Say whether the server, or a model, is ready: exit code 0 if so, 1 if not."""
    with open_client(
        address, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
    ) as client:
        if wait > 0:
            client.wait_ready(wait, model or None, version)
        if live:
            ready = client.is_healthy(model)
        else:
            ready = client.is_model_ready(model, version) if model else client.is_ready()
    if json:
        write_json({"address": address, "model": model or None, "ready": ready})
    else:
        what = "serving" if live else "ready"
        typer.echo(f"{model or address}: {what if ready else f'not {what}'}")
    raise typer.Exit(OK if ready else REFUSED)
