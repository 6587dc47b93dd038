"""The last few values of something, and their quantiles."""

from bisect import bisect_left, insort
from collections import deque


class Rolling:
    """Owns the last `window` values, also in order of size. Each carries the number that it
    was added with, so that the old ones can be dropped."""

    __slots__ = ("_latest", "_ordered", "_window")

    def __init__(self, window: int) -> None:
        self._window = window
        self._latest: deque[tuple[int, float]] = deque()
        self._ordered: list[float] = []

    def __len__(self) -> int:
        return len(self._ordered)

    def add(self, value: float, number: int = 0) -> None:
        """`number` never falls from one call to the next."""
        if len(self._latest) == self._window:
            self._drop_oldest()
        self._latest.append((number, value))
        insort(self._ordered, value)

    def drop_before(self, number: int) -> None:
        """Forgets what was added with a smaller number."""
        while self._latest and self._latest[0][0] < number:
            self._drop_oldest()

    def quantile(self, share: float) -> float:
        """Of what there is; there must be something."""
        return self._ordered[int(share * (len(self._ordered) - 1))]

    def _drop_oldest(self) -> None:
        del self._ordered[bisect_left(self._ordered, self._latest.popleft()[1])]
