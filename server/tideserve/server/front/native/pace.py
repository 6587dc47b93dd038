"""Whether a request that has begun still comes, or only holds memory.

A call is refused when too little of it came for 30 s: less than 1 KiB/s. Once half of what may be
held of requests is held, it is 16 KiB/s over 10 s. One upload over 1 Mbit/s has 122 KiB/s, so there
is room for seven side by side even then, and for a hundred before. A stall of a link shorter than
that harms nobody, nor does a caller that says nothing between two messages.
"""

from typing import Final

#: How often it is looked at.
LOOK_S: Final = 1.0
_WINDOW_S: Final = 30.0
_LEAST_BYTES_S: Final = 1024
_SHORT_WINDOW_S: Final = 10.0
_SHORT_LEAST_BYTES_S: Final = 16 * 1024


class Pace:
    """Owns what came of a stream since a look: `came_bytes`."""

    __slots__ = ("_since_s", "came_bytes")

    def __init__(self) -> None:
        self._since_s: float | None = None
        self.came_bytes = 0

    def rest(self) -> None:
        """Nothing is awaited: it is measured from the next look on that awaits something."""
        self._since_s = None

    def missing(self, now_s: float, *, is_short: bool) -> tuple[float, int] | None:
        """A time that went by and how many bytes were to come in it, of which fewer did. None: all
        is well, or it is too early to tell."""
        if self._since_s is None:
            self._since_s, self.came_bytes = now_s, 0
            return None
        window_s = _SHORT_WINDOW_S if is_short else _WINDOW_S
        passed_s = now_s - self._since_s
        if passed_s < window_s:
            return None
        least_bytes = int(window_s * (_SHORT_LEAST_BYTES_S if is_short else _LEAST_BYTES_S))
        if self.came_bytes < least_bytes:
            return passed_s, least_bytes
        self._since_s, self.came_bytes = now_s, 0
        return None
