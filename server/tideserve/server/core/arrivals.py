"""How fast rows arrive, of late."""

from math import exp
from typing import Final

# Long enough to tell an overload from a burst, short enough to notice a step in load before
# many batches were formed for the old one.
_MEMORY_S: Final = 0.5
# Two requests at once are no rate.
_LEAST_S: Final = 0.01


class ArrivalRate:
    """Owns a count that decays: rows a second over about the last `_MEMORY_S`."""

    __slots__ = ("_at_s", "_rows", "_since_s")

    def __init__(self) -> None:
        self._rows = 0.0
        self._at_s = 0.0
        self._since_s: float | None = None

    def add(self, rows: int, now_s: float) -> None:
        """So many rows came now."""
        if self._since_s is None:
            self._since_s = now_s
        self._rows = self._left(now_s) + rows
        self._at_s = now_s

    def rows_per_s(self, now_s: float) -> float:
        """The rate as of now; 0 before anything came. It is of the time since the first
        arrival while that is short."""
        if self._since_s is None:
            return 0.0
        seen = 1.0 - exp(-max(_LEAST_S, now_s - self._since_s) / _MEMORY_S)
        return self._left(now_s) / (_MEMORY_S * seen)

    def _left(self, now_s: float) -> float:
        return self._rows * exp(min(0.0, self._at_s - now_s) / _MEMORY_S)
