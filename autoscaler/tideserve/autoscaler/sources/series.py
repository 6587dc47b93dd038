"""From Prometheus' series to loads: counters that never fall, histograms, one load a version."""

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Final

from tideserve.autoscaler.core.load import Histogram, Load

Labels = tuple[tuple[str, str], ...]
Version = tuple[str, str]
"""Model and version, as the labels have them."""

# A frontend that is gone is known for so many polls: it may come back. Then its counters are one
# sum with those of others that are gone, by the labels that loads are made of.
KEPT_POLLS: Final = 600
# Prometheus itself shows nothing older than that (its --query.lookback-delta).
LOOKBACK_S: Final = 300.0
_SUMMED: Final = frozenset(("model", "version", "outcome", "le"))
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

    @property
    def total(self) -> float:
        return self.before + self.last


@dataclass(slots=True)
class EvenSeries:
    """Owns how far each counter series had come before its last reset or absence: a sum over
    frontends never falls, also when one of them goes."""

    _counters: dict[tuple[str, Labels], _Counter] = field(default_factory=dict)
    _gone: dict[tuple[str, Labels], float] = field(default_factory=dict)
    _poll: int = 0

    def even(self, points: Iterable[Point]) -> list[Point]:
        """Counters on top of what they were before resets, those that are absent too; gauges as
        they are."""
        self._poll += 1
        known = {_version(labels) for _, labels in self._counters}
        sources = {_source(labels) for _, labels in self._counters}
        found = [self._one(point, known, sources) for point in points]
        for key, counter in list(self._counters.items()):
            if self._poll - counter.poll > KEPT_POLLS:
                del self._counters[key]
                summed = (key[0], tuple(label for label in key[1] if label[0] in _SUMMED))
                self._gone[summed] = self._gone.get(summed, 0.0) + counter.total
            elif counter.poll != self._poll:
                found.append(Point(*key, counter.total))
        versions = {_version(labels) for _, labels in self._counters}
        self._gone = {
            key: total for key, total in self._gone.items() if _version(key[1]) in versions
        }
        return found + [Point(*key, total) for key, total in self._gone.items()]

    def _one(self, point: Point, known: Set[Version], sources: Set[Labels]) -> Point:
        if point.name not in _COUNTERS:
            return point
        counter = self._counters.get((point.name, point.labels))
        if counter is None:
            counter = self._counters[point.name, point.labels] = _Counter()
            if _version(point.labels) in known and _source(point.labels) not in sources:
                # Another frontend of the version: what it counted before is no load of now.
                counter.before = -point.value
        if point.value < counter.last:
            counter.before += counter.last
        counter.last, counter.poll = point.value, self._poll
        return Point(point.name, point.labels, counter.total)


def _source(labels: Labels) -> Labels:
    """Which frontend, and of which version it tells."""
    told = _SUMMED - {"model", "version"} | {"reason"}
    return tuple(label for label in labels if label[0] not in told)


def _version(labels: Labels) -> Version:
    named = dict(labels)
    return named.get("model", ""), named.get("version", "")


@dataclass(frozen=True, slots=True)
class Scrape:
    """When a version's numbers were true: `scraped_s` on Prometheus' clock, `at_s` on ours.
    `apart_s`: from the scrape before, `before_s`: from that one to the one before it."""

    scraped_s: float
    at_s: float
    apart_s: float = 0.0
    before_s: float = 0.0

    @property
    def interval_s(self) -> float:
        """How often it is scraped, 0 before it is known: of two gaps the smaller, as one of them
        may be an outage. One of more than `LOOKBACK_S` is."""
        gaps = [gap_s for gap_s in (self.apart_s, self.before_s) if 0.0 < gap_s <= LOOKBACK_S]
        return min(gaps, default=0.0)

    def next(self, scraped_s: float, at_s: float) -> "Scrape":
        """The same one, or a later one."""
        if scraped_s <= self.scraped_s:
            return self
        return Scrape(scraped_s, at_s, scraped_s - self.scraped_s, self.apart_s)


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
            found, scrapes[version].at_s, max(good_for_s, 3.0 * scrapes[version].interval_s)
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
