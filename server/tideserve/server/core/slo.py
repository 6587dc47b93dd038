"""Batches for a latency target: as late and as large as it allows.

Deferred batching after Symphony (https://arxiv.org/abs/2308.07470): a batch waits for more
rows until one more would make its first request late. What is ours is which requests to leave
out when there are too many (`_window`), and that those are served late where they may be.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import accumulate, groupby, islice
from typing import Final, NamedTuple

from tideserve.server.core.batching import Form, Wait
from tideserve.server.core.request import Request
from tideserve.server.core.settings import BatchSettings

# A batch waits at most this share of the time between two batches of all replicas together,
# l(b*)/N. Longer fills batches no better and makes answers later at low loads.
MAX_DEFERRAL: Final = 1.5
# How many of the replicas that are free next are looked at.
LOOK_AHEAD: Final = 3
# Times are sums of floats: what is due at a moment must not miss it by their rounding.
_ROUNDING_S: Final = 1e-9
# Where a run of requests may begin: beyond so many of them only every second, third, ... is
# looked at, for each costs a look at all that follow.
_MOST_STARTS: Final = 400
# Requests looked at for one batch, in batches.
_SCAN_BATCHES: Final = 4


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a decision knows beside the requests.

    `table_s`: l(b) by rows b from 0. `replicas`: N, those that are READY. `idle`: those of
    them with empty hands, this one included if it is. `start_s`: when this replica could
    begin; `next_free_s`: when the others could, worked out in an overload only. `slack_s` is added to what is due:
    negative for the margin of link and loop, and at least what makes one row alone feasible,
    or a target below l(1) would leave nothing to serve. `rows_per_s`: arrivals. `by_cost`: the
    same for rows of which each costs so much; None: all cost the same.
    """

    table_s: Sequence[float]
    target_s: float
    replicas: int
    idle: int
    start_s: float
    slack_s: float = 0.0
    rows_per_s: float = 0.0
    next_free_s: Iterable[float] = ()
    by_cost: Callable[[int], "Outlook"] | None = None

    def of(self, row_cost: int) -> "Outlook":
        """For rows of that cost."""
        return self if self.by_cost is None else self.by_cost(row_cost)

    def rows_within(self, seconds: float) -> int:
        """The most rows that take no longer."""
        return bisect_right(self.table_s, seconds + _ROUNDING_S) - 1

    @property
    def best_rows(self) -> int:
        """b*: the largest batch that N staggered replicas can give to every request in time,
        l(b)(1 + 1/N) within the target."""
        return max(1, self.rows_within((self.target_s + self.slack_s) / (1 + 1 / self.replicas)))

    def keep_up_rows(self) -> int:
        """The smallest batches with which the replicas keep up with arrivals, at most b*."""
        best = self.best_rows
        for rows in range(1, best):
            if self.replicas * rows >= self.rows_per_s * self.table_s[rows]:
                return rows
        return best


@dataclass(frozen=True, slots=True)
class Choice:
    """`late`: these can be in time no more. `decision` None: nothing waits for this replica."""

    decision: Form | Wait | None
    late: list[Request] = field(default_factory=list)


class _Taken(NamedTuple):
    """A batch of the requests from `first` up to, not including, `end`."""

    first: int
    end: int
    rows: int


def choose_in_time(
    on_time: Iterable[Request],
    late: Iterable[Request],
    settings: BatchSettings,
    cap_rows: int,
    outlook: Outlook,
    now_s: float,
) -> Choice:
    """Decides for one replica. `on_time` by level, then by what is due first; `late`: what was
    found to be late before. Signatures wait apart, as in window mode."""
    cap_rows = max(1, cap_rows)
    groups, out = _feasible(on_time, cap_rows, outlook)
    until_s = None
    for group in groups:
        cost = group[0].row_cost
        fits_rows, own = settings.capped_rows(cap_rows, cost), outlook.of(cost)
        found = _decide(group, settings, fits_rows, own, now_s)
        out += found.late
        match found.decision:
            case Form(requests, rows):
                return Choice(_topped_up(requests, rows, late, settings, fits_rows, own), out)
            case Wait(due_s):
                until_s = due_s if until_s is None else min(until_s, due_s)
            case None:
                pass
    if until_s is not None and outlook.idle < 2:
        return Choice(Wait(until_s), out)
    if outlook.start_s <= now_s and outlook.idle:
        overdue = _late_batch(late, settings, cap_rows, outlook)
        if overdue is not None:
            return Choice(overdue, out)
    return Choice(None if until_s is None else Wait(until_s), out)


def _feasible(
    on_time: Iterable[Request], cap_rows: int, outlook: Outlook
) -> tuple[list[list[Request]], list[Request]]:
    """By signature in order of service, and those that would be late even if they ran alone."""
    groups: dict[Hashable, list[Request]] = {}
    late: list[Request] = []
    own = outlook
    for request in islice(on_time, _SCAN_BATCHES * cap_rows + 64):
        if outlook.by_cost is not None:
            own = outlook.by_cost(request.row_cost)
        table_s, rows = own.table_s, request.rows
        alone_s = table_s[rows] if rows < len(table_s) else table_s[-1]
        if request.due_s + own.slack_s - own.start_s + _ROUNDING_S < alone_s:
            late.append(request)
        else:
            groups.setdefault(request.signature, []).append(request)
    return list(groups.values()), late


def _decide(
    group: list[Request], settings: BatchSettings, cap_rows: int, outlook: Outlook, now_s: float
) -> Choice:
    everything = _prefix(group, 0, settings, min(cap_rows, _fits(group, outlook)))
    if everything.end < len(group):
        return _overload(group, settings, cap_rows, outlook)
    rows = everything.rows
    if rows < cap_rows and outlook.replicas > 1:
        # One row more must still fit when it comes.
        more_s = outlook.table_s[min(rows + 1, len(outlook.table_s) - 1)]
        due_s = min([request.due_s for request in group]) + outlook.slack_s
        oldest_s = min([request.arrived_s for request in group])
        deferral_s = MAX_DEFERRAL * outlook.table_s[outlook.best_rows] / outlook.replicas
        until_s = min(due_s - more_s, oldest_s + deferral_s)
        if now_s + _ROUNDING_S < until_s:
            return Choice(Wait(until_s))
    return Choice(Form(tuple(group), rows, full=rows >= cap_rows))


class _Line:
    """Requests of one level in order of service, what is due first ahead. Sums over those ahead
    of each, so that a run of them is cut without walking along it."""

    __slots__ = ("_bytes", "due_s", "requests", "rows")

    def __init__(self, requests: list[Request]) -> None:
        self.requests = requests
        self.due_s = [request.due_s for request in requests]
        self.rows = list(accumulate((one.rows for one in requests), initial=0))
        self._bytes = list(accumulate((one.payload_bytes for one in requests), initial=0))

    def end(self, first: int, most_rows: int, most_bytes: int) -> int:
        """Up to where, not including, as many from `first` on fit."""
        by_rows = bisect_right(self.rows, self.rows[first] + most_rows, first) - 1
        by_bytes = bisect_right(self._bytes, self._bytes[first] + most_bytes, first) - 1
        return max(first, min(by_rows, by_bytes))

    def taken(self, first: int, settings: BatchSettings, most_rows: int) -> _Taken:
        """As many from `first` on as fit; the first one always."""
        end = first + 1
        if settings.max_batch_rows:
            end = max(end, self.end(first, most_rows, settings.max_lease_bytes))
        return _Taken(first, end, self.rows[end] - self.rows[first])


def _overload(
    group: list[Request], settings: BatchSettings, cap_rows: int, outlook: Outlook
) -> Choice:
    """More waits than one batch can take in time. The highest level's window goes first; rows
    of lower levels fill it up as far as nobody is late for it."""
    levels = [_Line(list(level)) for _, level in groupby(group, lambda request: request.priority)]
    own = levels[0].requests
    taken = _window(levels[0], settings, cap_rows, outlook)
    batch = own[taken.first : taken.end]
    if taken.end == len(own):
        for lower in levels[1:]:
            batch += _filling(batch, lower, settings, cap_rows, outlook)
    rows = sum(request.rows for request in batch)
    return Choice(Form(tuple(batch), rows, full=True), own[: taken.first])


def _filling(
    batch: list[Request],
    lower: _Line,
    settings: BatchSettings,
    cap_rows: int,
    outlook: Outlook,
) -> list[Request]:
    """The run of these that adds the most rows to the batch. The first of them are nearly out
    of time in an overload: with them it would be a small batch."""
    left_s = min(_left_s(request, outlook) for request in batch)
    rows = sum(request.rows for request in batch)
    left_bytes = settings.max_lease_bytes - sum(request.payload_bytes for request in batch)
    if left_bytes < 0:
        return []
    best, most_rows = (0, 0), 0
    for first, request in enumerate(lower.requests):
        fits = outlook.rows_within(min(left_s, _left_s(request, outlook)))
        room = min(cap_rows, fits) - rows
        end = lower.end(first, room, left_bytes) if room > 0 else first
        added = lower.rows[end] - lower.rows[first]
        if added > most_rows:
            best, most_rows = (first, end), added
        if end == len(lower.requests) or rows + most_rows >= cap_rows:
            break
    return lower.requests[best[0] : best[1]]


def _window(line: _Line, settings: BatchSettings, cap_rows: int, outlook: Outlook) -> _Taken:
    """Which run of these, by due, makes the best batch. Leaving out the first ones makes it
    larger, and it costs them.

    A run is worth its rows, less what its time would serve elsewhere at full batches, less
    the rows that are lost for it: those left out, and those that the next free replicas would
    find too late for a batch large enough to keep up with arrivals.
    """
    own, table_s = line.requests, outlook.table_s
    best_rows = outlook.best_rows
    price = best_rows / table_s[best_rows] if table_s[best_rows] > 0.0 else 0.0
    keep_up_s = table_s[outlook.keep_up_rows()]
    others_s = nsmallest(LOOK_AHEAD, outlook.next_free_s)
    largest = outlook.rows_within(_left_s(own[-1], outlook))
    most_worth = max((b - price * table_s[b] for b in range(1, largest + 1)), default=0.0)
    best, best_worth = _Taken(0, 1, own[0].rows), float("-inf")
    for first in range(0, len(own), 1 + len(own) // _MOST_STARTS):
        left_out = line.rows[first]
        if most_worth - left_out <= best_worth:
            # Whatever begins here or later loses more than it can be worth.
            break
        fits = outlook.rows_within(_left_s(own[first], outlook))
        taken = line.taken(first, settings, min(cap_rows, fits))
        time_s = table_s[min(taken.rows, len(table_s) - 1)]
        free_s = sorted((*others_s, outlook.start_s + time_s))[:LOOK_AHEAD]
        lost = left_out + _lost_behind(line, taken.end, free_s, keep_up_s, outlook)
        worth = taken.rows - price * time_s - lost
        if worth > best_worth + _ROUNDING_S:
            best, best_worth = taken, worth
        if taken.end == len(own):
            break
    return best


def _lost_behind(
    line: _Line, at: int, next_free_s: list[float], keep_up_s: float, outlook: Outlook
) -> int:
    """Rows from `at` on that wait too long for the replicas that are free next, this one again
    among them."""
    lost, best_rows, count = 0, outlook.best_rows, len(line.requests)
    for free_s in next_free_s:
        if at == count:
            break
        too_late_s = keep_up_s - _ROUNDING_S - outlook.slack_s + free_s
        in_time = bisect_left(line.due_s, too_late_s, at)
        lost += line.rows[in_time] - line.rows[at]
        at = in_time
        if at == count:
            break
        room = min(best_rows, outlook.rows_within(line.due_s[at] + outlook.slack_s - free_s))
        at = max(at, bisect_right(line.rows, line.rows[at] + room, at) - 1)
    return lost


def _topped_up(
    requests: tuple[Request, ...],
    rows: int,
    late: Iterable[Request],
    settings: BatchSettings,
    cap_rows: int,
    outlook: Outlook,
) -> Form:
    """Late requests ride along where that makes nobody else late."""
    batch = list(requests)
    fits = min(cap_rows, _fits(batch, outlook))
    payload_bytes = sum(request.payload_bytes for request in batch)
    for request in islice(late, _SCAN_BATCHES * cap_rows + 64):
        if request.signature != batch[0].signature:
            continue
        payload_bytes += request.payload_bytes
        if rows + request.rows > fits or payload_bytes > settings.max_lease_bytes:
            break
        batch.append(request)
        rows += request.rows
    return Form(tuple(batch), rows, full=rows >= cap_rows)


def _late_batch(
    late: Iterable[Request], settings: BatchSettings, cap_rows: int, outlook: Outlook
) -> Form | None:
    """Late ones among themselves, no more than b* rows, so that those in time wait no longer
    than for any other batch."""
    waiting = list(islice(late, _SCAN_BATCHES * cap_rows + 64))
    if not waiting:
        return None
    same = [request for request in waiting if request.signature == waiting[0].signature]
    cost = same[0].row_cost
    most_rows = min(settings.capped_rows(cap_rows, cost), outlook.of(cost).best_rows)
    taken = _prefix(same, 0, settings, most_rows)
    return Form(tuple(same[: taken.end]), taken.rows, full=True)


def _prefix(requests: list[Request], first: int, settings: BatchSettings, most_rows: int) -> _Taken:
    """As many from `first` on as fit; the first one always."""
    rows = requests[first].rows
    payload_bytes = requests[first].payload_bytes
    end = first + 1
    while end < len(requests) and settings.max_batch_rows:
        request = requests[end]
        payload_bytes += request.payload_bytes
        if rows + request.rows > most_rows or payload_bytes > settings.max_lease_bytes:
            break
        rows += request.rows
        end += 1
    return _Taken(first, end, rows)


def _fits(requests: list[Request], outlook: Outlook) -> int:
    due_s = min([request.due_s for request in requests])
    return outlook.rows_within(due_s + outlook.slack_s - outlook.start_s)


def _left_s(request: Request, outlook: Outlook) -> float:
    return request.due_s + outlook.slack_s - outlook.start_s
