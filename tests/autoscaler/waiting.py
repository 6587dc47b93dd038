"""Waiting for real processes: polls until a condition holds or a deadline passes."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_POLL_S = 0.005


def eventually(look: Callable[[], T | None], timeout_s: float = 10.0) -> T:
    """The first true value that `look` gives."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := look()):
        assert time.monotonic() < deadline_s, f"not within {timeout_s:g} s"
        time.sleep(_POLL_S)
    return value
