"""Whether one more replica on the same device gave more goodput; remembered where it did not."""

from dataclasses import dataclass
from typing import Final

# A count of replicas has a figure after it was READY, with requests waiting, for so long.
STEADY_S: Final = 4.0
# One more replica of n should give 1/n more; with less than this share of it, it gives nothing.
LEAST_SHARE: Final = 0.15
# Then it may be tried again: a neighbour on the device may be gone.
FORGET_S: Final = 600.0
_WEIGHT: Final = 0.3


@dataclass(frozen=True, slots=True)
class Gains:
    """Rows a second under backlog by READY replicas, and the count that was found to be the
    most that helps. `count_since_s`: since when so many were READY."""

    rates: tuple[tuple[int, float], ...] = ()
    cap: int | None = None
    cap_until_s: float = 0.0
    count: int = 0
    count_since_s: float = 0.0

    def push(
        self, ready: int, rows_per_s: float | None, *, backlogged: bool, now_s: float
    ) -> "Gains":
        """One look. `backlogged`: requests waited all the time for `STEADY_S`."""
        cap, until_s = self.cap, self.cap_until_s
        rates = self.rates
        if cap is not None and now_s >= until_s:
            cap, rates = None, ()
        if ready != self.count:
            return Gains(rates, cap, until_s, ready, now_s)
        steady = now_s - self.count_since_s >= STEADY_S
        if not (steady and backlogged and ready and rows_per_s):
            return Gains(rates, cap, until_s, ready, self.count_since_s)
        table = dict(rates)
        known = table.get(ready, rows_per_s)
        table[ready] = known + _WEIGHT * (rows_per_s - known)
        fewer = table.get(ready - 1)
        if cap is None and fewer is not None:
            gain = table[ready] - fewer
            if gain < LEAST_SHARE * fewer / (ready - 1):
                cap, until_s = ready - 1, now_s + FORGET_S
        newest = sorted(table.items())[-64:]
        return Gains(tuple(newest), cap, until_s, ready, self.count_since_s)
