"""The last seconds of one model version's load: rates and quantiles between two moments."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Final

from tideserve.autoscaler.core.load import Histogram, Load

SPAN_S: Final = 30.0
# At most so many loads are kept: those that come faster replace the newest.
STEP_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class LoadWindow:
    """Loads of the last `SPAN_S`, or of longer where they come seldom, oldest first. `push`
    gives the next one."""

    loads: tuple[Load, ...] = ()

    def push(self, load: Load) -> "LoadWindow":
        """With this load; one that is no newer than the last changes nothing."""
        loads = self.loads
        if loads and load.at_s <= loads[-1].at_s:
            return self
        if len(loads) >= 2 and load.at_s - loads[-2].at_s < STEP_S:
            loads = loads[:-1]
        begin_s = load.at_s - max(SPAN_S, 2.0 * load.good_for_s)
        keep = next((at for at, old in enumerate(loads) if old.at_s >= begin_s), len(loads))
        return LoadWindow((*loads[keep:], load))

    @property
    def newest(self) -> Load | None:
        return self.loads[-1] if self.loads else None

    @property
    def is_new(self) -> bool:
        """One load alone: there is nothing to compare it with, or all of it is too old, and what
        came meanwhile is not known."""
        return len(self.loads) == 1

    def covers_s(self) -> float:
        """From the oldest load to the newest."""
        return self.loads[-1].at_s - self.loads[0].at_s if self.loads else 0.0

    def begins_s(self, span_s: float) -> float:
        """Since when what is said of the last `span_s` is counted."""
        pair = self._pair(span_s)
        if pair is not None:
            return pair[0].at_s
        return self.loads[-1].at_s if self.loads else 0.0

    def request_rate(self, span_s: float) -> float | None:
        """Arrivals a second over the last `span_s`, None before there are two loads."""
        pair = self._pair(span_s)
        if pair is None:
            return None
        old, new = pair
        return max(0.0, new.arrivals - old.arrivals) / (new.at_s - old.at_s)

    def surge_rate(self, spans_s: Sequence[float]) -> float:
        """The highest rate of these short spans that is no accident: two standard deviations
        of a Poisson count below what was counted."""
        highest = 0.0
        for span_s in spans_s:
            pair = self._pair(span_s)
            if pair is not None:
                old, new = pair
                count = max(0.0, new.arrivals - old.arrivals)
                highest = max(highest, (count - 2.0 * sqrt(count)) / (new.at_s - old.at_s))
        return highest

    def is_active(self) -> bool:
        """Requests came since the load before, or are at work now."""
        newest = self.newest
        if newest is None:
            return False
        came = len(self.loads) >= 2 and newest.arrivals > self.loads[-2].arrivals
        return came or newest.queued_requests > 0 or newest.leased_requests > 0

    def drops(self, span_s: float) -> float:
        """Requests rejected or expired within the last `span_s`."""
        pair = self._pair(span_s)
        if pair is None:
            return 0.0
        old, new = pair
        return max(0.0, new.rejected - old.rejected) + max(0.0, new.expired - old.expired)

    def served_rows_rate(self, span_s: float) -> float | None:
        """Rows executed a second."""
        pair = self._pair(span_s)
        if pair is None:
            return None
        old, new = pair
        return max(0.0, new.rows - old.rows) / (new.at_s - old.at_s)

    def rows_per_request(self) -> float:
        """1 while nothing was answered, or less than one (a source may extrapolate counters)."""
        newest = self.newest
        if newest is None or newest.succeeded + newest.failed < 1.0:
            return 1.0
        oldest = self.loads[0]
        answered = (newest.succeeded + newest.failed) - (oldest.succeeded + oldest.failed)
        rows = newest.rows - oldest.rows
        if answered < 20.0:  # too few to say; all that were ever answered say more
            answered, rows = newest.succeeded + newest.failed, newest.rows
        return max(1.0, rows / answered)

    def queue_wait_s(self, span_s: float, quantile: float) -> float | None:
        """This quantile of the queue waits that ended in the last `span_s`."""
        pair = self._pair(span_s)
        if pair is None:
            return None
        old, new = pair
        return quantile_of(new.queue_wait_s, old.queue_wait_s, quantile)

    def was_backlogged(self, span_s: float, rows: int) -> bool:
        """More than so many rows waited at every moment of the last `span_s`."""
        newest = self.newest
        if newest is None or self.covers_s() < span_s:
            return False
        return all(
            load.queued_rows > rows for load in self.loads if load.at_s >= newest.at_s - span_s
        )

    def _pair(self, span_s: float) -> tuple[Load, Load] | None:
        """The newest load, and the one that is `span_s` older (or as near as there is)."""
        if len(self.loads) < 2:
            return None
        new = self.loads[-1]
        old = self.loads[0]
        for load in self.loads[:-1]:
            if new.at_s - load.at_s < span_s:
                break
            old = load
        return old, new


def quantile_of(new: Histogram, old: Histogram, quantile: float) -> float | None:
    """Of what was counted between two moments, within its bucket by proportion; the last
    bound for what lies above it. None where nothing was."""
    if new.bounds != old.bounds and old.bounds:
        return None
    before = old.counts or (0.0,) * len(new.counts)
    counts = [max(0.0, now - then) for now, then in zip(new.counts, before, strict=True)]
    total = sum(counts)
    if total <= 0.0:
        return None
    rank, below = quantile * total, 0.0
    for position, bound in enumerate(new.bounds):
        if counts[position] > 0.0 and below + counts[position] >= rank:
            lower = new.bounds[position - 1] if position else 0.0
            return lower + (bound - lower) * (rank - below) / counts[position]
        below += counts[position]
    return new.bounds[-1] if new.bounds else None
