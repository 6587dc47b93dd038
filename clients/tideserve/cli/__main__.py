"""Entry of `tideserve`: finds the command, imports only that one, runs it."""

import sys
from collections.abc import Sequence

import typer

from tideserve.cli.catalog import Catalog, installed_catalog


def main() -> None:
    """Runs the command in argv; exit codes are in `tideserve.cli.exits`."""
    app(installed_catalog(), sys.argv[1:])(args=sys.argv[1:], prog_name="tideserve")


def app(catalog: Catalog, arguments: Sequence[str]) -> typer.Typer:
    """The application as far as these arguments need it: the one command that they name, or
    all, for the help text and for the nearest known command."""
    application = typer.Typer(
        help="An elastic model server: serve models, watch replicas, send requests.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    # A callback makes it a group even with one command.
    application.callback()(_group)
    named = arguments[0] if arguments and arguments[0] in catalog.names else None
    for name in catalog.names if named is None else [named]:
        command = catalog.load(name)
        application.command(
            name,
            help=command.help,
            context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
            if command.missing
            else None,
        )(command.function)
    return application


def _group() -> None:
    """An elastic model server: serve models, watch replicas, send requests."""


if __name__ == "__main__":
    main()
