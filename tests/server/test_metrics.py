"""What /metrics says is what happened, in names that dashboards know."""

import re
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from tests.server.samples import make_found, serve
from tideserve.server.arena import Arenas
from tideserve.server.core.queue import ModelQueue
from tideserve.server.core.replicas import ReplicaState
from tideserve.server.core.request import Request
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.core.settings import ModelSettings
from tideserve.server.metrics import make_registry
from tideserve.server.models import ModelKey, ModelTable

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


class World:
    """One served model, and its registry with Triton's names."""

    def __init__(self, *, triton_names: bool = True) -> None:
        self.models = ModelTable()
        self.scheduler = Scheduler()
        self.now_s = 100.0
        self.keys = serve(self.models, make_found())
        for key in self.keys:
            self.scheduler.add_model(key, ModelSettings())
        self.stats = self.models.entries[self.keys[0]].stats
        self.registry: CollectorRegistry = make_registry(
            self.models,
            self.scheduler,
            lambda: self.now_s,
            Arenas(0),
            version="1.2.3",
            triton_names=triton_names,
        )

    def scrape(self) -> Samples:
        """All samples; a series that comes twice is an error, as it is to Prometheus."""
        samples: Samples = {}
        for family in text_string_to_metric_families(generate_latest(self.registry).decode()):
            for sample in family.samples:
                series = sample.name, frozenset(sample.labels.items())
                assert series not in samples, f"{series} is exported twice"
                samples[series] = sample.value
        return samples

    def value(self, name: str, **labels: str) -> float:
        return self.scrape()[name, frozenset({"model": "m", "version": "1", **labels}.items())]


def names(samples: Iterable[tuple[str, frozenset[tuple[str, str]]]]) -> set[str]:
    return {name for name, _ in samples}


def test_counters_are_the_statistics() -> None:
    world = World()
    stats = world.stats
    stats.arrivals, stats.expired, stats.cancelled = 11, 2, 3
    stats.on_answers(1.0, 0.5, [0.0, 0.25])
    stats.on_failure("model_error", 0.1)
    stats.on_rejection("queue_rows")
    stats.on_rejection("queue_rows")
    stats.on_batch(rows=6, requests=2, input_s=0.1, infer_s=0.2, output_s=0.3, unix_s=0.0)

    assert world.value("tideserve_arrivals_total") == 11
    for outcome, reason, count in (
        ("success", "", 2),
        ("failed", "model_error", 1),
        ("rejected", "queue_rows", 2),
        ("expired", "", 2),
        ("cancelled", "", 3),
    ):
        assert world.value("tideserve_requests_total", outcome=outcome, reason=reason) == count
    assert world.value("tideserve_inferences_total") == 6
    assert world.value("tideserve_batches_total") == 1


def test_histograms_are_cumulative_and_end_with_all() -> None:
    world = World()
    world.stats.on_answers(1.0, 0.5, [0.0, 0.9])
    world.stats.on_batch(rows=3, requests=2, input_s=0.0, infer_s=70.0, output_s=0.0, unix_s=0.0)

    assert world.value("tideserve_latency_seconds_bucket", le="0.05") == 0
    assert world.value("tideserve_latency_seconds_bucket", le="0.1") == 1
    assert world.value("tideserve_latency_seconds_bucket", le="1") == 2
    assert world.value("tideserve_latency_seconds_bucket", le="+Inf") == 2
    assert world.value("tideserve_latency_seconds_count") == 2
    assert world.value("tideserve_latency_seconds_sum") == pytest.approx(1.1)
    assert world.value("tideserve_compute_seconds_bucket", le="60") == 0
    assert world.value("tideserve_compute_seconds_bucket", le="+Inf") == 1
    assert world.value("tideserve_batch_rows_bucket", le="4") == 1
    assert world.value("tideserve_batch_rows_sum") == 3


def test_gauges_are_the_tables_of_this_moment() -> None:
    world = World()
    (key,) = world.keys
    world.scheduler.on_arrival(key, Request(1, 5, 40, "s", 90.0), 90.0)
    world.scheduler.on_arrival(key, Request(2, 1, 8, "s", 95.0), 95.0)
    world.scheduler.members.announce("a", key, 90.0)
    world.scheduler.members.announce("b", None, 90.0)
    world.scheduler.members.join("b", 90.0)

    assert world.value("tideserve_queue_requests") == 2
    assert world.value("tideserve_queue_rows") == 6
    assert world.value("tideserve_queue_bytes") == 48
    assert world.value("tideserve_queue_oldest_age_seconds") == 10.0
    assert world.value("tideserve_model_ready") == 1
    assert world.value("tideserve_replicas", state="STARTING") == 1
    assert world.value("tideserve_replicas", state="READY") == 0
    assert world.value("tideserve_replicas", model="", version="", state="STANDBY") == 1
    assert world.value("nv_inference_pending_request_count") == 2


def test_a_model_without_replicas_counts_none_in_every_state() -> None:
    world = World()

    assert {world.value("tideserve_replicas", state=state.value) for state in ReplicaState} == {0}


def test_openmetrics_parser_takes_all_of_it() -> None:
    world = World()
    world.stats.on_answers(1.0, 0.5, [0.0])
    text = generate_openmetrics(world.registry).decode()  # type: ignore[no-untyped-call]
    families = openmetrics(text)  # type: ignore[no-untyped-call]
    samples = {sample.name for family in families for sample in family.samples}

    assert samples >= names(world.scrape())
    assert "nv_inference_count" in samples
    assert not [it for it in samples if it.startswith("nv_") and it.endswith("_total")]


def test_the_build_is_named() -> None:
    assert ("tideserve_build_info", frozenset({("version", "1.2.3")})) in World().scrape()


def test_tritons_names_carry_tritons_numbers_in_microseconds() -> None:
    world = World()
    world.stats.on_answers(1.0, 0.5, [0.0])
    world.stats.on_failure("model_error", 0.1)
    world.stats.on_batch(rows=6, requests=2, input_s=0.1, infer_s=0.2, output_s=0.3, unix_s=0.0)

    assert {
        name: world.value(name) for name in names(world.scrape()) if name.startswith("nv_")
    } == {
        "nv_inference_request_success": 1,
        "nv_inference_request_failure": 1,
        "nv_inference_count": 6,
        "nv_inference_exec_count": 1,
        "nv_inference_request_duration_us": 1_000_000,
        "nv_inference_queue_duration_us": 500_000,
        "nv_inference_compute_input_duration_us": 200_000,
        "nv_inference_compute_infer_duration_us": 400_000,
        "nv_inference_compute_output_duration_us": 600_000,
        "nv_inference_pending_request_count": 0,
    }


def test_tritons_names_come_only_when_asked_for() -> None:
    assert not [it for it in names(World(triton_names=False).scrape()) if it.startswith("nv_")]


def test_while_a_version_is_replaced_no_series_comes_twice() -> None:
    world = World()
    new = world.models.load(make_found(versions=[(1, "b"), (2, "b")]))
    ready = min(new)
    world.models.ready(ready, world.models.entries[ready].found.config)  # type: ignore[arg-type]
    world.scheduler.add_model(ready, ModelSettings())
    for at, key in enumerate((world.keys[0], ready)):
        world.scheduler.on_arrival(key, Request(at, 1, 8, "s", 99.0), 99.0)

    assert world.value("tideserve_queue_requests") == 2
    assert world.value("nv_inference_pending_request_count") == 2


def test_a_scrape_never_breaks_while_the_tables_change() -> None:
    world = World()
    failures: list[BaseException] = []
    stop = threading.Event()

    def scrape() -> None:
        try:
            while not stop.is_set():
                generate_latest(world.registry)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            failures.append(error)

    thread = threading.Thread(target=scrape)
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread.start()
    try:
        for at in range(600):
            change_everything(world, at)
            if not thread.is_alive():
                break
    finally:
        stop.set()
        thread.join(30)
        sys.setswitchinterval(interval_s)
    assert failures == []


@pytest.mark.parametrize("meets", [StopIteration(), RuntimeError("OrderedDict mutated")])
def test_a_queue_that_changes_while_it_is_read_is_read_again(
    meets: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World()
    answers: list[Exception | float] = [meets, meets, 90.0]

    def oldest_arrival_s(_: ModelQueue) -> float:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ModelQueue, "oldest_arrival_s", oldest_arrival_s)

    assert world.value("tideserve_queue_oldest_age_seconds") == 10.0


def change_everything(world: World, at: int) -> None:
    (key,) = world.keys
    requests = [Request(4 * at + it, 1, 8, "s", 90.0) for it in range(4)]
    for request in requests:
        request.suspect = bool(request.request_id % 2)
        world.scheduler.on_arrival(key, request, 90.0)
    world.stats.on_failure(f"reason {at % 50}", 0.0)
    world.stats.batches.clear()
    world.scheduler.members.announce(f"r{at}", ModelKey(f"x{at}", 1, "g"), 0.0)
    serve(world.models, make_found(f"n{at}"))
    for request in requests:
        world.scheduler.on_cancel(key, request)
    world.models.unload(f"n{at}")
    world.models.remove(ModelKey(f"n{at}", 1, "a"))
    world.scheduler.members.forget(f"r{at}")


# --- the page ----------------------------------------------------------------------------------


def exported() -> set[str]:
    """Names of series as a query has them, of histograms the family's."""
    world = World()
    world.stats.on_failure("x", 0.0)
    world.scheduler.members.announce("a", None, 0.0)
    for model in world.scheduler.models.values():
        model.profile.observe(1, 0.01)
    found = set()
    for family in text_string_to_metric_families(generate_latest(world.registry).decode()):
        if family.type == "histogram":
            found.add(family.name)
        else:
            found |= {sample.name for sample in family.samples}
    return found


def test_the_page_names_all_that_is_exported_and_nothing_else() -> None:
    page = PAGE.read_text(encoding="utf-8")
    tables = set(re.findall(r"^\| `((?:tideserve|nv)_(?!autoscaler)\w+)`", page, re.MULTILINE))
    mentioned = set(re.findall(r"`(process_\w+)`", page))

    assert tables | mentioned == exported()


def test_the_pages_queries_ask_for_series_that_there_are() -> None:
    page = PAGE.read_text(encoding="utf-8")
    queries = "\n".join(re.findall(r"```promql\n(.*?)```", page, re.DOTALL))
    world = World()
    world.stats.on_answers(1.0, 0.5, [0.0])
    asked = set(re.findall(r"tideserve_\w+", queries))

    assert len(asked) >= 4
    assert asked <= names(world.scrape())
    assert ("le", "0.1") in {label for _, labels in world.scrape() for label in labels}
