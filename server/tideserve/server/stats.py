"""What happened to each model version's requests: counters and histograms.

One set of numbers feeds ModelStatistics, /metrics and the autoscaler's Watch. The dispatcher
writes; readers copy. Nothing here is computed that a reader can compute.
"""

from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

# Seconds: 100 us to 60 s, about three a decade.
LATENCY_BOUNDS_S: Final[tuple[float, ...]] = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
BATCH_ROWS_BOUNDS: Final[tuple[float, ...]] = (
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0,
)  # fmt: skip


class Histogram:
    """Counts by upper bound (not cumulative, one more for the rest) and a sum."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts a value as often as given."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times


@dataclass(slots=True)
class Duration:
    """A count and the nanoseconds they took together, as in ModelStatistics."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float, times: int = 1) -> None:
        """Adds a duration as often as given."""
        self.count += times
        self.ns += int(seconds * 1e9) * times


@dataclass(slots=True)
class BatchStats:
    """Executions of one batch size."""

    input: Duration = field(default_factory=Duration)
    infer: Duration = field(default_factory=Duration)
    output: Duration = field(default_factory=Duration)


@dataclass(slots=True)
class ModelStats:
    """Of one model version, over all its generations and replicas, since the server started.

    `rejected` and `failed` count by reason. `inferences` are rows, `executions` batches.
    """

    arrivals: int = 0
    admitted: int = 0
    expired: int = 0
    cancelled: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    last_inference_unix_s: float = 0.0
    inferences: int = 0
    executions: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStats] = field(default_factory=dict)
    queue_wait_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S))
    latency_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S))
    compute_s: Histogram = field(default_factory=lambda: Histogram(LATENCY_BOUNDS_S))
    batch_rows: Histogram = field(default_factory=lambda: Histogram(BATCH_ROWS_BOUNDS))

    def on_answers(self, now_s: float, given_s: float, arrivals_s: Iterable[float]) -> None:
        """Requests of one batch, leased at `given_s`, were answered. The hot path: one pass."""
        latency_counts, latency_bounds = self.latency_s.counts, self.latency_s.bounds
        wait_counts, wait_bounds = self.queue_wait_s.counts, self.queue_wait_s.bounds
        count = 0
        sum_s = 0.0
        for arrived_s in arrivals_s:
            count += 1
            sum_s += arrived_s
            latency_counts[bisect_left(latency_bounds, now_s - arrived_s)] += 1
            wait_counts[bisect_left(wait_bounds, given_s - arrived_s)] += 1
        latency_s = count * now_s - sum_s
        queue_wait_s = count * given_s - sum_s
        self.latency_s.sum += latency_s
        self.queue_wait_s.sum += queue_wait_s
        self.success.count += count
        self.success.ns += int(latency_s * 1e9)
        self.queue.count += count
        self.queue.ns += int(queue_wait_s * 1e9)

    def on_failure(self, reason: str, latency_s: float) -> None:
        """An admitted or a refused request ended with an error."""
        self.failed[reason] = self.failed.get(reason, 0) + 1
        self.fail.add(latency_s)

    def on_gone(self, latency_s: float, *, expired: bool) -> None:
        """The caller of an admitted request went: past its deadline, or before."""
        if expired:
            self.expired += 1
        else:
            self.cancelled += 1
        self.fail.add(latency_s)

    def on_rejection(self, reason: str) -> None:
        """A request was not admitted."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1
        self.fail.add(0.0)

    def on_batch(
        self,
        rows: int,
        requests: int,
        input_s: float,
        infer_s: float,
        output_s: float,
        unix_s: float,
    ) -> None:
        """A batch was computed; durations count once for each of its requests that waits for
        its answer."""
        self.last_inference_unix_s = unix_s
        self.inferences += rows
        self.executions += 1
        self.compute_input.add(input_s, requests)
        self.compute_infer.add(infer_s, requests)
        self.compute_output.add(output_s, requests)
        batch = self.batches.get(rows)
        if batch is None:
            batch = self.batches[rows] = BatchStats()
        batch.input.add(input_s)
        batch.infer.add(infer_s)
        batch.output.add(output_s)
        self.batch_rows.observe(rows)
        self.compute_s.observe(input_s + infer_s + output_s)
