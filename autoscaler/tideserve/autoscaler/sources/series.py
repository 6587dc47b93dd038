"""From Prometheus' series to loads: counters that never fall, histograms, one load a version."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tideserve.autoscaler.core.load import Histogram, Load

Labels = tuple[tuple[str, str], ...]
Version = tuple[str, str]
"""Model and version, as the labels have them."""

# Series of a frontend that is gone are kept for so many polls: it may come back.
KEPT_POLLS: Final = 600
_COUNTERS: Final = (
    "tideserve_arrivals_total",
    "tideserve_requests_total",
    "tideserve_inferences_total",
    "tideserve_queue_wait_seconds_bucket",
    "tideserve_queue_wait_seconds_sum",
    "tideserve_latency_seconds_bucket",
    "tideserve_latency_seconds_sum",
)
_GAUGES: Final = (
    "tideserve_queue_requests",
    "tideserve_queue_rows",
    "tideserve_queue_oldest_age_seconds",
    "tideserve_leased_requests",
    "tideserve_profile_seconds",
)
#: All that a load is made of, in one selector.
SELECTOR: Final = f'{{__name__=~"{"|".join((*_COUNTERS, *_GAUGES))}"}}'


@dataclass(frozen=True, slots=True)
class Point:
    """One series at one moment; `labels` without the name, in order."""

    name: str
    labels: Labels
    value: float

    def label(self, name: str) -> str:
        return dict(self.labels).get(name, "")


@dataclass(slots=True)
class _Counter:
    last: float = 0.0
    before: float = 0.0
    poll: int = 0


@dataclass(slots=True)
class EvenSeries:
    """Owns how far each counter series had come before its last reset."""

    _counters: dict[tuple[str, Labels], _Counter] = field(default_factory=dict)
    _poll: int = 0

    def even(self, points: Iterable[Point]) -> list[Point]:
        """Counters on top of what they were before resets; gauges as they are."""
        self._poll += 1
        found = [self._one(point) for point in points]
        self._counters = {
            key: counter
            for key, counter in self._counters.items()
            if self._poll - counter.poll <= KEPT_POLLS
        }
        return found

    def _one(self, point: Point) -> Point:
        if point.name not in _COUNTERS:
            return point
        counter = self._counters.setdefault((point.name, point.labels), _Counter())
        if point.value < counter.last:
            counter.before += counter.last
        counter.last, counter.poll = point.value, self._poll
        return Point(point.name, point.labels, counter.before + point.value)


@dataclass(frozen=True, slots=True)
class Scrape:
    """When a version's numbers were true: `scraped_s` on Prometheus' clock, `at_s` on ours.
    `apart_s`: from the scrape before."""

    scraped_s: float
    at_s: float
    apart_s: float = 0.0

    def next(self, scraped_s: float, at_s: float) -> "Scrape":
        """The same one, or a later one."""
        if scraped_s <= self.scraped_s:
            return self
        return Scrape(scraped_s, at_s, scraped_s - self.scraped_s)


def loads_of(
    points: Iterable[Point], scrapes: Mapping[Version, Scrape], good_for_s: float
) -> dict[Version, Load]:
    """Summed over frontends; a version without a scrape is left out. A load is good for three
    scrapes, at least for `good_for_s`. Raises ValueError for labels that are no numbers."""
    numbers: dict[Version, list[Point]] = {}
    for point in points:
        version = (point.label("model"), point.label("version"))
        if version in scrapes:
            numbers.setdefault(version, []).append(point)
    return {
        version: _load(
            found, scrapes[version].at_s, max(good_for_s, 3.0 * scrapes[version].apart_s)
        )
        for version, found in numbers.items()
    }


def _load(points: list[Point], at_s: float, good_for_s: float) -> Load:
    def total(name: str, **labels: str) -> float:
        return sum(
            point.value
            for point in points
            if point.name == f"tideserve_{name}"
            and all(point.label(label) == value for label, value in labels.items())
        )

    ages = [p.value for p in points if p.name == "tideserve_queue_oldest_age_seconds"]
    return Load(
        at_s=at_s,
        arrivals=total("arrivals_total"),
        rejected=total("requests_total", outcome="rejected"),
        expired=total("requests_total", outcome="expired"),
        succeeded=total("requests_total", outcome="success"),
        failed=total("requests_total", outcome="failed"),
        rows=total("inferences_total"),
        queue_wait_s=_histogram(points, "tideserve_queue_wait_seconds"),
        latency_s=_histogram(points, "tideserve_latency_seconds"),
        queued_requests=round(total("queue_requests")),
        queued_rows=round(total("queue_rows")),
        leased_requests=round(total("leased_requests")),
        oldest_age_s=max(ages, default=0.0),
        profile=_profile(points),
        good_for_s=good_for_s,
    )


def _histogram(points: list[Point], name: str) -> Histogram:
    """Prometheus' buckets are cumulative, the core's are not."""
    cumulative: dict[float, float] = {}
    for point in points:
        if point.name == f"{name}_bucket":
            bound = float(point.label("le"))
            cumulative[bound] = cumulative.get(bound, 0.0) + point.value
    bounds = sorted(cumulative)
    counts = [
        cumulative[bound] - (cumulative[bounds[position - 1]] if position else 0.0)
        for position, bound in enumerate(bounds)
    ]
    total = sum(point.value for point in points if point.name == f"{name}_sum")
    return Histogram(tuple(bounds[:-1]), tuple(counts), total)


def _profile(points: list[Point]) -> tuple[tuple[int, float], ...]:
    """Where frontends differ, the slower figure."""
    learned: dict[int, float] = {}
    for point in points:
        if point.name == "tideserve_profile_seconds":
            rows = int(point.label("batch_rows"))
            learned[rows] = max(learned.get(rows, 0.0), point.value)
    return tuple(sorted(learned.items()))
