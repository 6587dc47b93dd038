"""How much the rate may grow before a replica that is started now is READY.

Learned, not assumed: the ratio of [the highest rate in the next Tc] to [the rate then] over the
last minutes, and a table of the day's rates for what comes back every day.
"""

from dataclasses import dataclass, field, replace
from typing import Final

STEP_S: Final = 1.0
HISTORY: Final = 600
MAX_RATIO: Final = 3.0
# Fewer moments than these say nothing: the ratio is 1.
MIN_MOMENTS: Final = 30
# A rate below this is a few requests: its ratios are noise.
MIN_RATE: Final = 1.0

DAY_S: Final = 86_400.0
SLOT_S: Final = 900.0
SLOTS: Final = 96
# Of a new day's value in the table.
NEW_DAY_SHARE: Final = 0.5


@dataclass(frozen=True, slots=True)
class Growth:
    """The last `HISTORY` rates, a second apart. `ratio` is renewed with each of them."""

    rates: tuple[float, ...] = ()
    next_s: float = 0.0
    ratio: float = 1.0

    def push(self, rate: float, lead_s: float, now_s: float, quantile: float) -> "Growth":
        """With this rate, once a second. `lead_s`: Tc. `quantile`: of the ratio."""
        if now_s < self.next_s:
            return self
        rates = (*self.rates, rate)[-HISTORY:]
        return Growth(rates, now_s + STEP_S, ratio_of(rates, lead_s, quantile))


def ratio_of(rates: tuple[float, ...], lead_s: float, quantile: float) -> float:
    """This quantile of [max rate in the next `lead_s` / rate now], 1 to `MAX_RATIO`."""
    lead = max(1, round(lead_s / STEP_S))
    ratios = sorted(
        max(rates[at + 1 : at + 1 + lead]) / rates[at]
        for at in range(len(rates) - lead)
        if rates[at] >= MIN_RATE
    )
    if len(ratios) < MIN_MOMENTS:
        return 1.0
    return min(MAX_RATIO, max(1.0, ratios[min(len(ratios) - 1, int(quantile * len(ratios)))]))


@dataclass(frozen=True, slots=True)
class DayTable:
    """The highest rate of each quarter of an hour, by time of day (UTC), over earlier days.

    `slot` and `high`: the quarter that runs, by its number since 1970, and its highest rate so
    far; it enters the table when it is over.
    """

    rates: tuple[float | None, ...] = field(default=(None,) * SLOTS)
    slot: int | None = None
    high: float = 0.0

    def push(self, rate: float, unix_s: float) -> "DayTable":
        """With this rate."""
        slot = int(unix_s // SLOT_S)
        if self.slot is None:
            return replace(self, slot=slot, high=rate)
        if slot == self.slot:
            return replace(self, high=max(self.high, rate)) if rate > self.high else self
        rates = list(self.rates)
        at = self.slot % SLOTS
        known = rates[at]
        rates[at] = self.high if known is None else known + NEW_DAY_SHARE * (self.high - known)
        return DayTable(tuple(rates), slot, rate)

    def expected(self, unix_s: float, lead_s: float) -> float:
        """The highest rate that earlier days had from now to `lead_s` later; 0: not known."""
        first, last = int(unix_s // SLOT_S), int((unix_s + lead_s) // SLOT_S)
        slots = range(first, min(last, first + SLOTS - 1) + 1)
        return max((self.rates[slot % SLOTS] or 0.0 for slot in slots), default=0.0)
