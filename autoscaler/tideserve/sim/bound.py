"""The most that any batching policy can have in time: an upper bound, for one that knows all
arrivals included.

N replicas, a batch of b requests takes l(b), an answer is in time within T of its arrival. Take any
schedule and forget the requests that are late: each batch that is left has b requests whose
arrivals lie at most T - l(b) apart, since it begins after the last and ends before the first one's
deadline, and all batches together take at most N (the last deadline - the first arrival) of
replica time. With a price of lambda requests a second of that time,

    in time <= lambda N span_s + max over sets of disjoint batches of sum (b - lambda l(b)),

for each lambda >= 0. When a replica is free is not asked, so the bound errs upward only.

The maximum needs batches with b > lambda l(b) only, and of two batches that overlap in time one
lies within the other: else both are sorted anew by arrival at the same sizes, and neither gets
wider. The outer one has fewer requests: else any split of both is within its width. So the
outermost batches, each with those within it, are disjoint runs of arrivals, and a run of m that
is w wide is worth at most

    max over a with w <= T - l(a):  a - lambda l(a) + the most of m - a in batches larger than a,

whatever the width of those. One pass over the arrivals adds up the best runs.
"""

from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tideserve.sim.hardware import BatchTimes

Floats = NDArray[np.float64]
# Each step asks for two prices and leaves this share of those between them.
_STEPS: Final = 9
_GOLDEN: Final = 0.618
# Times that are equal but for rounding.
_EQUAL_S: Final = 1e-9
# Runs that are valued at once: 32 MiB.
_BLOCK: Final = 1 << 22


def most_in_time(
    arrived_s: Floats, *, replicas: int, batch: BatchTimes, target_s: float, max_rows: int
) -> float:
    """At most this share of the arrivals is in time, whatever the policy. 1 where there is none.

    `arrived_s`: seconds, ascending. `batch`: l(b), without its noise. Tries twenty prices, about
    a second each for 100,000 arrivals.
    """
    if replicas < 1:
        raise ValueError(f"replicas: expected 1 or more, got {replicas}")
    if np.any(np.diff(arrived_s) < 0.0):
        raise ValueError("arrived_s: expected seconds in ascending order")
    if arrived_s.size == 0:
        return 1.0
    times_s = np.array([batch.mean_s(rows) for rows in range(1, max_rows + 1)])
    widths_s = target_s - times_s + _EQUAL_S
    fitting = int(np.count_nonzero(widths_s >= 0.0))
    if fitting == 0:
        return 0.0
    times_s, widths_s = times_s[:fitting], widths_s[:fitting]
    span_s = replicas * float(arrived_s[-1] + target_s - arrived_s[0])

    def bound(price: float) -> float:
        return price * span_s + _worth(arrived_s, times_s, widths_s, price)

    # The bound is convex in the price, or nearly; each price gives one that holds.
    low, high = 0.0, float((np.arange(1, fitting + 1) / times_s).max())
    found = bound(low)
    for _ in range(_STEPS):
        inner = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        left, right = map(bound, inner)
        found = min(found, left, right)
        low, high = (low, inner[1]) if left < right else (inner[0], high)
    return min(1.0, found / arrived_s.size)


def _worth(arrived_s: Floats, times_s: Floats, widths_s: Floats, price: float) -> float:
    """The most that disjoint runs of arrivals are worth."""
    values = np.arange(1, times_s.size + 1) - price * times_s
    if not np.any(values > 0.0):
        return 0.0
    smallest = int(np.argmax(values > 0.0)) + 1
    longest = _longest(arrived_s, float(widths_s[smallest - 1]))
    table = _runs(values, smallest, longest)
    lengths = np.arange(1, longest + 1)
    count = arrived_s.size
    # Of the first so many arrivals, and before them as many as a run may reach beyond.
    worth = np.zeros(longest + count)
    for begin in range(0, count, max(1, _BLOCK // longest)):
        ends = np.arange(begin, min(begin + max(1, _BLOCK // longest), count))
        firsts = ends[:, np.newaxis] - lengths[np.newaxis, :] + 1
        wide_s = arrived_s[ends][:, np.newaxis] - arrived_s[np.maximum(firsts, 0)]
        # The largest batch that may be so wide: widths fall with the rows.
        largest = times_s.size - np.searchsorted(widths_s[::-1], wide_s, side="left")
        gains = table[lengths[np.newaxis, :], largest]
        gains[firsts < 0] = -inf
        for end, gained in zip(ends.tolist(), gains[:, ::-1], strict=True):
            at = longest + end
            worth[at] = max(worth[at - 1], (worth[at - longest : at] + gained).max())
    return float(worth[-1])


def _longest(arrived_s: Floats, width_s: float) -> int:
    """The most arrivals within `width_s`."""
    after = np.searchsorted(arrived_s, arrived_s + width_s, side="right")
    return int((after - np.arange(arrived_s.size)).max())


def _runs(values: Floats, smallest: int, longest: int) -> Floats:
    """What a run of m arrivals is worth where its outermost batch has at most a requests: a table
    by m and a. -inf: there is none."""
    sizes = values.size
    # By a and m: the most of m arrivals that are all in batches larger than a.
    within = np.full((sizes + 1, longest + 1), -inf)
    within[:, 0] = 0.0
    for total in range(1, longest + 1):
        for rows in range(smallest, min(sizes, total) + 1):
            worth = within[:rows, total - rows] + values[rows - 1]
            np.maximum(within[:rows, total], worth, out=within[:rows, total])
    table = np.full((longest + 1, sizes + 1), -inf)
    for rows in range(smallest, min(sizes, longest) + 1):
        table[rows:, rows] = within[rows, : longest + 1 - rows] + values[rows - 1]
    best: Floats = np.maximum.accumulate(table, axis=1)
    return best
