"""How many rows a second come to one model version: means of longer and shorter spans, and surges."""

from dataclasses import dataclass
from typing import Final

from tideserve.autoscaler.core.window import LoadWindow

STABLE_S: Final = 20.0
FAST_S: Final = 4.0
# What is expected to grow is a mean of so many rows, within the two spans: of fewer, chance
# alone makes the highest of the next seconds half as much again.
BASE_ROWS: Final = 400.0
SURGE_SPANS_S: Final = (0.5, 1.0, 2.0)


@dataclass(frozen=True, slots=True)
class Rates:
    """Rows a second: the mean of `STABLE_S` and that of `FAST_S`; `surge`: the highest of short
    spans that is no accident; `base`: the mean of `base_span_s`, of which growth is learned."""

    stable: float
    fast: float
    surge: float
    base: float
    base_span_s: float
    rows_per_request: float


def rates_of(window: LoadWindow) -> Rates:
    """0 before there are two loads."""
    rows_per_request = window.rows_per_request()

    def mean(span_s: float) -> float:
        return (window.request_rate(span_s) or 0.0) * rows_per_request

    stable = mean(STABLE_S)
    base_span_s = min(STABLE_S, max(FAST_S, BASE_ROWS / max(stable, 1e-9)))
    return Rates(
        stable=stable,
        fast=mean(FAST_S),
        surge=window.surge_rate(SURGE_SPANS_S) * rows_per_request,
        base=mean(base_span_s),
        base_span_s=base_span_s,
        rows_per_request=rows_per_request,
    )
