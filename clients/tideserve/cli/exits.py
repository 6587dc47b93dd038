"""Exit codes, and the line that comes with one."""

from typing import Final, NoReturn

import typer

OK: Final = 0
REFUSED: Final = 1  # the server said no, or the answer is no (`health`)
USAGE: Final = 2  # wrong arguments or input files
UNREACHABLE: Final = 3  # no connection to the server
INTERRUPTED: Final = 130  # ctrl-C, as shells have it


class UsageFault(Exception):  # noqa: N818 - what the user gave, not a failure of ours
    """An argument or an input file is wrong: expected, got."""


def fail(message: str, code: int) -> NoReturn:
    """Ends the command with one line on stderr."""
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)
