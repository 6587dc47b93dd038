"""`tideserve infer`."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tideserve.cli.exits import UsageFault
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
from tideserve.cli.output import write_json, write_table
from tideserve.client import Client

if TYPE_CHECKING:
    from tideserve.client.tensors import Array


@dataclass(frozen=True, slots=True)
class _Result:
    model: str
    rows: int
    requests: int
    duration_s: float
    outputs: "Mapping[str, Array]"


def infer(
    model: Annotated[str, typer.Argument(help="The model's name.")],
    file: Annotated[
        Path | None,
        typer.Argument(
            help=".npy, .csv or .json for a model with one input; .npz or .json by name."
        ),
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", help="Values of an input.", metavar="NAME=FILE"),
    ] = None,
    random: Annotated[
        int | None, typer.Option(help="Send so many rows of random values.", min=1, metavar="ROWS")
    ] = None,
    version: ModelVersion = "",
    outputs: Annotated[
        list[str] | None,
        typer.Option("--output", help="Only this output (repeatable).", metavar="NAME"),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option(
            help="Rows a request; default: the model's max_batch_size.", min=1, metavar="ROWS"
        ),
    ] = None,
    concurrency: Annotated[int, typer.Option(help="Requests at a time.", min=1, max=64)] = 4,
    save: Annotated[
        Path | None, typer.Option(help="Write the outputs to .npy, .npz or .json.")
    ] = None,
    json: Json = False,
    address: Address = ADDRESS,
    timeout: Annotated[float, typer.Option(help="Seconds for a request.", min=0.001)] = 60.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
) -> None:
    """Send values from files, or random ones, to a model and show what it answers."""
    with open_client(
        address, timeout_s=timeout, ca=tls_ca, certificate=tls_cert, key=tls_key
    ) as client:
        from tideserve.cli.output_files import checked_save_path
        from tideserve.cli.output_files import save as save_outputs

        if save is not None:
            checked_save_path(save)
        files = _files(inputs or [])
        _check_one_source(files, file, random)
        metadata = client.model_metadata(model, version)
        limit = client.model_config(model, version).max_batch_size
        if batch is not None and not limit:
            raise UsageFault(f"--batch: {model} does not batch (max_batch_size 0)")
        arrays = _arrays(metadata.inputs, limit > 0, files, file, random)
        result = _run(client, model, version, outputs, arrays, batch or limit, concurrency)
        if save is not None:
            save_outputs(save, result.outputs)
        _show(result, json, save)


def _files(given: list[str]) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise UsageFault(f"--input {text}: expected NAME=FILE")
        if name in files:
            raise UsageFault(f"--input {name}: given twice")
        files[name] = Path(path)
    return files


def _check_one_source(files: dict[str, Path], file: Path | None, random: int | None) -> None:
    if sum((bool(files), file is not None, random is not None)) > 1:
        raise UsageFault("expected one of FILE, --input NAME=FILE and --random ROWS, got several")


def _arrays(
    tensors: Any, batching: bool, files: dict[str, Path], file: Path | None, random: int | None
) -> "dict[str, Array]":
    from tideserve.cli.input_files import random_inputs, read_inputs

    if random is not None:
        if not batching and random != 1:
            raise UsageFault("--random: the model does not batch, expected 1")
        return random_inputs(tensors, batching, random)
    return read_inputs(tensors, batching, files, file)


def _run(
    client: Client,
    model: str,
    version: str,
    outputs: list[str] | None,
    arrays: "dict[str, Array]",
    batch_rows: int,
    concurrency: int,
) -> _Result:
    """`batch_rows` 0: one request with everything."""
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    from tideserve.cli.batches import infer_all, split_rows

    rows = len(next(iter(arrays.values()))) if batch_rows else 1
    pieces = split_rows(arrays, batch_rows) if batch_rows and rows else [arrays]
    stderr = Console(stderr=True)
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    shown = stderr.is_terminal and len(pieces) > 1
    began_s = time.monotonic()
    with Progress(*columns, console=stderr, disable=not shown, transient=True) as progress:
        task = progress.add_task(f"{model} rows", total=rows)
        result = infer_all(
            lambda piece: client.infer(model, piece, version=version, outputs=outputs or None),
            pieces,
            concurrency,
            lambda done: progress.advance(task, done),
        )
    return _Result(model, rows, len(pieces), time.monotonic() - began_s, result)


def _show(result: _Result, json: bool, save: Path | None) -> None:
    from tideserve.cli.output_files import json_outputs

    if json:
        document = {
            "model": result.model,
            "rows": result.rows,
            "requests": result.requests,
            "duration_s": round(result.duration_s, 6),
        }
        if save is None:
            document["outputs"] = json_outputs(result.outputs)
        else:
            document["saved"] = str(save)
        write_json(document)
        return
    write_table(
        ("output", "datatype", "shape", "values"),
        (_row(name, array) for name, array in result.outputs.items()),
    )
    where = f", saved to {save}" if save is not None else ""
    typer.echo(
        f"{result.rows} rows in {result.requests} requests, {result.duration_s:.3f} s{where}"
    )


def _row(name: str, array: "Array") -> tuple[str, str, str, str]:
    import numpy as np

    from tideserve.client.datatypes import datatype_of

    text = np.array2string(array, threshold=8, edgeitems=2, precision=4, max_line_width=100)
    return name, datatype_of(array.dtype), str(list(array.shape)), text
