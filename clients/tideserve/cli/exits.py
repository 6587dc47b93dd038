"""Exit codes, and how an error of the client becomes one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NoReturn

import typer

from tideserve.client import (
    ClientClosed,
    Disconnected,
    TideserveClientError,
    TlsError,
    Unauthenticated,
)

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


@contextmanager
def errors_as_exit_codes() -> Iterator[None]:
    """What the client raises inside, as one line on stderr and an exit code."""
    try:
        yield
    except UsageFault as error:
        fail(str(error), USAGE)
    except (ClientClosed, TlsError) as error:
        fail(str(error), USAGE)
    except Disconnected as error:
        fail(f"cannot reach the server: {error}", UNREACHABLE)
    except Unauthenticated as error:
        fail(f"{error} (give --token-file or set TIDESERVE_TOKEN)", REFUSED)
    except TideserveClientError as error:
        fail(str(error), REFUSED)
    except KeyboardInterrupt:
        fail("interrupted", INTERRUPTED)
