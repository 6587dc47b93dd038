"""Accounts for the CPU of one request: frontend and replica apart, step by step.

    python -m benchmarks.accounting --runs tiny:64,600k:1 --seconds 3

Identity models of FP32 vectors, one row a request, one replica, load by h2load. Prints a
table in Markdown: microseconds of CPU a request.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from benchmarks.accounting.accounted import Account, accounted
from benchmarks.h2load import CALLERS, Callers

# Elements of FP32: 64 bytes, 600 KB, 16 MB.
SIZES: Final = {"tiny": 16, "600k": 150_000, "16m": 4_000_000}


def main(
    runs: Annotated[
        str, typer.Option(help="SIZE:CALLERS, of tiny, 600k, 16m and of 64, 1.")
    ] = "tiny:64,tiny:1,600k:64,600k:1,16m:1",
    seconds: Annotated[float, typer.Option(help="Of load, for each column.")] = 3.0,
) -> None:
    """Measures and prints."""
    accounts: dict[str, Account] = {}
    for size, callers in map(_parse, runs.split(",")):
        with (
            tempfile.TemporaryDirectory() as folder,
            accounted(size, SIZES[size], Path(folder)) as server,
        ):
            account = server.account(callers, seconds)
        accounts[f"{size}, {callers.count} caller{'s'[: callers.count > 1]}"] = account
    typer.echo(table(accounts))


def table(accounts: Mapping[str, Account]) -> str:
    """Markdown: a column for each account, a row for each part."""
    columns = list(accounts.values())
    rows = [["us of CPU a request", *accounts], ["---"] + ["---:"] * len(columns)]
    rows += [
        [part, *(f"{column.parts_us[part]:.1f}" for column in columns)]
        for part in columns[0].parts_us
    ]
    rows.append(["**in all**", *(f"**{column.total_us:.1f}**" for column in columns)])
    rows += [
        [
            f"replica: {step}, time",
            *(f"{column.replica_times_us[step]:.1f}" for column in columns),
        ]
        for step in columns[0].replica_times_us
    ]
    rows.append(["requests/s", *(f"{column.requests_per_s:,.0f}" for column in columns)])
    rows.append(["mean batch", *(f"{column.mean_batch:.1f}" for column in columns)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _parse(run: str) -> tuple[str, Callers]:
    size, _, callers = run.partition(":")
    if size not in SIZES or not callers.isdecimal() or int(callers) not in CALLERS:
        raise typer.BadParameter(
            f"--runs: expected SIZE:CALLERS of {', '.join(SIZES)} and of "
            f"{', '.join(map(str, CALLERS))}, got {run!r}"
        )
    return size, CALLERS[int(callers)]


if __name__ == "__main__":
    typer.run(main)
