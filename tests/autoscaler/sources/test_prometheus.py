"""Prometheus' answers as loads and triggers, over a fake transport; tests/e2e has a real one."""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import httpx
import pytest

from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Histogram, Sample
from tideserve.autoscaler.core.window import LoadWindow
from tideserve.autoscaler.sources.prometheus import Asked, PrometheusSamples
from tideserve.autoscaler.sources.series import SELECTOR, EvenSeries, Point

KEY = ModelKey("digits", 1, "g")
SNAPSHOT = Snapshot(1, (Model(KEY),))
AGES = "timestamp(tideserve_arrivals_total)"
Answers = Mapping[str, Any]


class FakeWatch:
    def sample(self, snapshot: Snapshot, now_s: float) -> Sample:
        return Sample(unix_s=1000.0, pins={KEY: 3})


class Server:
    """Answers queries from a table; what is not in it is an error of Prometheus'."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.now_s = 50.0
        self.broken: Callable[[], httpx.Response] | None = None

    def samples(self, asked: Asked) -> PrometheusSamples:
        return PrometheusSamples("http://p", 1.0, FakeWatch(), asked, clock=lambda: self.now_s)

    def poll(self, samples: PrometheusSamples) -> None:
        with httpx.Client(
            base_url="http://p", transport=httpx.MockTransport(self._answer)
        ) as client:
            samples.poll(client)

    def series(self, *series: tuple[str, dict[str, str], float], age_s: float = 0.5) -> None:
        """These are what it scraped last, so long ago; its own clock says 950 s more."""
        base = {"model": "digits", "version": "1"}
        self.answers[SELECTOR] = vector(
            *(
                ({"__name__": f"tideserve_{name}", **base, **labels}, value)
                for name, labels, value in series
            )
        )
        at_s = 950.0 + self.now_s
        self.answers[AGES] = vector((base, at_s - age_s), at_s=at_s)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if self.broken is not None:
            return self.broken()
        (query,) = parse_qs(request.content.decode())["query"]
        if query not in self.answers:
            return httpx.Response(400, json={"status": "error", "error": "parse error"})
        return httpx.Response(200, json={"status": "success", "data": self.answers[query]})


def vector(*series: tuple[dict[str, str], float], at_s: float = 1000.0) -> dict[str, Any]:
    return {
        "resultType": "vector",
        "result": [{"metric": labels, "value": [at_s, str(value)]} for labels, value in series],
    }


def test_a_load_is_made_of_the_series_and_is_as_old_as_the_scrape() -> None:
    server = Server()
    samples = server.samples(Asked())
    server.series(
        ("arrivals_total", {}, 10),
        ("requests_total", {"outcome": "success", "reason": ""}, 6),
        ("requests_total", {"outcome": "rejected", "reason": "queue_rows"}, 1),
        ("requests_total", {"outcome": "rejected", "reason": "queue_bytes"}, 2),
        ("requests_total", {"outcome": "expired", "reason": ""}, 3),
        ("inferences_total", {}, 12),
        ("queue_requests", {}, 4),
        ("queue_rows", {}, 5),
        ("leased_requests", {}, 2),
        ("queue_oldest_age_seconds", {}, 0.25),
        ("profile_seconds", {"batch_rows": "1"}, 0.01),
        ("profile_seconds", {"batch_rows": "8"}, 0.04),
        ("queue_wait_seconds_bucket", {"le": "0.1"}, 4),
        ("queue_wait_seconds_bucket", {"le": "+Inf"}, 6),
        ("queue_wait_seconds_sum", {}, 1.5),
        age_s=0.5,
    )
    server.poll(samples)
    sample = samples.sample(SNAPSHOT, 50.25)
    load = sample.loads[KEY]
    assert load.at_s == 49.5
    assert (load.arrivals, load.rejected, load.expired, load.succeeded) == (10, 3, 3, 6)
    assert (load.rows, load.queued_requests, load.queued_rows) == (12, 4, 5)
    assert (load.leased_requests, load.oldest_age_s) == (2, 0.25)
    assert load.profile == ((1, 0.01), (8, 0.04))
    assert load.queue_wait_s == Histogram((0.1,), (4, 2), 1.5)
    assert sample.pins == {KEY: 3}


def test_several_frontends_are_summed_and_a_reset_of_one_is_evened_out() -> None:
    server = Server()
    samples = server.samples(Asked())
    for first, second in ((100, 50), (2, 60)):
        server.series(
            ("arrivals_total", {"instance": "a"}, first),
            ("arrivals_total", {"instance": "b"}, second),
        )
        server.poll(samples)
    assert samples.sample(SNAPSHOT, 50.0).loads[KEY].arrivals == 100 + 2 + 60


def test_stale_and_absent_numbers_are_no_data() -> None:
    server = Server()
    samples = server.samples(Asked())
    assert samples.sample(SNAPSHOT, 50.0).loads == {}
    server.series(("arrivals_total", {}, 1), age_s=0.0)
    server.poll(samples)
    assert KEY in samples.sample(SNAPSHOT, 54.0).loads
    assert samples.sample(SNAPSHOT, 56.0).loads == {}
    server.answers |= {SELECTOR: vector(), AGES: vector()}
    server.poll(samples)
    assert samples.sample(SNAPSHOT, 50.0).loads == {}


def test_of_two_generations_the_one_that_serves_has_the_load() -> None:
    new = ModelKey("digits", 1, "new")
    snapshot = Snapshot(1, (Model(new), Model(KEY)), (Replica("r", KEY, ReplicaState.READY),))
    server = Server()
    samples = server.samples(Asked())
    server.series(("arrivals_total", {}, 9))
    server.poll(samples)
    loads = samples.sample(snapshot, 50.0).loads
    assert (loads[KEY].arrivals, loads[new].arrivals) == (9, 0)


def test_triggers_are_read_by_model_and_defaults_are_for_the_others() -> None:
    server = Server()
    asked = Asked(
        loads=False,
        triggers={("digits", "jobs"): "sum(jobs)"},
        default_triggers={"users": "users"},
        own=frozenset({"digits"}),
    )
    samples = server.samples(asked)
    server.answers["sum(jobs)"] = vector(({}, 7.0))
    server.answers["users"] = {"resultType": "scalar", "result": [1000.0, "3"]}
    server.poll(samples)
    other = Snapshot(1, (Model(KEY), Model(ModelKey("other", 1, "g"))))
    assert samples.sample(other, 50.0).triggers == {
        ("digits", "jobs"): 7.0,
        ("other", "users"): 3.0,
    }
    # A reading that is not renewed is not known any more.
    assert samples.sample(other, 80.0).triggers == {}


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (vector(({"a": "1"}, 1.0), ({"a": "2"}, 2.0)), "expected one number, got 2 series"),
        (vector(), "expected one number, got 0 series"),
        (vector(({}, float("nan"))), "expected a number, got nan"),
        ({"resultType": "matrix", "result": []}, "got a matrix"),
        ({"resultType": "vector", "result": [{"metric": {}, "histogram": []}]}, "another answer"),
        ({"resultType": "vector", "result": [{"metric": {}, "value": [1]}]}, "another answer"),
        ({"result": []}, "another answer"),
        (None, "refused 'q': parse error"),
    ],
)
def test_a_trigger_without_one_number_is_not_known_and_told_once(
    answer: Any, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    samples = server.samples(Asked(loads=False, triggers={("digits", "t"): "q"}))
    if answer is not None:
        server.answers["q"] = answer
    for _ in range(3):
        server.poll(samples)
    assert samples.sample(SNAPSHOT, 50.0).triggers == {}
    (record,) = caplog.records
    assert said in record.getMessage()


@pytest.mark.parametrize(
    "broken",
    [
        lambda: httpx.Response(502, text="bad gateway"),
        lambda: httpx.Response(200, json=["no", "object"]),
        lambda: (_ for _ in ()).throw(httpx.ConnectError("connection refused")),
    ],
)
def test_a_server_that_fails_is_told_once_and_so_is_its_return(
    broken: Callable[[], httpx.Response], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="httpx")
    caplog.set_level("INFO", logger="tideserve")
    server = Server()
    samples = server.samples(Asked())
    server.series(("arrivals_total", {}, 1))
    server.broken = broken
    server.poll(samples)
    server.poll(samples)
    server.broken = None
    server.poll(samples)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("no data, nothing changes by it: ")
    assert "answers again" in second
    assert KEY in samples.sample(SNAPSHOT, 50.0).loads


def arrivals(instance: str, value: float, version: str = "1") -> Point:
    labels = (("instance", instance), ("model", "digits"), ("version", version))
    return Point("tideserve_arrivals_total", labels, value)


def test_the_sum_of_several_frontends_does_not_fall_when_one_is_gone_for_good() -> None:
    even = EvenSeries()
    even.even([arrivals("a", 100.0), arrivals("b", 5.0)])
    for _ in range(1300):
        found = even.even([arrivals("b", 6.0)])
        assert sum(point.value for point in found) == 106.0
    # It comes back: what it had come to is in the sum already, or was of another time.
    found = even.even([arrivals("b", 6.0), arrivals("a", 1000.0)])
    assert sum(point.value for point in found) == 106.0
    found = even.even([arrivals("b", 6.0), arrivals("a", 1001.0)])
    assert sum(point.value for point in found) == 107.0


def test_the_first_of_a_kind_of_a_known_frontend_counts() -> None:
    even = EvenSeries()
    even.even([arrivals("a", 100.0)])
    labels = (*arrivals("a", 0.0).labels, ("outcome", "rejected"), ("reason", "queue_rows"))
    rejected = Point("tideserve_requests_total", labels, 1.0)
    assert rejected in even.even([arrivals("a", 101.0), rejected])


def test_a_version_that_is_gone_leaves_nothing_behind() -> None:
    even = EvenSeries()
    even.even([arrivals("a", 100.0)])
    for _ in range(601):
        even.even([])
    assert even.even([arrivals("a", 1.0, version="2")]) == [arrivals("a", 1.0, version="2")]


def test_an_outage_does_not_make_old_numbers_good() -> None:
    server = Server()
    samples = server.samples(Asked())
    for scraped_s in (0.0, 15.0, 30.0, 1000.0):
        server.now_s = scraped_s
        server.series(("arrivals_total", {}, scraped_s), age_s=0.0)
        server.poll(samples)
    assert KEY in samples.sample(SNAPSHOT, 1044.0).loads
    assert samples.sample(SNAPSHOT, 1046.0).loads == {}


def test_s2_an_outage_before_the_interval_is_known_is_no_interval() -> None:
    server = Server()
    samples = server.samples(Asked())
    for scraped_s in (0.0, 600.0):
        server.now_s = scraped_s
        server.series(("arrivals_total", {}, scraped_s), age_s=0.0)
        server.poll(samples)
    assert KEY in samples.sample(SNAPSHOT, 604.0).loads
    assert samples.sample(SNAPSHOT, 606.0).loads == {}


def test_numbers_that_are_not_finite_are_no_data(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    samples = server.samples(Asked())
    server.series(("arrivals_total", {}, 1), ("queue_rows", {}, float("nan")))
    server.poll(samples)
    assert samples.sample(SNAPSHOT, 50.0).loads == {}
    assert "expected finite numbers, tideserve_queue_rows of model 'digits' is nan" in caplog.text


def test_a_fault_ends_neither_the_thread_nor_the_other_queries(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Server()
    samples = server.samples(Asked(triggers={("digits", "t"): "q"}))
    server.series(("arrivals_total", {}, 1))
    server.answers["q"] = vector(({}, 2.0))
    monkeypatch.setattr(EvenSeries, "even", lambda *_: 1 / 0)
    server.poll(samples)
    server.poll(samples)
    assert samples.sample(SNAPSHOT, 50.0).triggers == {("digits", "t"): 2.0}
    assert caplog.text.count("ZeroDivisionError") == 1


def test_asking_for_something_else_takes_effect_with_the_next_poll() -> None:
    server = Server()
    samples = server.samples(Asked(loads=False))
    server.answers["q"] = vector(({}, 2.0))
    samples.ask(Asked(loads=False, triggers={("digits", "t"): "q"}))
    server.poll(samples)
    assert samples.sample(SNAPSHOT, 50.0).triggers == {("digits", "t"): 2.0}


@pytest.mark.parametrize("scrape_s", [1.0, 5.0, 15.0, 60.0])
def test_a_steady_load_is_steady_however_seldom_it_is_scraped(scrape_s: float) -> None:
    server = Server()
    samples = server.samples(Asked())
    window = LoadWindow()
    for look in range(int(12 * scrape_s)):
        server.now_s = 100.0 + look
        scraped_s = look - look % scrape_s
        server.series(("arrivals_total", {}, 100.0 * scraped_s), age_s=look - scraped_s)
        server.poll(samples)
        load = samples.sample(SNAPSHOT, server.now_s).loads.get(KEY)
        assert load is not None or look < 3 * scrape_s, "a scrape is good until three are missed"
        if load is not None:
            window = window.push(load)
    assert window.surge_rate((0.5, 1.0, 2.0)) <= 100.0
    assert window.request_rate(4.0) == pytest.approx(100.0)
    assert window.request_rate(20.0) == pytest.approx(100.0)


def test_series_of_another_program_are_no_data(caplog: pytest.LogCaptureFixture) -> None:
    server = Server()
    samples = server.samples(Asked())
    server.series(("arrivals_total", {}, 1), ("profile_seconds", {"batch_rows": "many"}, 1))
    server.poll(samples)
    assert samples.sample(SNAPSHOT, 50.0).loads == {}
    assert "series of something else" in caplog.text


def test_a_poll_ends_between_queries_when_it_is_closed() -> None:
    server = Server()
    samples = server.samples(Asked(loads=False, triggers={("digits", "t"): "q"}))
    server.answers["q"] = vector(({}, 2.0))
    samples.close()
    server.poll(samples)
    assert samples.sample(SNAPSHOT, 50.0).triggers == {}
