"""How fast rows arrive, of late."""

from math import exp
from typing import Final

# The longer one tells an overload from a burst. The shorter one notices a step in load before
# batches were formed for the old one: small ones, which cannot keep up and go on being small.
_MEMORIES_S: Final = (0.1, 0.5)
# Two requests at once are no rate.
_LEAST_S: Final = 0.01


class ArrivalRate:
    """Owns counts that decay: rows a second over about the last tenth and half second, whichever
    is more."""

    __slots__ = ("_at_s", "_rows", "_since_s")

    def __init__(self) -> None:
        self._rows = [0.0] * len(_MEMORIES_S)
        self._at_s = 0.0
        self._since_s: float | None = None

    def add(self, rows: int, now_s: float) -> None:
        """So many rows came now."""
        if self._since_s is None:
            self._since_s = now_s
        self._rows = [left + rows for left in self._left(now_s)]
        self._at_s = now_s

    def rows_per_s(self, now_s: float) -> float:
        """The rate as of now; 0 before anything came. It is of the time since the first
        arrival while that is short."""
        if self._since_s is None:
            return 0.0
        seen_s = max(_LEAST_S, now_s - self._since_s)
        return max(
            left / (memory_s * (1.0 - exp(-seen_s / memory_s)))
            for memory_s, left in zip(_MEMORIES_S, self._left(now_s), strict=True)
        )

    def _left(self, now_s: float) -> list[float]:
        age_s = min(0.0, self._at_s - now_s)
        return [
            rows * exp(age_s / memory_s)
            for rows, memory_s in zip(self._rows, _MEMORIES_S, strict=True)
        ]
