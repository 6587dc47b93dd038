"""What one replica can do, from the learned batch latency l(b), and how many a rate needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, exp
from typing import Final

MAX_SERVERS: Final = 4096
Profile = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Capacity:
    """The batch b* that a replica should take, how long it takes, and mu = b*/l(b*)."""

    batch_rows: int
    batch_s: float

    @property
    def rows_per_s(self) -> float:
        return self.batch_rows / self.batch_s


def capacity(profile: Profile, target_s: float | None, replicas: int) -> Capacity | None:
    """b* is the largest batch with l(b)(1 + 1/N) <= target (after Symphony, design section 6);
    without a target, or where no batch meets it, the batch with the highest rate.

    None while nothing is learned.
    """
    points = [(rows, latency_s) for rows, latency_s in profile if rows > 0 and latency_s > 0.0]
    if not points:
        return None
    if target_s is not None:
        slack = 1.0 + 1.0 / max(1, replicas)
        fitting = [point for point in points if point[1] * slack <= target_s]
        if fitting:
            return _largest(max(fitting), points, target_s / slack)
    return max((Capacity(*point) for point in points), key=lambda found: found.rows_per_s)


def _largest(
    fitting: tuple[int, float], points: list[tuple[int, float]], within_s: float
) -> Capacity:
    """Between the largest point that fits and the next one, which does not: in proportion."""
    rows, latency_s = fitting
    above = min((point for point in points if point[0] > rows), default=None)
    if above is None or above[1] <= latency_s:
        return Capacity(rows, latency_s)
    slope_s = (above[1] - latency_s) / (above[0] - rows)
    more = int((within_s - latency_s) / slope_s + 1e-9)
    return Capacity(rows + more, latency_s + more * slope_s)


def fewest(
    profile: Profile,
    target_s: float | None,
    most: int,
    replicas_of: Callable[[Capacity], int],
) -> tuple[int, Capacity] | None:
    """The fewest replicas that are enough with the batch that so many take, and what each gives.

    b* grows with N, so a count from what is there now would chase itself: fewer replicas would
    look like too few, and more like too many. Where no count up to `most` is enough, what is
    needed with the batch of `most`; None while nothing is learned.
    """
    enough = None
    for replicas in range(1, max(1, most) + 1):
        found = capacity(profile, target_s, replicas)
        if found is None:
            return None
        needed = replicas_of(found)
        if needed <= replicas:
            # Fewer than `replicas` would again have a smaller batch, which is not enough.
            return (replicas if needed > 0 else 0), found
        enough = needed, found
    return enough


def replicas_for(
    rows_per_s: float, found: Capacity, *, quantile: float, wait_target_s: float
) -> int:
    """The fewest replicas that take this rate.

    A model that batches clears its queue with every batch, so its replicas only have to keep
    up; one that takes single rows queues as in M/M/n, and there Erlang-C keeps the quantile of
    the wait below its target (https://en.wikipedia.org/wiki/Erlang_(unit)#Erlang_C_formula).
    """
    if rows_per_s <= 0.0:
        return 0
    fewest = max(1, ceil(rows_per_s / found.rows_per_s - 1e-9))
    if found.batch_rows > 1:
        return min(fewest, MAX_SERVERS)
    for servers in range(fewest, min(MAX_SERVERS, 2 * fewest + 8)):
        late = wait_exceeds(rows_per_s, found.rows_per_s, servers, wait_target_s)
        if late <= 1.0 - quantile:
            return servers
    return min(2 * fewest + 8, MAX_SERVERS)


def wait_exceeds(arrival_rate: float, service_rate: float, servers: int, wait_s: float) -> float:
    """P(wait > wait_s) in M/M/n; 1 where the servers cannot keep up."""
    spare = servers * service_rate - arrival_rate
    if spare <= 0.0:
        return 1.0
    return erlang_c(servers, arrival_rate / service_rate) * exp(-spare * wait_s)


def erlang_c(servers: int, offered: float) -> float:
    """The probability that an arrival has to wait. `offered` erlangs, below `servers`."""
    blocking = 1.0  # Erlang B, by its recursion: no factorial overflows
    for number in range(1, servers + 1):
        blocking = offered * blocking / (number + offered * blocking)
    return blocking / (1.0 - offered / servers * (1.0 - blocking))
