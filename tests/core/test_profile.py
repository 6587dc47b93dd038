"""Profile: l(b), learned and monotone."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.core.profile import FORGOTTEN_AFTER, QUANTILE, WINDOW, Profile


def test_nothing_is_known_before_the_first_outcome() -> None:
    assert Profile().latency_s(1) is None
    assert Profile().points() == []


def test_between_buckets_it_interpolates_and_beyond_it_grows_with_the_rows() -> None:
    profile = Profile()
    profile.observe(4, 0.010)
    profile.observe(8, 0.020)
    assert profile.latency_s(4) == 0.010
    assert profile.latency_s(6) == pytest.approx(0.015)
    assert profile.latency_s(16) == pytest.approx(0.040)


def test_below_the_smallest_known_size_it_goes_on_as_the_line_through_all() -> None:
    profile = Profile()
    profile.observe(8, 0.014)
    assert profile.latency_s(1) == 0.014, "one size says nothing of others"
    profile.observe(16, 0.022)
    assert profile.latency_s(1) == pytest.approx(0.007)
    steep = Profile()
    steep.observe(8, 0.010)
    steep.observe(16, 0.100)
    assert steep.latency_s(4) == 0.005


def test_a_larger_batch_is_never_thought_faster_and_contradictions_are_pooled() -> None:
    profile = Profile()
    profile.observe(2, 0.030)
    profile.observe(8, 0.010)
    assert profile.points() == [(2, 0.020), (4, 0.020), (8, 0.020)]


def test_one_slow_outcome_of_a_rare_size_does_not_make_all_larger_ones_slow() -> None:
    profile = Profile()
    profile.observe(3, 1.0)
    for _ in range(60):
        profile.observe(16, 0.010)
    assert profile.latency_s(16) == pytest.approx((1.0 + 60 * 0.010) / 61)


def test_sizes_that_were_not_seen_for_long_are_forgotten() -> None:
    profile = Profile()
    profile.observe(16, 1.0)
    for _ in range(FORGOTTEN_AFTER + 64):
        profile.observe(8, 0.010)
    assert profile.latency_s(16) == pytest.approx(0.020)


def test_large_sizes_are_told_apart_by_a_few_per_cent() -> None:
    profile = Profile()
    for rows in (65, 66, 1000, 1001):
        profile.observe(rows, rows / 1000)
    assert [rows for rows, _ in profile.points()] == [128, 256, 512, 1008]
    assert profile.latency_s(1008) == 1.0


def test_the_table_has_every_size_from_zero() -> None:
    profile = Profile()
    profile.observe(2, 0.010)
    profile.observe(4, 0.020)
    assert profile.table(6) == pytest.approx([0.0, 0.005, 0.010, 0.015, 0.020, 0.025, 0.030])
    profile.observe(4, 0.040)
    assert profile.table(4)[4] == 0.020, "the smaller of two is their high percentile"


def test_the_median_is_what_a_batch_typically_takes() -> None:
    profile = Profile()
    for latency_s in [0.010] * 40 + [0.050] * 10:
        profile.observe(1, latency_s)
    assert (profile.typical_s(1), profile.latency_s(1)) == (0.010, 0.050)


@pytest.mark.parametrize("latency_s", [nan, inf, -1.0])
def test_what_no_clock_can_measure_is_passed_over(latency_s: float) -> None:
    profile = Profile()
    profile.observe(1, latency_s)
    assert profile.points() == []


@given(st.lists(st.floats(0, 10), min_size=1, max_size=3 * WINDOW))
def test_a_bucket_is_the_high_percentile_of_its_last_outcomes(latencies: list[float]) -> None:
    profile = Profile()
    for latency_s in latencies:
        profile.observe(1, latency_s)
    last = sorted(latencies[-WINDOW:])
    assert profile.latency_s(1) == last[int(QUANTILE * (len(last) - 1))]
