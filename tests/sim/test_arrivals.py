"""Arrival generators: their rates and spread, what all of them keep, and how they are named."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tideserve.sim.arrivals import (
    MAX_ARRIVALS,
    Arrivals,
    Diurnal,
    Floats,
    Gamma,
    Mmpp,
    Phase,
    Poisson,
    Steps,
    from_rates,
    parse,
)

EVERY: tuple[tuple[str, Arrivals], ...] = (
    ("poisson:rate=300", Poisson(300.0)),
    ("gamma:rate=300,cv=3", Gamma(300.0, 3.0)),
    ("mmpp:rates=50/400,dwell=30/5", Mmpp((50.0, 400.0), (30.0, 5.0))),
    ("step:20x10/200x30", Steps((Phase(10.0, 20.0), Phase(30.0, 200.0)))),
    ("diurnal:mean=100,amplitude=0.8,period=3600", Diurnal(100.0, 0.8, 3600.0)),
)
RATES = st.just(0.0) | st.floats(0.01, 200.0)
LENGTHS_S = st.floats(0.01, 10.0)
GENERATORS: st.SearchStrategy[Arrivals] = st.one_of(
    st.builds(Poisson, RATES),
    st.builds(Gamma, st.floats(0.01, 200.0), st.floats(0.01, 10.0)),
    st.lists(st.tuples(RATES, LENGTHS_S), min_size=1, max_size=4).map(
        lambda states: Mmpp(tuple(rate for rate, _ in states), tuple(s for _, s in states))
    ),
    st.lists(st.builds(Phase, LENGTHS_S, RATES), min_size=1, max_size=4).map(
        lambda phases: Steps(tuple(phases))
    ),
    st.builds(Diurnal, RATES, st.floats(0.0, 1.0), LENGTHS_S),
)


def seeded(seed: int = 1) -> np.random.Generator:
    return np.random.default_rng(seed)


def spread(times_s: Floats) -> float:
    """The coefficient of variation of the gaps."""
    gaps_s = np.diff(times_s)
    return float(gaps_s.std() / gaps_s.mean())


def rate_within(times_s: Floats, begin_s: float, end_s: float) -> float:
    return float(np.count_nonzero((times_s >= begin_s) & (times_s < end_s)) / (end_s - begin_s))


@given(GENERATORS, st.just(0.0) | st.floats(0.001, 20.0), st.integers(0, 2**32))
@settings(max_examples=150)
def test_times_ascend_within_the_run_and_repeat_for_a_seed(
    arrivals: Arrivals, duration_s: float, seed: int
) -> None:
    times_s = arrivals.times_s(duration_s, seeded(seed))

    assert times_s.dtype == np.float64
    assert times_s.ndim == 1
    assert (np.diff(times_s) >= 0.0).all()
    assert ((times_s >= 0.0) & (times_s < duration_s)).all()
    assert np.array_equal(times_s, arrivals.times_s(duration_s, seeded(seed)))


@pytest.mark.parametrize("arrivals", [it for _, it in EVERY], ids=[text for text, _ in EVERY])
def test_another_seed_gives_other_times(arrivals: Arrivals) -> None:
    one, other = (arrivals.times_s(60.0, seeded(seed)) for seed in (1, 2))

    assert not np.array_equal(one, other)


def test_poisson_has_its_rate_and_a_spread_of_one() -> None:
    times_s = Poisson(300.0).times_s(600.0, seeded())

    assert times_s.size / 600.0 == pytest.approx(300.0, rel=0.01)
    assert spread(times_s) == pytest.approx(1.0, rel=0.01)


@pytest.mark.parametrize("cv", [0.001, 0.2, 1.0, 3.0, 5.0])
def test_gamma_has_its_rate_and_its_spread(cv: float) -> None:
    times_s = Gamma(300.0, cv).times_s(2000.0, seeded())

    assert times_s.size / 2000.0 == pytest.approx(300.0, rel=0.02)
    assert spread(times_s) == pytest.approx(cv, rel=0.03)


@pytest.mark.parametrize(
    ("arrivals", "expected"),
    [
        (Gamma(100.0, 3.0), 10.0),
        (Gamma(100.0, 0.1), 10.0),
        (Mmpp((50.0, 0.0, 400.0), (30.0, 20.0, 10.0)), 55.0 / 6.0),
    ],
    ids=["bursty", "regular", "mmpp"],
)
def test_short_runs_get_as_many_as_long_ones(arrivals: Arrivals, expected: float) -> None:
    generator = seeded()
    sizes = [arrivals.times_s(0.1, generator).size for _ in range(3000)]

    assert np.mean(sizes) == pytest.approx(expected, rel=0.07)


def test_mmpp_changes_between_the_rates_of_its_states() -> None:
    times_s = Mmpp((50.0, 0.0, 400.0), (30.0, 10.0, 5.0)).times_s(20_000.0, seeded())

    # Counts of whole seconds: the share with none is the second state's, of those above 200 the
    # third's, less the seconds in which the state changes.
    counts = np.bincount(times_s.astype(np.int64), minlength=20_000)
    assert times_s.size / 20_000.0 == pytest.approx((50 * 30 + 400 * 5) / 45, rel=0.05)
    assert np.mean(counts == 0) == pytest.approx(10 / 45, rel=0.15)
    assert np.mean(counts > 200) == pytest.approx(5 / 45, rel=0.15)


def test_mmpp_visits_its_states_in_order() -> None:
    times_s = Mmpp((20.0, 0.0, 400.0), (100.0, 100.0, 100.0)).times_s(20_000.0, seeded())

    level = np.digitize(np.bincount((times_s / 2.0).astype(np.int64)), (1, 400))  # per 2 s
    silent = np.flatnonzero((level[1:] == 0) & (level[:-1] != 0)) + 1
    ended = np.flatnonzero((level[1:] != 0) & (level[:-1] == 0)) + 1
    assert silent.size > 30
    assert np.mean(level[silent - 2] == 1) > 0.95
    assert np.mean(level[ended[:-1] + 1] == 2) > 0.95


def test_one_state_is_poisson() -> None:
    times_s = Mmpp((300.0,), (1.0,)).times_s(600.0, seeded())

    assert times_s.size / 600.0 == pytest.approx(300.0, rel=0.01)
    assert spread(times_s) == pytest.approx(1.0, rel=0.01)


def test_steps_have_their_rates_and_then_nothing() -> None:
    steps = Steps((Phase(100.0, 20.0), Phase(50.0, 0.0), Phase(100.0, 200.0)))
    times_s = steps.times_s(400.0, seeded())

    assert rate_within(times_s, 0.0, 100.0) == pytest.approx(20.0, rel=0.05)
    assert rate_within(times_s, 100.0, 150.0) == 0.0
    assert rate_within(times_s, 150.0, 250.0) == pytest.approx(200.0, rel=0.02)
    assert times_s[-1] < 250.0


def test_a_run_may_end_within_a_phase() -> None:
    times_s = Steps((Phase(10.0, 100.0), Phase(10.0, 1000.0))).times_s(12.0, seeded())

    assert rate_within(times_s, 10.0, 12.0) == pytest.approx(1000.0, rel=0.1)
    assert times_s[-1] < 12.0


def test_diurnal_rises_falls_and_comes_back() -> None:
    times_s = Diurnal(100.0, 0.8, 400.0).times_s(4000.0, seeded())

    phase_s = times_s % 400.0
    assert times_s.size / 4000.0 == pytest.approx(100.0, rel=0.01)
    assert rate_within(phase_s, 90.0, 110.0) / 10.0 == pytest.approx(180.0, rel=0.03)
    assert rate_within(phase_s, 290.0, 310.0) / 10.0 == pytest.approx(20.0, rel=0.07)
    assert rate_within(phase_s, 190.0, 210.0) / 10.0 == pytest.approx(100.0, rel=0.03)


def test_from_rates_gives_each_second_its_rate() -> None:
    times_s = from_rates([0.0, 10_000.0, 0.0, 40_000.0], seeded())

    counts = np.bincount(times_s.astype(np.int64), minlength=4)
    assert counts[[0, 2]].tolist() == [0, 0]
    assert counts[[1, 3]].tolist() == pytest.approx([10_000.0, 40_000.0], rel=0.05)
    assert (np.diff(times_s) >= 0.0).all()
    assert np.array_equal(times_s, from_rates(np.array([0.0, 1e4, 0.0, 4e4]), seeded()))


def test_from_no_rates_nothing_comes() -> None:
    assert from_rates([], seeded()).size == 0


@pytest.mark.parametrize(("text", "arrivals"), EVERY, ids=[text for text, _ in EVERY])
def test_parse_gives_what_the_text_names(text: str, arrivals: Arrivals) -> None:
    assert parse(text) == arrivals


def test_parse_takes_keys_in_any_order_and_spaces() -> None:
    assert parse(" gamma: cv = 0.5, rate = 1e3 ") == Gamma(1000.0, 0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("poison:rate=3", "there is no 'poison': did you mean 'poisson'?"),
        ("steps:2x3", "there is no 'steps': did you mean 'step'?"),
        ("xyz", "there is no 'xyz': expected one of poisson, gamma, mmpp, step, diurnal"),
        ("", "there is no ''"),
        ("gamma:rat=3,cv=1", "there is no key 'rat': did you mean 'rate'? (as in gamma:rate=300"),
        ("mmpp:rates=1/2,dwell_s=3/4", "did you mean 'dwell'?"),
        ("diurnal:mean=1,xyz=2", "expected one of mean, amplitude, period"),
        ("step:rate=3", "there is no key 'rate': expected values without a key (as in step:20x10"),
        ("gamma:rate=3", "expected a value for cv, got none"),
        ("poisson", "expected key=value, got ''"),
        ("poisson:300", "expected key=value, got '300'"),
        ("poisson:rate=1,rate=2", "expected 'rate' once, got 'rate=2' as well"),
        ("poisson:rate=many", "rate: expected a number, got 'many'"),
        ("mmpp:rates=1/x,dwell=3/4", "rates: expected a number, got 'x'"),
        ("mmpp:rates=1/2,dwell=3", "one of each for every state, got 2 and 1"),
        ("mmpp:rates=1/-2,dwell=3/4", "rates: expected a finite number of 0 or more, got -2"),
        ("mmpp:rates=1/2,dwell=3/0", "dwells_s: expected a finite number above 0, got 0"),
        ("step:20", "expected a rate x seconds such as 20x10, got '20'"),
        ("step:20xten", "seconds: expected a number, got 'ten'"),
        ("step:20x0", "duration_s: expected a finite number above 0, got 0"),
        ("step:1x2,3x4", "expected one list of phases, got '3x4' as well"),
        ("poisson:rate=nan", "rate: expected a finite number of 0 or more, got nan"),
        ("gamma:rate=0,cv=1", "rate: expected a finite number above 0, got 0"),
        ("gamma:rate=1,cv=0", "cv: expected a number from 0.001 to 100, got 0"),
        ("gamma:rate=1,cv=nan", "cv: expected a number from 0.001 to 100, got nan"),
        ("diurnal:mean=1,amplitude=1.5,period=9", "expected a share from 0 to 1, got 1.5"),
        ("diurnal:mean=1,amplitude=1,period=0", "period_s: expected a finite number above 0"),
    ],
)
def test_parse_says_what_is_wrong(text: str, said: str) -> None:
    with pytest.raises(ValueError, match="arrivals") as raised:
        parse(text)

    assert str(raised.value).startswith(f"arrivals {text!r}: ")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Steps(()), "phases: expected at least one"),
        (lambda: Mmpp((), ()), "one of each for every state, got 0 and 0"),
        (lambda: Poisson(1.0).times_s(-1.0, seeded()), "duration_s: .* of 0 or more, got -1"),
        (lambda: Gamma(1.0, 1.0).times_s(np.inf, seeded()), "duration_s: .* got inf"),
        (lambda: from_rates([1.0, -2.0], seeded()), "got -2 for second 1"),
        (lambda: from_rates([np.nan], seeded()), "got nan for second 0"),
        (lambda: from_rates(np.ones((2, 2)), seeded()), r"got shape \(2, 2\)"),
    ],
)
def test_wrong_values_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize(
    "arrivals",
    [
        Poisson(1e300),
        Gamma(1e300, 1.0),
        Mmpp((1.0,), (1e-300,)),
        Steps((Phase(1e9, MAX_ARRIVALS),)),
        Diurnal(MAX_ARRIVALS, 0.0, 1.0),
    ],
)
def test_more_than_memory_holds_is_refused(arrivals: Arrivals) -> None:
    with pytest.raises(ValueError, match=r"at most 100,000,000 .* lower the rate or the duration"):
        arrivals.times_s(1e10, seeded())
