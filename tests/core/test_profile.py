"""Profile: l(b), learned and monotone."""

from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.core.profile import QUANTILE, WINDOW, Profile


def test_nothing_is_known_before_the_first_outcome() -> None:
    assert Profile().latency_s(1) is None
    assert Profile().points() == []


def test_between_buckets_it_interpolates_and_beyond_it_grows_with_the_rows() -> None:
    profile = Profile()
    profile.observe(4, 0.010)
    profile.observe(8, 0.020)
    assert profile.latency_s(1) == 0.010
    assert profile.latency_s(4) == 0.010
    assert profile.latency_s(6) == pytest.approx(0.015)
    assert profile.latency_s(16) == pytest.approx(0.040)


def test_a_larger_batch_is_never_thought_faster() -> None:
    profile = Profile()
    profile.observe(2, 0.030)
    profile.observe(8, 0.010)
    assert profile.points() == [(2, 0.030), (8, 0.030)]


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
