"""What the demo asks of the server, second by second: phases and seeded arrivals."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Phase:
    """`rate` requests a second, evenly random (Poisson), for `duration_s`."""

    name: str
    duration_s: float
    rate: float


# One replica of the stand-in gives about 70 requests/s within its target.
PHASES: Final = (
    Phase("quiet", 7.0, 20.0),
    Phase("10x step", 9.0, 200.0),
    Phase("spike", 4.0, 350.0),
    # The mean of 20 s has to forget the spike, and the last step down is held twice as long.
    Phase("quiet", 27.0, 20.0),
    Phase("zero", 8.0, 0.0),
    Phase("wake", 6.0, 20.0),
)


def starts(phases: tuple[Phase, ...]) -> Iterator[tuple[float, Phase]]:
    """Each phase with the second at which it begins."""
    begin_s = 0.0
    for phase in phases:
        yield begin_s, phase
        begin_s += phase.duration_s


def duration_s(phases: tuple[Phase, ...]) -> float:
    return sum(phase.duration_s for phase in phases)


def rate_at(phases: tuple[Phase, ...], at_s: float) -> float:
    """Requests a second that are asked for then; 0 after the end."""
    for begin_s, phase in starts(phases):
        if begin_s <= at_s < begin_s + phase.duration_s:
            return phase.rate
    return 0.0


def arrivals(phases: tuple[Phase, ...], seed: int) -> Iterator[float]:
    """The seconds at which requests are sent, the same for the same seed."""
    source = random.Random(seed)
    for begin_s, phase in starts(phases):
        at_s = begin_s
        while phase.rate > 0.0:
            at_s += source.expovariate(phase.rate)
            if at_s >= begin_s + phase.duration_s:
                break
            yield at_s
