"""How fast rows arrive, of late."""

from math import exp
from typing import Final

# Long enough to tell an overload from a burst, short enough to notice one within seconds.
_MEMORY_S: Final = 2.0


class ArrivalRate:
    """Owns a count that decays: rows a second over about the last `_MEMORY_S`."""

    __slots__ = ("_at_s", "_rows")

    def __init__(self) -> None:
        self._rows = 0.0
        self._at_s = 0.0

    def add(self, rows: int, now_s: float) -> None:
        """So many rows came now."""
        self._rows = self._left(now_s) + rows
        self._at_s = now_s

    def rows_per_s(self, now_s: float) -> float:
        """The rate as of now."""
        return self._left(now_s) / _MEMORY_S

    def _left(self, now_s: float) -> float:
        return self._rows * exp(min(0.0, self._at_s - now_s) / _MEMORY_S)
