"""Times as people write them on a command line."""

import re
from typing import Final

from tideserve.cli.exits import UsageFault

_SECONDS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds_of(text: str) -> float:
    """More than 0 s. Raises `UsageFault`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * _SECONDS[match[2]] if match is not None else 0.0
    if seconds <= 0.0:
        raise UsageFault(f"--for: expected a time such as 90s, 10m or 2h, got {text!r}")
    return seconds
