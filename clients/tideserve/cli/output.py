"""What goes to stdout: a table for people, JSON for programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import typer


def write_json(value: Any) -> None:
    """One JSON document and nothing else."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def write_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table; a state is coloured by what it says."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, header_style="bold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    console = Console()
    # A pipe has no width: 80 columns would cut ids short.
    (console if console.is_terminal else Console(width=_PIPE_COLUMNS)).print(table)


_PIPE_COLUMNS = 200


_STYLES: Mapping[str, str] = {
    "READY": "green",
    "STARTING": "yellow",
    "LOADING": "yellow",
    "DRAINING": "yellow",
    "UNLOADING": "yellow",
    "STANDBY": "cyan",
    "LOST": "red",
    "UNAVAILABLE": "red",
}
