"""The rate that batches have to keep up with."""

import pytest

from tideserve.server.core.arrivals import ArrivalRate


def steady(rate: ArrivalRate, rows_per_s: int, from_s: float, to_s: float) -> None:
    count = round((to_s - from_s) * rows_per_s)
    for number in range(count):
        rate.add(1, from_s + number / rows_per_s)


def test_a_steady_rate_is_known_from_the_start() -> None:
    rate = ArrivalRate()
    assert rate.rows_per_s(100.0) == 0.0
    steady(rate, 1000, 100.0, 100.05)
    assert rate.rows_per_s(100.05) == pytest.approx(1000, rel=0.05)
    steady(rate, 1000, 100.05, 105.0)
    assert rate.rows_per_s(105.0) == pytest.approx(1000, rel=0.01)


def test_a_step_up_is_noticed_at_once_and_the_end_of_a_burst_later() -> None:
    rate = ArrivalRate()
    steady(rate, 100, 0.0, 10.0)
    steady(rate, 1000, 10.0, 10.2)
    assert 850 < rate.rows_per_s(10.2) < 1000
    steady(rate, 1000, 10.2, 12.0)
    steady(rate, 100, 12.0, 12.3)
    assert 400 < rate.rows_per_s(12.3) < 700
    assert rate.rows_per_s(15.3) < 5


def test_rows_count_and_not_requests() -> None:
    rate = ArrivalRate()
    for number in range(100):
        rate.add(8, number / 100)
    assert rate.rows_per_s(1.0) == pytest.approx(800, rel=0.02)


def test_requests_at_one_moment_are_no_endless_rate() -> None:
    rate = ArrivalRate()
    rate.add(1, 5.0)
    rate.add(1, 5.0)
    assert rate.rows_per_s(5.0) == pytest.approx(210.0, rel=0.01)
