"""The profile l(b): how long a batch of b rows takes, learned from outcomes."""

from bisect import bisect_left
from collections import deque
from typing import Final

WINDOW: Final = 64  # outcomes remembered a bucket: about a second of a busy model
QUANTILE: Final = 0.95


class Profile:
    """Batch latency by batch rows, in buckets of powers of two.

    A bucket's latency is a high percentile of its last outcomes; the curve is made
    monotone in rows, because a larger batch cannot be known to be faster.
    """

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._points: list[tuple[int, float]] | None = []

    def observe(self, rows: int, latency_s: float) -> None:
        """Learns one outcome."""
        bucket = 1 << (rows - 1).bit_length()
        samples = self._samples.get(bucket)
        if samples is None:
            samples = self._samples[bucket] = deque(maxlen=WINDOW)
        samples.append(latency_s)
        self._points = None

    def points(self) -> list[tuple[int, float]]:
        """(batch rows, latency in seconds), both ascending; empty while nothing is learned."""
        if self._points is None:
            self._points = []
            floor_s = 0.0
            for bucket in sorted(self._samples):
                ordered = sorted(self._samples[bucket])
                floor_s = max(floor_s, ordered[int(QUANTILE * (len(ordered) - 1))])
                self._points.append((bucket, floor_s))
        return self._points

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
