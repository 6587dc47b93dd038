"""What arrives in a run, from options and trace files: times, rows and lengths, by model."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tideserve.sim.arrivals import parse
from tideserve.sim.by_model import ByModel
from tideserve.sim.errors import SimulationError
from tideserve.sim.options import Options
from tideserve.sim.trace import UNNAMED, read_traces

DEFAULT_MODEL: Final = "model"
_DEFAULT_DURATION_S: Final = 600.0
_LEAST_ARRIVALS: Final = 2
# A request has no more rows than a batch, which --max-batch-rows bounds.
_MOST_ROWS: Final = 4096
_MOST_LENGTH: Final = 1_048_576

Counts = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Demand:
    """Of one model. `rows` and `lengths`: of each arrival; None: one, or nothing is said.
    `began_unix_s`: when it was, where a trace says so."""

    model: str
    arrived_s: NDArray[np.float64]
    rows: Counts | None = None
    lengths: Counts | None = None
    began_unix_s: float | None = None


def demands_of(options: Options) -> list[Demand]:
    """One for each model, by name. Raises `SimulationError`, OSError, ValueError."""
    arrivals = ByModel.of("--arrivals", options.arrivals)
    if (options.trace is None) == (not arrivals):
        raise SimulationError("expected either --trace FILE or --arrivals SPEC")
    found = _of_trace(options) if options.trace is not None else _of_generators(options, arrivals)
    for demand in found:
        if len(demand.arrived_s) < _LEAST_ARRIVALS:
            raise SimulationError(
                f"expected at least {_LEAST_ARRIVALS} arrivals, got {len(demand.arrived_s)} of "
                f"'{demand.model}': give a longer --duration or another trace"
            )
    return found


def begin_unix_s(options: Options, demands: list[Demand]) -> float | None:
    """When the run begins: `--begin`, else what the trace says; None: nothing says it."""
    if not options.begin:
        return demands[0].began_unix_s
    try:
        at = datetime.fromisoformat(options.begin)
    except ValueError:
        raise SimulationError(
            f"--begin: expected an ISO datetime such as 2026-03-02T07:30, got '{options.begin}'"
        ) from None
    return (at.replace(tzinfo=UTC) if at.tzinfo is None else at).timestamp()


def _of_trace(options: Options) -> list[Demand]:
    assert options.trace is not None
    traces = read_traces(options.trace, speed=options.speed)
    if UNNAMED in traces:
        traces = {options.model or DEFAULT_MODEL: traces[UNNAMED]}
    elif options.model:
        if options.model not in traces:
            raise SimulationError(
                f"{options.trace}: there are no arrivals of '{options.model}', but of "
                f"{', '.join(sorted(traces))}"
            )
        traces = {options.model: traces[options.model]}
    found = []
    for at, (model, trace) in enumerate(sorted(traces.items())):
        times_s = trace.arrivals_s(_generator(options, 1, at))
        before = len(times_s)
        if options.duration is not None:
            before = int(np.searchsorted(times_s, options.duration))
        found.append(
            Demand(
                model,
                times_s[:before],
                _column_or_drawn(options, "rows", trace.rows, before, at),
                _column_or_drawn(options, "lengths", trace.lengths, before, at),
                trace.began_unix_s,
            )
        )
    return found


def _of_generators(options: Options, arrivals: ByModel) -> list[Demand]:
    if arrivals.named and (arrivals.every is not None or options.model):
        raise SimulationError(
            "--arrivals: expected a MODEL=SPEC for each model and no --model, or one SPEC"
        )
    specs = arrivals.named or {options.model or DEFAULT_MODEL: arrivals.every or ""}
    duration_s = options.duration if options.duration is not None else _DEFAULT_DURATION_S
    found = []
    for at, (model, spec) in enumerate(sorted(specs.items())):
        times_s = parse(spec).times_s(duration_s, _generator(options, 1, at))
        found.append(
            Demand(
                model,
                times_s,
                _column_or_drawn(options, "rows", None, len(times_s), at),
                _column_or_drawn(options, "lengths", None, len(times_s), at),
            )
        )
    return found


def _column_or_drawn(
    options: Options, what: str, column: Counts | None, count: int, at: int
) -> Counts | None:
    """Of `count` requests of the model number `at`."""
    text, most, stream = (
        (options.rows, _MOST_ROWS, 2) if what == "rows" else (options.lengths, _MOST_LENGTH, 3)
    )
    if not text:
        return None if column is None else column[:count]
    if column is not None:
        raise SimulationError(f"--{what}: {options.trace} has a column of {what} already")
    values = whole_numbers(f"--{what}", text, most)
    drawn: Counts = _generator(options, stream, at).choice(values, count)
    return drawn


def whole_numbers(option: str, text: str, most: int) -> list[int]:
    """Of 4 or 1/1/8. Raises `SimulationError`."""
    parts = text.split("/")
    counts = [
        int(part) if part.isdecimal() and len(part) <= len(str(most)) else 0 for part in parts
    ]
    if min(counts) < 1 or max(counts) > most:
        raise SimulationError(
            f"{option}: expected whole numbers from 1 to {most} such as 4 or 1/1/8, got '{text}'"
        )
    return counts


def _generator(options: Options, stream: int, at: int) -> np.random.Generator:
    """Models do not share their numbers; the first has those that it would have alone."""
    return np.random.default_rng([options.seed, stream] if at == 0 else [options.seed, stream, at])
