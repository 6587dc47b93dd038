"""When requests arrive: seeded generators, and the text that names one.

Each generator is a frozen value whose `times_s` draws the arrivals of one run: seconds from 0 to
below duration_s, ascending. The same value and an equally seeded `numpy.random.Generator` give the
same times. Rates are arrivals a second. All but `Steps` and `Diurnal` begin in their stationary
state, so that they give rate x duration_s arrivals on average however short the run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from math import isfinite, sqrt
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

# Expected in one run: 800 MB of times.
MAX_ARRIVALS: Final = 100_000_000
MIN_CV: Final = 0.001
MAX_CV: Final = 100.0

Floats = NDArray[np.float64]


class Arrivals(Protocol):
    """What every generator here can do."""

    def times_s(self, duration_s: float, generator: np.random.Generator) -> Floats:
        """Arrivals from 0 to below `duration_s`, in seconds, ascending."""
        ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals, `rate` a second."""

    rate: float

    def __post_init__(self) -> None:
        _check("rate", self.rate)

    def times_s(self, duration_s: float, generator: np.random.Generator) -> Floats:
        _check("duration_s", duration_s)
        return _piecewise(np.array((0.0, duration_s)), np.array((self.rate,)), generator)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Independent gaps from a Gamma distribution: `rate` a second on average.

    `cv`: the gaps' standard deviation over their mean; 1 is Poisson, more is burstier.
    """

    rate: float
    cv: float

    def __post_init__(self) -> None:
        _check("rate", self.rate, above_0=True)
        if not MIN_CV <= self.cv <= MAX_CV:
            raise ValueError(f"cv: expected a number from {MIN_CV} to {MAX_CV:g}, got {self.cv:g}")

    def times_s(self, duration_s: float, generator: np.random.Generator) -> Floats:
        _check("duration_s", duration_s)
        expected = _bounded(self.rate * duration_s, "arrivals")
        shape, scale_s = self.cv**-2, self.cv**2 / self.rate
        # What is left at time 0 of the gap that 0 falls into; such a gap is longer than others.
        blocks = [generator.random(1) * generator.gamma(shape + 1.0, scale_s)]
        size = int(expected + 4.0 * self.cv * sqrt(expected)) + 16
        while blocks[-1][-1] < duration_s:
            gaps_s = generator.gamma(shape, scale_s, size)
            blocks.append(blocks[-1][-1] + np.cumsum(gaps_s))
        return _below(np.concatenate(blocks), duration_s)


@dataclass(frozen=True, slots=True)
class Mmpp:
    """Poisson whose rate is that of a hidden state (Markov-modulated).

    State i has `rates[i]` and is left after an exponential time with the mean `dwells_s[i]`, for
    the next in order; the first follows the last.
    """

    rates: tuple[float, ...]
    dwells_s: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.rates or len(self.rates) != len(self.dwells_s):
            raise ValueError(
                "rates and dwells_s: expected one of each for every state, "
                f"got {len(self.rates)} and {len(self.dwells_s)}"
            )
        for rate in self.rates:
            _check("rates", rate)
        for dwell_s in self.dwells_s:
            _check("dwells_s", dwell_s, above_0=True)

    def times_s(self, duration_s: float, generator: np.random.Generator) -> Floats:
        _check("duration_s", duration_s)
        dwells_s = np.array(self.dwells_s)
        round_s = float(dwells_s.sum())
        rounds = int(_bounded(duration_s / round_s * dwells_s.size, "dwells") / dwells_s.size) + 8
        first = int(generator.choice(dwells_s.size, p=dwells_s / round_s))
        order = np.roll(np.arange(dwells_s.size), -first)
        blocks = [np.zeros(1)]
        while blocks[-1][-1] < duration_s:
            lengths_s = generator.exponential(dwells_s[order], (rounds, dwells_s.size))
            blocks.append(blocks[-1][-1] + np.cumsum(lengths_s))
        edges_s = np.minimum(np.concatenate(blocks), duration_s)
        states = np.resize(order, edges_s.size - 1)
        return _piecewise(edges_s, np.array(self.rates)[states], generator)


@dataclass(frozen=True, slots=True)
class Phase:
    """`rate` arrivals a second for `duration_s`."""

    duration_s: float
    rate: float

    def __post_init__(self) -> None:
        _check("duration_s", self.duration_s, above_0=True)
        _check("rate", self.rate)


@dataclass(frozen=True, slots=True)
class Steps:
    """Poisson in phases, one after the other; nothing arrives after the last."""

    phases: tuple[Phase, ...]

    def __post_init__(self) -> None:
        if not self.phases:
            raise ValueError("phases: expected at least one, got none")

    def times_s(self, duration_s: float, generator: np.random.Generator) -> Floats:
        _check("duration_s", duration_s)
        ends_s = np.cumsum([0.0, *(phase.duration_s for phase in self.phases)])
        rates = np.array([phase.rate for phase in self.phases])
        return _piecewise(np.minimum(ends_s, duration_s), rates, generator)


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Poisson whose rate is a sine: `mean_rate` at 0, rising to its peak at period_s / 4.

    `amplitude`: the share of `mean_rate` by which the rate rises and falls, 0 to 1.
    """

    mean_rate: float
    amplitude: float
    period_s: float

    def __post_init__(self) -> None:
        _check("mean_rate", self.mean_rate)
        _check("period_s", self.period_s, above_0=True)
        if not 0.0 <= self.amplitude <= 1.0:
            raise ValueError(f"amplitude: expected a share from 0 to 1, got {self.amplitude:g}")

    def times_s(self, duration_s: float, generator: np.random.Generator) -> Floats:
        peak = 1.0 + self.amplitude
        times_s = Poisson(self.mean_rate * peak).times_s(duration_s, generator)
        level = 1.0 + self.amplitude * np.sin(2.0 * np.pi / self.period_s * times_s)
        return times_s[generator.random(times_s.size) * peak < level]


def from_rates(rates_per_s: Sequence[float] | Floats, generator: np.random.Generator) -> Floats:
    """Poisson arrivals of as many seconds as there are rates, each with a rate of its own.

    Seconds, ascending. Raises ValueError for a rate that is negative or not finite.
    """
    rates = np.asarray(rates_per_s, dtype=np.float64)
    if rates.ndim != 1:
        raise ValueError(f"rates_per_s: expected one rate for each second, got shape {rates.shape}")
    bad = np.flatnonzero(~(np.isfinite(rates) & (rates >= 0.0)))
    if bad.size:
        raise ValueError(
            "rates_per_s: expected finite rates of 0 or more, "
            f"got {rates[bad[0]]:g} for second {bad[0]}"
        )
    return _piecewise(np.arange(rates.size + 1, dtype=np.float64), rates, generator)


def parse(text: str) -> Arrivals:
    """The generator that `text` names, a name and its values. Raises ValueError.

    poisson:rate=300                             gamma:rate=300,cv=3
    mmpp:rates=50/400,dwell=30/5                 step:20x10/200x30 (rate x seconds)
    diurnal:mean=100,amplitude=0.8,period=3600   seconds and arrivals a second throughout
    """
    name, _, body = text.strip().partition(":")
    form = _FORMS.get(name)
    if form is None:
        raise ValueError(f"arrivals {text!r}: there is no {name!r}: {_nearest(name, _FORMS)}")
    try:
        values = _values(body, form.readers)
        return form.make(*(read(key, values[key]) for key, read in form.readers.items()))
    except ValueError as error:
        raise ValueError(f"arrivals {text!r}: {error} (as in {form.example})") from error


def _piecewise(edges_s: Floats, rates: Floats, generator: np.random.Generator) -> Floats:
    """Poisson with `rates[i]` from edges_s[i] to edges_s[i + 1]; edges ascend."""
    lengths_s = np.diff(edges_s)
    with np.errstate(over="ignore"):
        expected = rates * lengths_s
        _bounded(float(expected.sum()), "arrivals")
    counts = generator.poisson(expected)
    offsets_s = generator.random(int(counts.sum())) * np.repeat(lengths_s, counts)
    times_s = np.repeat(edges_s[:-1], counts) + offsets_s
    times_s.sort()
    return _below(times_s, float(edges_s[-1]))


def _below(times_s: Floats, end_s: float) -> Floats:
    return times_s[: np.searchsorted(times_s, end_s)]


def _bounded(expected: float, what: str) -> float:
    if expected > MAX_ARRIVALS:
        raise ValueError(
            f"expected at most {MAX_ARRIVALS:,} {what} in one run, got about {expected:.3g}: "
            "lower the rate or the duration"
        )
    return expected


def _check(name: str, value: float, *, above_0: bool = False) -> None:
    if not isfinite(value) or value < 0.0 or (above_0 and value == 0.0):
        least = "above 0" if above_0 else "of 0 or more"
        raise ValueError(f"{name}: expected a finite number {least}, got {value:g}")


def _number(key: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{key}: expected a number, got {text!r}") from None


def _numbers(key: str, text: str) -> tuple[float, ...]:
    return tuple(_number(key, part) for part in text.split("/"))


def _phases(_key: str, text: str) -> tuple[Phase, ...]:
    phases = []
    for part in text.split("/"):
        rate, times, duration_s = part.partition("x")
        if not times:
            raise ValueError(f"expected a rate x seconds such as 20x10, got {part!r}")
        phases.append(Phase(_number("seconds", duration_s), _number("rate", rate)))
    return tuple(phases)


@dataclass(frozen=True, slots=True)
class _Form:
    """`readers`: by key, in the order of `make`'s arguments; "" is a value without a key."""

    make: Callable[..., Arrivals]
    readers: Mapping[str, Callable[[str, str], object]]
    example: str


_FORMS: Final[Mapping[str, _Form]] = {
    "poisson": _Form(Poisson, {"rate": _number}, "poisson:rate=300"),
    "gamma": _Form(Gamma, {"rate": _number, "cv": _number}, "gamma:rate=300,cv=3"),
    "mmpp": _Form(Mmpp, {"rates": _numbers, "dwell": _numbers}, "mmpp:rates=50/400,dwell=30/5"),
    "step": _Form(Steps, {"": _phases}, "step:20x10/200x30"),
    "diurnal": _Form(
        Diurnal,
        {"mean": _number, "amplitude": _number, "period": _number},
        "diurnal:mean=100,amplitude=0.8,period=3600",
    ),
}


def _values(body: str, known: Mapping[str, object]) -> dict[str, str]:
    """The text of each known key, every one of which is there once."""
    values: dict[str, str] = {}
    for part in body.split(","):
        key, equals, value = (piece.strip() for piece in part.rpartition("="))
        if key in values:
            what = f"{key!r} once" if key else "one list of phases"
            raise ValueError(f"expected {what}, got {part!r} as well")
        if not equals and key not in known:
            raise ValueError(f"expected key=value, got {part!r}")
        if key not in known:
            raise ValueError(f"there is no key {key!r}: {_nearest(key, known)}")
        values[key] = value
    missing = [key for key in known if key not in values]
    if missing:
        raise ValueError(f"expected a value for {', '.join(missing)}, got none")
    return values


def _nearest(name: str, known: Mapping[str, object]) -> str:
    near = get_close_matches(name, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    names = ", ".join(filter(None, known))
    return f"expected one of {names}" if names else "expected values without a key"
