"""The numbers add up, and the hot path's shortcut counts what a plain loop would."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.stats import LATENCY_BOUNDS_S, Duration, Histogram, ModelStats

TIMES = st.floats(0.0, 100.0)


@given(TIMES, st.lists(TIMES, min_size=1, max_size=50), st.floats(0.0, 70.0), st.floats(0.0, 70.0))
def test_answers_in_one_pass_count_what_a_plain_loop_counts(
    start_s: float, ages_s: list[float], waited_s: float, computed_s: float
) -> None:
    last_arrival_s = start_s + max(ages_s)
    arrivals_s = [start_s + age_s for age_s in ages_s]
    given_s = last_arrival_s + waited_s
    now_s = given_s + computed_s
    stats = ModelStats()
    stats.on_answers(now_s, given_s, iter(arrivals_s))

    latency, wait = Histogram(LATENCY_BOUNDS_S), Histogram(LATENCY_BOUNDS_S)
    for arrived_s in arrivals_s:
        latency.observe(now_s - arrived_s)
        wait.observe(given_s - arrived_s)
    for ours, plain in ((stats.latency_s, latency), (stats.queue_wait_s, wait)):
        assert ours.counts == plain.counts
        assert ours.sum == pytest.approx(plain.sum, abs=1e-6)
    assert stats.success.count == stats.queue.count == len(arrivals_s)
    assert stats.success.ns == pytest.approx(latency.sum * 1e9, abs=2_000)
    assert stats.queue.ns == pytest.approx(wait.sum * 1e9, abs=2_000)


def test_a_histogram_counts_a_value_at_its_bound_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1, 1e9):
        histogram.observe(value)

    assert histogram.counts == [2, 2, 2]
    assert histogram.sum == pytest.approx(6.6 + 1e9)


def test_a_value_can_be_counted_several_times() -> None:
    histogram = Histogram((1.0,))
    duration = Duration()
    histogram.observe(0.5, 4)
    duration.add(0.5, 4)

    assert (histogram.counts, histogram.sum) == ([4, 0], 2.0)
    assert (duration.count, duration.ns) == (4, 2_000_000_000)


def test_a_batch_counts_rows_once_and_durations_once_for_each_request() -> None:
    stats = ModelStats()
    stats.on_batch(rows=6, requests=3, input_s=0.1, infer_s=0.2, output_s=0.3, unix_s=1000.5)
    stats.on_batch(rows=6, requests=1, input_s=0.1, infer_s=0.2, output_s=0.3, unix_s=1001.5)
    stats.on_batch(rows=1, requests=1, input_s=0.0, infer_s=0.0, output_s=0.0, unix_s=1002.5)

    assert (stats.inferences, stats.executions) == (13, 3)
    assert (stats.compute_infer.count, stats.compute_infer.ns) == (5, 800_000_000)
    assert stats.batches[6].infer.count == 2
    assert stats.batches[1].output.count == 1
    assert sum(stats.batch_rows.counts) == sum(stats.compute_s.counts) == 3
    assert stats.batch_rows.sum == 13
    assert stats.compute_s.sum == pytest.approx(1.2)
    assert stats.last_inference_unix_s == 1002.5


def test_failures_and_rejections_count_by_reason_and_together() -> None:
    stats = ModelStats()
    stats.on_failure("model_error", 0.5)
    stats.on_failure("model_error", 0.5)
    stats.on_failure("unavailable", 0.0)
    stats.on_rejection("queue_rows")

    assert stats.failed == {"model_error": 2, "unavailable": 1}
    assert stats.rejected == {"queue_rows": 1}
    assert (stats.fail.count, stats.fail.ns) == (4, 1_000_000_000)
