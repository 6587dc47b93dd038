"""`tideserve models`, `load` and `unload`."""

import json as json_text
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

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
    open_client,
)
from tideserve.cli.output import write_json, write_table

Model = Annotated[str, typer.Argument(help="The model's name.")]


def models(
    address: Address = ADDRESS,
    ready: Annotated[bool, typer.Option("--ready", help="Only those that are ready.")] = False,
    json: Json = False,
    timeout: Timeout = 10.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """List the models of the repository and the state of each version."""
    with open_client(
        address, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
    ) as client:
        entries = client.models(ready_only=ready)
    if json:
        write_json([asdict(entry) for entry in entries])
    else:
        write_table(
            ("model", "version", "state", "reason"),
            ((e.name, e.version or "-", e.state, e.reason) for e in entries),
        )


def load(
    model: Model,
    address: Address = ADDRESS,
    config: Annotated[
        Path | None, typer.Option(help="JSON file that overrides config.pbtxt for this load.")
    ] = None,
    json: Json = False,
    timeout: Timeout = 120.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Load a model, or reload it from its files."""
    with open_client(
        address, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
    ) as client:
        client.load(model, None if config is None else _config_text(config))
    _say(json, model, "loaded")


def unload(
    model: Model,
    address: Address = ADDRESS,
    json: Json = False,
    timeout: Timeout = 120.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Unload a model: what it has admitted is still answered."""
    with open_client(
        address, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
    ) as client:
        client.unload(model)
    _say(json, model, "unloaded")


def _say(json: bool, model: str, done: str) -> None:
    if json:
        write_json({"model": model, "done": done})
    else:
        typer.echo(f"{model}: {done}")


def _config_text(path: Path) -> str:
    try:
        text = path.read_text()
        json_text.loads(text)
    except (OSError, ValueError) as error:
        raise UsageFault(f"--config {path}: expected a JSON file: {error}") from error
    return text
