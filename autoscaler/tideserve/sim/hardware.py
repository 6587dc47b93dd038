"""What simulated replicas are made of: batch times, start-up times, deaths. All drawn by seed."""

from bisect import bisect_left
from dataclasses import dataclass, field
from math import inf, log

import numpy as np


@dataclass(frozen=True, slots=True)
class BatchTimes:
    """l(b) through `points`, (rows, seconds), ascending in both: between them in proportion,
    outside by the slope of the nearest two. `noise`: standard deviation of its logarithm; the
    mean stays l(b)."""

    points: tuple[tuple[int, float], ...]
    noise: float = 0.0

    @classmethod
    def linear(cls, per_row_s: float, base_s: float, noise: float = 0.0) -> "BatchTimes":
        """l(b) = per_row_s x b + base_s."""
        return cls(((1, per_row_s + base_s), (2, 2 * per_row_s + base_s)), noise)

    def __post_init__(self) -> None:
        rows = [count for count, _ in self.points]
        times_s = [time_s for _, time_s in self.points]
        if not rows or rows[0] < 1 or sorted(set(rows)) != rows:
            raise ValueError(f"profile: expected rows from 1 up, each once, ascending, got {rows}")
        if times_s[0] <= 0.0 or sorted(times_s) != times_s:
            raise ValueError(
                f"profile: expected seconds above 0 that never fall with the rows, got {times_s}"
            )

    def mean_s(self, rows: float) -> float:
        """l(rows)."""
        points = self.points
        if len(points) == 1:
            return points[0][1]
        at = min(max(1, bisect_left(points, (rows, 0.0))), len(points) - 1)
        (lower, lower_s), (upper, upper_s) = points[at - 1], points[at]
        time_s = lower_s + (rows - lower) * (upper_s - lower_s) / (upper - lower)
        return max(time_s, points[0][1] * rows / points[0][0] if rows < points[0][0] else 0.0)

    def draw_s(self, rows: float, generator: np.random.Generator) -> float:
        """One batch's time."""
        if self.noise == 0.0:
            return self.mean_s(rows)
        drawn = generator.lognormal(-self.noise * self.noise / 2.0, self.noise)
        return self.mean_s(rows) * float(drawn)


@dataclass(frozen=True, slots=True)
class Spread:
    """A time around `median_s`, lognormal, with the worst of about twenty at `worst_s`."""

    median_s: float
    worst_s: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.median_s < inf or (self.worst_s and self.worst_s < self.median_s):
            raise ValueError(
                "start-up: expected a median of 0 s or more and a worst that is no less, got "
                f"{self.median_s:g} and {self.worst_s:g}"
            )

    def draw_s(self, generator: np.random.Generator) -> float:
        """One of them."""
        if self.worst_s <= self.median_s or self.median_s == 0.0:
            return self.median_s
        # The largest of twenty normal draws lies 1.87 deviations out on average.
        sigma = log(self.worst_s / self.median_s) / 1.87
        return self.median_s * float(generator.lognormal(0.0, sigma))


@dataclass(frozen=True, slots=True)
class Hardware:
    """`start_s`: launch to READY, cold; `load_s`: of a standby that is given a model;
    `prepared_s`: of an instance made before. `mean_life_s`: until it dies by itself,
    exponential; inf: never. `link_s`: what a lease takes to the replica, and its outcome back.
    `row_cost`: of the rows that `batch` is about; others count by what they cost."""

    batch: BatchTimes
    start_s: Spread = field(default_factory=lambda: Spread(0.3, 0.6))
    load_s: Spread = field(default_factory=lambda: Spread(0.05, 0.1))
    prepared_s: Spread = field(default_factory=lambda: Spread(0.5, 0.6))
    mean_life_s: float = inf
    link_s: float = 0.0
    row_cost: int = 1

    def mean_batch_s(self, rows: int, row_cost: int) -> float:
        """l(b) of so many rows, each of that cost."""
        return self.batch.mean_s(self._counted(rows, row_cost))

    def draw_batch_s(self, rows: int, row_cost: int, generator: np.random.Generator) -> float:
        """How long such a batch takes this time."""
        return self.batch.draw_s(self._counted(rows, row_cost), generator)

    def _counted(self, rows: int, row_cost: int) -> float:
        """As rows of what `batch` is about."""
        return rows if row_cost == self.row_cost else rows * row_cost / self.row_cost

    def draw_life_s(self, generator: np.random.Generator) -> float:
        """From READY to its death."""
        if self.mean_life_s == inf:
            return inf
        return float(generator.exponential(self.mean_life_s))
