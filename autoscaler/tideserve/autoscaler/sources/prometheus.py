"""A Prometheus server as a source: loads by `tideserve_*`, triggers by any PromQL.

API: https://prometheus.io/docs/prometheus/latest/querying/api/. Asked from one thread, from
`start` to `close`; what it does not know, or knows too late, is missing from a sample (S2).
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import TYPE_CHECKING, Any, Final, Protocol

from tideserve.autoscaler.core.fleet import ModelKey, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Load, Sample
from tideserve.autoscaler.errors import SourceError
from tideserve.autoscaler.sources.series import (
    SELECTOR,
    EvenSeries,
    Point,
    Scrape,
    Version,
    loads_of,
)

if TYPE_CHECKING:
    # 9 MB, which an autoscaler without a Prometheus does without.
    import httpx

_LOG: Final = logging.getLogger(__name__)
_TIMEOUT_S: Final = 2.0
# A scrape older than this, than so many polls, or than three scrapes, is no data.
STALE_S: Final = 5.0
STALE_POLLS: Final = 3.0
# So long a trigger's reading is held, at least.
_TRIGGER_STALE_S: Final = 15.0
_FAULT: Final = "a fault of ours"


class Base(Protocol):
    """`FrontendWatch`: pins, the time, and loads where Prometheus gives only triggers."""

    def sample(self, snapshot: Snapshot, now_s: float) -> Sample:
        """The frontend's own."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What to ask for. `loads`: also for the models' loads. `triggers`: queries by model and
    name; `default_triggers`: by name, for every model without its own."""

    loads: bool = True
    triggers: Mapping[tuple[str, str], str] = field(default_factory=dict)
    default_triggers: Mapping[str, str] = field(default_factory=dict)
    own: frozenset[str] = frozenset()

    @property
    def queries(self) -> frozenset[str]:
        """Each once."""
        return frozenset((*self.triggers.values(), *self.default_triggers.values()))


class PrometheusSamples:
    """Owns the thread, the connection and the last answers."""

    def __init__(
        self,
        url: str,
        interval_s: float,
        base: Base,
        asked: Asked,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval_s = interval_s
        self._base = base
        self._asked = asked
        self._clock = clock
        self._url = url
        self._series = EvenSeries()
        self._lock = threading.Lock()  # guards `_loads` and `_readings`
        self._loads: dict[Version, Load] = {}
        self._readings: dict[str, tuple[float, float]] = {}  # by query: value, when
        self._scrapes: dict[Version, Scrape] = {}
        self._troubles: dict[str, str] = {}
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prometheus", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the thread, after the query that is out."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    @property
    def gives_loads(self) -> bool:
        """Not only triggers."""
        return self._asked.loads

    def ask(self, asked: Asked) -> None:
        """From now on, for these: the file was edited."""
        self._asked = asked

    def sample(self, snapshot: Snapshot, now_s: float) -> Sample:
        """The frontend's pins with Prometheus' numbers."""
        sample = self._base.sample(snapshot, now_s)
        with self._lock:
            loads, readings = self._loads, self._readings
        sample = replace(sample, triggers=self._triggers(snapshot, readings, now_s))
        if self._asked.loads:
            sample = replace(sample, loads=self._by_key(snapshot, loads, now_s))
        return sample

    def poll(self, client: "httpx.Client") -> None:
        """Asks once for everything."""
        asked = self._asked
        if asked.loads:
            self._told("loads", self._poll_loads, client)
        for query in asked.queries:
            if self._closing.is_set():
                return
            self._told(query, self._poll_trigger, client)

    # --- asking ---------------------------------------------------------------------------

    def _run(self) -> None:
        import httpx

        # The address is in the file: a proxy of the environment is not meant for it.
        with httpx.Client(base_url=self._url, timeout=_TIMEOUT_S, trust_env=False) as client:
            while not self._closing.is_set():
                self.poll(client)
                self._closing.wait(self._interval_s)

    def _told(
        self, what: str, ask: "Callable[[httpx.Client, str], None]", client: "httpx.Client"
    ) -> None:
        """Says what is wrong once, and once that it is over."""
        try:
            ask(client, what)
        except SourceError as error:
            if self._troubles.get(what) != str(error):
                _LOG.warning("no data, nothing changes by it: %s", error)
            self._troubles[what] = str(error)
            return
        except Exception:  # noqa: BLE001 - logged
            # Of a foreign answer that nobody thought of: this thread must outlive it (S2).
            if self._troubles.get(what) != _FAULT:
                _LOG.exception("no data, nothing changes by it: the query %s failed", what)
            self._troubles[what] = _FAULT
            return
        if self._troubles.pop(what, None) is not None:
            _LOG.info("Prometheus at %s answers again for %s", self._url, what)

    def _poll_loads(self, client: "httpx.Client", _what: str) -> None:
        scraped = _query(client, "timestamp(tideserve_arrivals_total)")
        points = [
            Point(
                labels.pop("__name__", ""),
                tuple(sorted(labels.items())),
                value,
            )
            for labels, _, value in _query(client, SELECTOR)
        ]
        odd = [point for point in points if not isfinite(point.value)]
        if odd:
            raise SourceError(
                f"Prometheus at {self._url}: expected finite numbers, "
                f"{odd[0].name} of model {odd[0].label('model')!r} is {odd[0].value}"
            )
        now_s = self._clock()
        # Of several frontends the one that was scraped first: the sum is no newer.
        oldest: dict[Version, tuple[float, float]] = {}
        for labels, at, scraped_s in scraped:
            version = (labels.get("model", ""), labels.get("version", ""))
            oldest[version] = min(oldest.get(version, (scraped_s, at)), (scraped_s, at))
        scrapes = {
            version: self._scrapes.get(version, Scrape(scraped_s, now_s - (at - scraped_s))).next(
                scraped_s, now_s - max(0.0, at - scraped_s)
            )
            for version, (scraped_s, at) in oldest.items()
        }
        self._scrapes = scrapes
        good_for_s = max(STALE_S, STALE_POLLS * self._interval_s)
        try:
            loads = loads_of(self._series.even(points), scrapes, good_for_s)
        except ValueError as error:
            raise SourceError(
                f"Prometheus at {self._url} has tideserve_* series of something else: {error}"
            ) from error
        with self._lock:
            self._loads = loads
        if not loads:
            raise SourceError(
                f"Prometheus at {self._url} has no tideserve_* series: "
                "have it scrape the frontend's HTTP port"
            )

    def _poll_trigger(self, client: "httpx.Client", query: str) -> None:
        answers = _query(client, query)
        if len(answers) != 1:
            raise SourceError(
                f"trigger {query!r}: expected one number, got {len(answers)} series; "
                "use sum() or another aggregation"
            )
        _, _, value = answers[0]
        if not isfinite(value):
            raise SourceError(f"trigger {query!r}: expected a number, got {value}")
        with self._lock:
            self._readings = {**self._readings, query: (value, self._clock())}

    # --- answers --------------------------------------------------------------------------

    def _triggers(
        self, snapshot: Snapshot, readings: Mapping[str, tuple[float, float]], now_s: float
    ) -> dict[tuple[str, str], float]:
        asked = self._asked
        queries = dict(asked.triggers)
        for model in {model.key.name for model in snapshot.models} - asked.own:
            queries |= {(model, name): query for name, query in asked.default_triggers.items()}
        # One poll may wait for every other query in vain.
        poll_s = self._interval_s + _TIMEOUT_S * len(asked.queries)
        limit_s = max(_TRIGGER_STALE_S, STALE_POLLS * poll_s)
        return {
            key: readings[query][0]
            for key, query in queries.items()
            if query in readings and now_s - readings[query][1] <= limit_s
        }

    def _by_key(
        self, snapshot: Snapshot, loads: Mapping[Version, Load], now_s: float
    ) -> dict[ModelKey, Load]:
        """Metrics do not tell generations apart: the one that serves has the load, one that
        is still loading none."""
        found: dict[ModelKey, Load] = {}
        for version, load in loads.items():
            if now_s - load.at_s > load.good_for_s:
                continue
            keys = [
                model.key
                for model in snapshot.models
                if model.wanted and (model.key.name, str(model.key.version)) == version
            ]
            keys.sort(key=lambda key: -_ready(snapshot, key))
            for position, key in enumerate(keys):
                idle = Load(at_s=load.at_s, good_for_s=load.good_for_s)
                found[key] = load if position == 0 else idle
        return found


def _ready(snapshot: Snapshot, key: ModelKey) -> int:
    return sum(r.key == key and r.state is ReplicaState.READY for r in snapshot.replicas)


def _query(client: "httpx.Client", query: str) -> list[tuple[dict[str, str], float, float]]:
    """Labels, the time of the evaluation (unix seconds) and the value of each series. Raises
    `SourceError`."""
    import httpx

    try:
        response = client.post("/api/v1/query", data={"query": query})
        document: Any = response.json()
    except (httpx.HTTPError, ValueError) as error:
        what = str(error) or type(error).__name__
        raise SourceError(f"Prometheus at {client.base_url} does not answer: {what}") from error
    if not isinstance(document, dict) or document.get("status") != "success":
        said = document.get("error") if isinstance(document, dict) else None
        raise SourceError(
            f"Prometheus at {client.base_url} refused {query!r}: {said or response.status_code}"
        )
    try:
        return _series_of(document["data"], query)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        # A native histogram has no value, for one.
        raise SourceError(
            f"{query!r}: expected series with one number each, got another answer ({error!r})"
        ) from error


def _series_of(data: Any, query: str) -> list[tuple[dict[str, str], float, float]]:
    if data["resultType"] == "scalar":
        at, value = data["result"]
        return [({}, float(at), float(value))]
    if data["resultType"] != "vector":
        raise SourceError(
            f"{query!r}: expected a scalar or an instant vector, got a {data['resultType']}"
        )
    return [
        (dict(series["metric"]), float(series["value"][0]), float(series["value"][1]))
        for series in data["result"]
    ]
