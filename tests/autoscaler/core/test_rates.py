import pytest

from tideserve.autoscaler.core.load import Load
from tideserve.autoscaler.core.rates import Rates, rates_of
from tideserve.autoscaler.core.window import LoadWindow


def rates_after(*second_arrivals: float, rows: float = 1.0) -> Rates:
    """Of as many seconds, with so many arrivals in each, all of which were answered."""
    window, arrivals = LoadWindow().push(Load(0.0)), 0.0
    for at, came in enumerate(second_arrivals, 1):
        arrivals += came
        load = Load(float(at), arrivals, succeeded=arrivals, rows=rows * arrivals)
        window = window.push(load)
    return rates_of(window)


def test_the_spans_are_of_twenty_and_of_four_seconds() -> None:
    found = rates_after(*[10.0] * 16, *[50.0] * 4)
    assert (found.stable, found.fast) == (18.0, 50.0)


def test_a_surge_is_the_highest_of_the_last_two_seconds_but_for_chance() -> None:
    assert rates_after(*[1.0] * 9, 100.0).surge == 80.0
    assert rates_after(*[1.0] * 10).surge == 0.0


@pytest.mark.parametrize(
    ("rate", "span_s"), [(1.0, 20.0), (20.0, 20.0), (50.0, 8.0), (100.0, 4.0), (1000.0, 4.0)]
)
def test_growth_is_learned_of_the_mean_of_400_rows_within_the_two_spans(
    rate: float, span_s: float
) -> None:
    assert rates_after(*[rate] * 25).base_span_s == span_s


def test_the_mean_that_growth_is_learned_of_is_that_of_its_span() -> None:
    # 50 rows a second over 20 s: 400 of them are the last 8 s.
    assert rates_after(*[30.0] * 12, *[80.0] * 8).base == 80.0


def test_rates_are_of_rows() -> None:
    found = rates_after(*[10.0] * 25, rows=4.0)
    assert (found.rows_per_request, found.stable, found.fast) == (4.0, 40.0, 40.0)
    assert rates_after(100.0, rows=4.0).surge == 320.0


def test_one_load_tells_no_rate() -> None:
    found = rates_after()
    assert (found.stable, found.fast, found.surge, found.base) == (0.0, 0.0, 0.0, 0.0)
