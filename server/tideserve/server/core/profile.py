"""The profile l(b): how long a batch of b rows takes, learned from outcomes."""

from bisect import bisect_left, insort
from collections import deque
from math import isfinite
from typing import Final

WINDOW: Final = 64  # outcomes remembered a bucket: about a second of a busy model
QUANTILE: Final = 0.95


class _Bucket:
    """The last outcomes of one batch size, also in order of size."""

    __slots__ = ("_latest", "_ordered")

    def __init__(self) -> None:
        self._latest: deque[float] = deque()
        self._ordered: list[float] = []

    def add(self, latency_s: float) -> None:
        if len(self._latest) == WINDOW:
            del self._ordered[bisect_left(self._ordered, self._latest.popleft())]
        self._latest.append(latency_s)
        insort(self._ordered, latency_s)

    def quantile_s(self) -> float:
        return self._ordered[int(QUANTILE * (len(self._ordered) - 1))]


class Profile:
    """Batch latency by batch rows, in buckets of powers of two.

    A bucket's latency is a high percentile of its last outcomes; the curve is made
    monotone in rows, because a larger batch cannot be known to be faster.
    """

    def __init__(self) -> None:
        self._buckets: dict[int, _Bucket] = {}
        self._points: list[tuple[int, float]] | None = []

    def observe(self, rows: int, latency_s: float) -> None:
        """Learns one outcome. What no clock can have measured is passed over."""
        if not isfinite(latency_s) or latency_s < 0.0:
            return
        bucket = self._buckets.setdefault(1 << max(0, rows - 1).bit_length(), _Bucket())
        bucket.add(latency_s)
        self._points = None

    def points(self) -> list[tuple[int, float]]:
        """(batch rows, latency in seconds), both ascending; empty while nothing is learned."""
        points = self._points
        if points is None:
            # Whole before it is seen: /metrics reads it from another thread.
            points, floor_s = [], 0.0
            for rows in sorted(self._buckets):
                floor_s = max(floor_s, self._buckets[rows].quantile_s())
                points.append((rows, floor_s))
            self._points = points
        return points

    def latency_s(self, rows: int) -> float | None:
        """l(rows): the bucket's, else interpolated, beyond the last bucket in proportion to
        rows; None while nothing is learned."""
        points = self.points()
        if not points:
            return None
        at = bisect_left(points, (rows, -1.0))
        if at == len(points):
            last_rows, last_s = points[-1]
            return last_s * rows / last_rows
        upper_rows, upper_s = points[at]
        if at == 0 or upper_rows == rows:
            return upper_s
        lower_rows, lower_s = points[at - 1]
        share = (rows - lower_rows) / (upper_rows - lower_rows)
        return lower_s + share * (upper_s - lower_s)
