"""/metrics: made when a scrape comes, from numbers that the dispatcher keeps anyway.

A scrape runs on its own thread while the dispatcher's changes the tables. It copies each
table with one call that the interpreter does not interrupt (`list` of a dictionary's views or
of a list), so it sees numbers that may be a request apart, and never a broken table.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from tideserve.server.arena import Arenas
from tideserve.server.core.queue import ModelQueue
from tideserve.server.core.replicas import ReplicaState
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.models import ModelEntry, ModelKey, ModelState, ModelTable
from tideserve.server.stats import Histogram, ModelStats

MODEL = ("model", "version")
# Of a queue that changes under our eyes; one in a thousand reads meets a change.
MAX_READS: Final = 10


def make_registry(
    models: ModelTable,
    scheduler: Scheduler,
    clock: Callable[[], float],
    arenas: Arenas,
    *,
    version: str,
    triton_names: bool,
) -> CollectorRegistry:
    """Everything that the frontend exports; `triton_names` adds the nv_inference_* aliases."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_FrontendCollector(models, scheduler, clock, arenas, version, triton_names))
    return registry


class _FrontendCollector(Collector):
    """Reads the tables; owns nothing."""

    def __init__(
        self,
        models: ModelTable,
        scheduler: Scheduler,
        clock: Callable[[], float],
        arenas: Arenas,
        version: str,
        triton_names: bool,
    ) -> None:
        self._models = models
        self._scheduler = scheduler
        self._clock = clock
        self._arenas = arenas
        self._version = version
        self._triton_names = triton_names

    def describe(self) -> Iterable[Metric]:
        """Nothing is known before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """One scrape."""
        entries = list(self._models.entries.values())
        stats = {(entry.key.name, str(entry.key.version)): entry.stats for entry in entries}
        yield InfoMetricFamily(
            "tideserve_build", "The server's version.", {"version": self._version}
        )
        yield from _histograms(stats)
        yield from _counters(stats)
        yield from self._queues(entries)
        yield self._replicas(stats)
        yield self._profiles(entries)
        yield GaugeMetricFamily(
            "tideserve_arenas", "Replicas that share memory with the frontend.", self._arenas.mapped
        )
        yield GaugeMetricFamily(
            "tideserve_arena_used_bytes",
            "Of that memory, what leases take.",
            self._arenas.used_bytes,
        )
        if self._triton_names:
            yield from _triton(stats)
            yield self._triton_pending(entries)

    def _queues(self, entries: list[ModelEntry]) -> Iterator[Metric]:
        requests = GaugeMetricFamily("tideserve_queue_requests", "Requests waiting.", labels=MODEL)
        rows = GaugeMetricFamily("tideserve_queue_rows", "Rows waiting.", labels=MODEL)
        size = GaugeMetricFamily("tideserve_queue_bytes", "Bytes waiting.", labels=MODEL)
        age = GaugeMetricFamily(
            "tideserve_queue_oldest_age_seconds", "Age of the oldest waiting.", labels=MODEL
        )
        leased = GaugeMetricFamily(
            "tideserve_leased_requests", "Requests that replicas hold.", labels=MODEL
        )
        ready = GaugeMetricFamily(
            "tideserve_model_ready", "1 if requests bind to it.", labels=MODEL
        )
        sums: dict[tuple[str, str], list[float]] = {}
        now_s = self._clock()
        for entry in entries:
            labels = (entry.key.name, str(entry.key.version))
            totals = sums.setdefault(labels, [0.0] * 6)
            totals[4] = max(totals[4], float(entry.state is ModelState.READY))
            model = self._scheduler.models.get(entry.key)
            if model is not None:
                totals[0] += model.queue.requests
                totals[1] += model.queue.rows
                totals[2] += model.queue.payload_bytes
                totals[5] += model.leased_requests
                oldest_s = _oldest_arrival_s(model.queue)
                totals[3] = max(totals[3], 0.0 if oldest_s is None else now_s - oldest_s)
        for labels, totals in sums.items():
            for family, value in zip(
                (requests, rows, size, age, ready, leased), totals, strict=True
            ):
                family.add_metric(labels, value)
        yield from (requests, rows, size, age, ready, leased)

    def _replicas(self, models: Iterable[tuple[str, str]]) -> Metric:
        family = GaugeMetricFamily(
            "tideserve_replicas", "Replicas by state.", labels=(*MODEL, "state")
        )
        # A model without replicas counts 0: an alert on that must have a series to look at.
        counts = Counter({(*model, state.value): 0 for model in models for state in ReplicaState})
        for replica in self._scheduler.members.all():
            if isinstance(replica.model, ModelKey):
                name, version = replica.model.name, str(replica.model.version)
            else:
                name = version = ""
            counts.update({(name, version, state.value): 0 for state in ReplicaState})
            counts[name, version, replica.state.value] += 1
        for labels, count in counts.items():
            family.add_metric(labels, count)
        return family

    def _profiles(self, entries: list[ModelEntry]) -> Metric:
        family = GaugeMetricFamily(
            "tideserve_profile_seconds",
            "Learned time of a batch: a high percentile, by batch rows.",
            labels=(*MODEL, "batch_rows"),
        )
        # Two generations of a version: the one that comes later is the newer one.
        learned: dict[tuple[str, str, str], float] = {}
        for entry in entries:
            model = self._scheduler.models.get(entry.key)
            for rows, latency_s in model.profile.points() if model is not None else ():
                learned[entry.key.name, str(entry.key.version), str(rows)] = latency_s
        for labels, latency_s in learned.items():
            family.add_metric(labels, latency_s)
        return family

    def _triton_pending(self, entries: list[ModelEntry]) -> Metric:
        family = GaugeMetricFamily(
            "nv_inference_pending_request_count", "Requests waiting.", labels=MODEL
        )
        # While a version is replaced both its generations are READY: one series.
        waiting: Counter[tuple[str, str]] = Counter()
        for entry in entries:
            model = self._scheduler.models.get(entry.key)
            if model is not None and entry.state is ModelState.READY:
                waiting[entry.key.name, str(entry.key.version)] += model.queue.requests
        for labels, count in waiting.items():
            family.add_metric(labels, count)
        return family


def _oldest_arrival_s(queue: ModelQueue) -> float | None:
    """The queue looks at the first of each of its levels, which the dispatcher may take away
    in between: then it is asked again."""
    for _ in range(MAX_READS):
        try:
            return queue.oldest_arrival_s()
        except (RuntimeError, StopIteration):
            continue
    return None


Stats = dict[tuple[str, str], ModelStats]


def _histograms(stats: Stats) -> Iterator[Metric]:
    for name, text, pick in (
        ("queue_wait_seconds", "Arrival to the lease that was answered.", _queue_wait),
        ("latency_seconds", "Arrival to answer.", _latency),
        ("compute_seconds", "What a batch took in its replica.", _compute),
        ("batch_rows", "Rows of a batch.", _rows),
    ):
        family = HistogramMetricFamily(f"tideserve_{name}", text, labels=MODEL)
        for labels, numbers in stats.items():
            histogram = pick(numbers)
            counts = list(accumulate(list(histogram.counts)))
            bounds = [*(f"{bound:g}" for bound in histogram.bounds), "+Inf"]
            family.add_metric(labels, list(zip(bounds, counts, strict=True)), histogram.sum)
        yield family


def _queue_wait(stats: ModelStats) -> Histogram:
    return stats.queue_wait_s


def _latency(stats: ModelStats) -> Histogram:
    return stats.latency_s


def _compute(stats: ModelStats) -> Histogram:
    return stats.compute_s


def _rows(stats: ModelStats) -> Histogram:
    return stats.batch_rows


def _counters(stats: Stats) -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "tideserve_requests",
        "Requests by how they ended.",
        labels=(*MODEL, "outcome", "reason"),
    )
    arrivals = CounterMetricFamily("tideserve_arrivals", "Requests that came.", labels=MODEL)
    rows = CounterMetricFamily("tideserve_inferences", "Rows computed.", labels=MODEL)
    batches = CounterMetricFamily("tideserve_batches", "Batches computed.", labels=MODEL)
    for labels, numbers in stats.items():
        arrivals.add_metric(labels, numbers.arrivals)
        rows.add_metric(labels, numbers.inferences)
        batches.add_metric(labels, numbers.executions)
        for outcome, count in (
            ("success", numbers.success.count),
            ("expired", numbers.expired),
            ("cancelled", numbers.cancelled),
        ):
            outcomes.add_metric((*labels, outcome, ""), count)
        for outcome, reasons in (("rejected", numbers.rejected), ("failed", numbers.failed)):
            for reason, count in list(reasons.items()):
                outcomes.add_metric((*labels, outcome, reason), count)
    yield from (outcomes, arrivals, rows, batches)


def _triton(stats: Stats) -> Iterator[Metric]:
    """Triton's names and units, for dashboards that know them
    (https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/metrics.html)."""
    for name, pick in _TRITON_NUMBERS.items():
        # As a counter the library would add _total to the name.
        family = Metric(name, "As Triton's metric of this name.", "unknown")
        for labels, numbers in stats.items():
            family.add_sample(name, dict(zip(MODEL, labels, strict=True)), pick(numbers))
        yield family


_TRITON_NUMBERS: Final[dict[str, Callable[[ModelStats], int]]] = {
    "nv_inference_request_success": lambda stats: stats.success.count,
    "nv_inference_request_failure": lambda stats: stats.fail.count,
    "nv_inference_count": lambda stats: stats.inferences,
    "nv_inference_exec_count": lambda stats: stats.executions,
    "nv_inference_request_duration_us": lambda stats: stats.success.ns // 1000,
    "nv_inference_queue_duration_us": lambda stats: stats.queue.ns // 1000,
    "nv_inference_compute_input_duration_us": lambda stats: stats.compute_input.ns // 1000,
    "nv_inference_compute_infer_duration_us": lambda stats: stats.compute_infer.ns // 1000,
    "nv_inference_compute_output_duration_us": lambda stats: stats.compute_output.ns // 1000,
}
