"""The commands there are: entry points, imported one by one."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Final

from tideserve.cli.exits import USAGE, fail

GROUP: Final = "tideserve.commands"
# What the commands of the other packages need beyond the bare install.
_EXTRA: Final = "tideserve[cpu]"


@dataclass(frozen=True, slots=True)
class Command:
    """A typer-annotated function. `missing`: it stands in for one that cannot be imported."""

    function: Callable[..., Any]
    help: str | None
    missing: bool = False


class Catalog:
    """The commands by name; importing one imports no other."""

    def __init__(self, points: Iterable[EntryPoint]) -> None:
        self._points = {point.name: point for point in points}
        self.names = sorted(self._points)

    def load(self, name: str) -> Command:
        """The command, or one that says what to install for it."""
        try:
            function = self._points[name].load()
        except (ImportError, AttributeError) as error:
            return _missing(name, error)
        return Command(function, None)


def installed_catalog() -> Catalog:
    """The commands of everything that is installed."""
    return Catalog(entry_points(group=GROUP))


def _missing(name: str, error: ImportError | AttributeError) -> Command:
    module = (error.name or "") if isinstance(error, ImportError) else ""
    ours = not module or module.partition(".")[0] == "tideserve"
    reason = "cannot be imported" if ours else f"needs {_EXTRA}"
    remedy = "" if ours else f": pip install '{_EXTRA}'"

    def unavailable() -> None:
        fail(f"{name} {reason}{remedy} ({error})", USAGE)

    # The help text is rich markup, where [cpu] would be a style.
    return Command(unavailable, f"({reason})".replace("[", "\\["), missing=True)
