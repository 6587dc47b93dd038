"""The profile l(b): how long a batch of b rows takes, learned from outcomes."""

from bisect import bisect_left
from dataclasses import dataclass
from math import isfinite
from typing import Final

from tideserve.server.core.rolling import Rolling

WINDOW: Final = 64  # outcomes remembered a size: about a second of a busy model
QUANTILE: Final = 0.95
# A size that was not seen for so many outcomes is forgotten: what was learned of it when the
# device was slow would keep it from ever being tried again. Sooner where sizes are chosen by it;
# later where it is read as what a replica can do, also after a quiet time of small batches.
FORGOTTEN_AFTER: Final = 2048
FORGOTTEN_SOON: Final = 128
# Sizes up to this are told apart, larger ones by 32 an octave.
_EXACT_ROWS: Final = 64
# Once so much is known the curve is made anew every so many outcomes only.
_SETTLED: Final = 256
_STRIDE: Final = 16
_MAX_TABLE_ROWS: Final = 4096


@dataclass(frozen=True, slots=True)
class _Curve:
    """Sizes ascending, with latencies that never fall: high percentile and median."""

    rows: tuple[int, ...] = ()
    high_s: tuple[float, ...] = ()
    typical_s: tuple[float, ...] = ()


class Profile:
    """Batch latency by batch rows: a high percentile of each size's last outcomes.

    The curve is made monotone by pooling neighbours that contradict each other, each by its
    number of outcomes (isotonic regression): one slow outcome of a rare size does not make
    all larger ones slow.
    """

    def __init__(self, forgotten_after: int = FORGOTTEN_AFTER) -> None:
        self._forgotten_after = forgotten_after
        self._sizes: dict[int, Rolling] = {}
        self._outcomes = 0
        self._curve = _Curve()
        self._table: list[float] = []

    def observe(self, rows: int, latency_s: float) -> None:
        """Learns one outcome. What no clock can have measured is passed over."""
        if not isfinite(latency_s) or latency_s < 0.0:
            return
        self._outcomes += 1
        size = _size(rows)
        if size not in self._sizes:
            self._sizes[size] = Rolling(WINDOW)
        self._sizes[size].add(latency_s, self._outcomes)
        if self._outcomes <= _SETTLED or self._outcomes % _STRIDE == 0:
            self._forget()
            # Whole before it is seen: /metrics reads it from another thread.
            self._curve = self._fit()
            self._table = []

    @property
    def known(self) -> bool:
        """Whether anything was learned."""
        return self._outcomes > 0

    def points(self) -> list[tuple[int, float]]:
        """(batch rows, latency in seconds) at powers of two and at the largest size known,
        both ascending; empty while nothing is learned."""
        curve = self._curve
        if not curve.rows:
            return []
        last = curve.rows[-1]
        first = 1 << (curve.rows[0] - 1).bit_length()
        sizes = []
        while first < last:
            sizes.append(first)
            first *= 2
        return [(rows, _at(curve, curve.high_s, rows)) for rows in (*sizes, last)]

    def latency_s(self, rows: int) -> float | None:
        """l(rows), a high percentile: the size's, else interpolated; below the smallest known
        size on the line through all, beyond the largest in proportion to rows; None while
        nothing is learned."""
        curve = self._curve
        return _at(curve, curve.high_s, rows) if curve.rows else None

    def typical_s(self, rows: int) -> float | None:
        """The same of the median."""
        curve = self._curve
        return _at(curve, curve.typical_s, rows) if curve.rows else None

    def table(self, max_rows: int) -> list[float]:
        """l(b) for b from 0 (0 s) to `max_rows`, never falling. Something must be known."""
        curve = self._curve
        max_rows = min(max_rows, _MAX_TABLE_ROWS)
        if len(self._table) != max_rows + 1:
            self._table = [0.0, *(_at(curve, curve.high_s, b) for b in range(1, max_rows + 1))]
        return self._table

    def _forget(self) -> None:
        oldest = self._outcomes - self._forgotten_after
        if oldest <= 0:
            return
        for latencies in self._sizes.values():
            latencies.drop_before(oldest)
        self._sizes = {size: known for size, known in self._sizes.items() if len(known)}

    def _fit(self) -> _Curve:
        sizes = sorted(self._sizes)
        known = [self._sizes[size] for size in sizes]
        counts = [len(latencies) for latencies in known]
        return _Curve(
            rows=tuple(sizes),
            high_s=_rising([latencies.quantile(QUANTILE) for latencies in known], counts),
            typical_s=_rising([latencies.quantile(0.5) for latencies in known], counts),
        )


def _size(rows: int) -> int:
    if rows <= _EXACT_ROWS:
        return max(1, rows)
    step = 1 << ((rows - 1).bit_length() - 6)
    return -(-rows // step) * step


def _rising(values: list[float], counts: list[int]) -> tuple[float, ...]:
    """The closest values that never fall: pool adjacent violators."""
    pools: list[tuple[float, int, int]] = []  # mean, weight, how many values
    for value, count in zip(values, counts, strict=True):
        mean, weight, length = value, count, 1
        while pools and pools[-1][0] > mean:
            other, other_weight, other_length = pools.pop()
            mean = (mean * weight + other * other_weight) / (weight + other_weight)
            weight += other_weight
            length += other_length
        pools.append((mean, weight, length))
    return tuple(mean for mean, _, length in pools for _ in range(length))


def _at(curve: _Curve, latencies: tuple[float, ...], rows: int) -> float:
    at = bisect_left(curve.rows, rows)
    if at == len(curve.rows):
        return latencies[-1] * rows / curve.rows[-1]
    if curve.rows[at] == rows:
        return latencies[at]
    if at == 0:
        return _below(curve, latencies, rows)
    lower, upper = curve.rows[at - 1], curve.rows[at]
    share = (rows - lower) / (upper - lower)
    return latencies[at - 1] + share * (latencies[at] - latencies[at - 1])


def _below(curve: _Curve, latencies: tuple[float, ...], rows: int) -> float:
    """Of fewer rows than were ever seen: on the line through the smallest and the largest known
    size, but no faster a row than the smallest."""
    first, last = curve.rows[0], curve.rows[-1]
    if first == last:
        return latencies[0]
    slope_s = (latencies[-1] - latencies[0]) / (last - first)
    return max(latencies[0] * rows / first, latencies[0] - slope_s * (first - rows))
