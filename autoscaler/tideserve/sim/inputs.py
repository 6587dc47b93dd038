"""From files and options to a scenario."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tideserve.server.core.settings import BatchingMode, OnLate
from tideserve.sim.arrivals import parse
from tideserve.sim.errors import SimulationError
from tideserve.sim.hardware import BatchTimes, Hardware, Spread
from tideserve.sim.scenario import Scenario
from tideserve.sim.trace import read_trace

_LEAST_ARRIVALS: Final = 2
_Choice = TypeVar("_Choice", BatchingMode, OnLate)


@dataclass(frozen=True, slots=True)
class Options:
    """As they stand on the command line. Times in seconds but for `linear_ms`."""

    model: str
    target_s: float
    trace: Path | None = None
    arrivals: str = ""
    speed: float = 1.0
    duration_s: float | None = None
    profile: Path | None = None
    linear_ms: str = ""
    noise: float = 0.0
    max_batch_rows: int = 64
    batching: str = BatchingMode.SLO.value
    on_late: str = OnLate.SERVE.value
    window_s: float = 0.0
    start_s: float = 0.3
    initial: int = 1
    seed: int = 1


def scenario_of(options: Options) -> Scenario:
    """Raises `SimulationError`."""
    try:
        arrived_s, duration_s = _arrivals(options)
        batch = _batch_times(options)
        start_s = Spread(options.start_s)
    except (OSError, ValueError) as error:
        raise SimulationError(str(error)) from error
    if not options.target_s > 0.0:
        raise SimulationError(f"--target: expected more than 0 s, got {options.target_s:g}")
    return Scenario(
        arrived_s=arrived_s,
        duration_s=duration_s,
        target_s=options.target_s,
        hardware=Hardware(batch, start_s=start_s),
        max_batch_rows=options.max_batch_rows,
        mode=_one_of(BatchingMode, options.batching, "--batching"),
        on_late=_one_of(OnLate, options.on_late, "--on-late"),
        window_s=options.window_s,
        initial=options.initial,
        name=options.model,
    )


def _arrivals(options: Options) -> tuple[NDArray[np.float64], float]:
    if (options.trace is None) == (not options.arrivals):
        raise SimulationError("expected either --trace FILE or --arrivals SPEC")
    generator = np.random.default_rng([options.seed, 1])
    if options.trace is not None:
        times_s = read_trace(options.trace, speed=options.speed).arrivals_s(generator)
        if options.duration_s is not None:
            times_s = times_s[times_s < options.duration_s]
    else:
        duration_s = options.duration_s if options.duration_s is not None else 600.0
        times_s = parse(options.arrivals).times_s(duration_s, generator)
    if len(times_s) < _LEAST_ARRIVALS:
        raise SimulationError(
            f"expected at least {_LEAST_ARRIVALS} arrivals, got {len(times_s)}: give a longer "
            "--duration or another trace"
        )
    return times_s, options.duration_s or float(times_s[-1]) + options.target_s


def _batch_times(options: Options) -> BatchTimes:
    if (options.profile is None) == (not options.linear_ms):
        raise SimulationError(
            "expected either --profile FILE (lines of rows,seconds) or --linear PER_ROW,BASE "
            "in milliseconds"
        )
    if options.profile is not None:
        return BatchTimes(_read_profile(options.profile), options.noise)
    parts = options.linear_ms.split(",")
    try:
        per_row_ms, base_ms = (float(part) for part in parts)
    except ValueError:
        raise SimulationError(
            f"--linear: expected two numbers of milliseconds such as 1.053,5.072, "
            f"got '{options.linear_ms}'"
        ) from None
    if per_row_ms < 0.0 or per_row_ms + base_ms <= 0.0:
        raise SimulationError(
            f"--linear: expected times that do not fall with the rows and are more than 0, "
            f"got '{options.linear_ms}'"
        )
    return BatchTimes.linear(per_row_ms / 1e3, base_ms / 1e3, options.noise)


def _read_profile(path: Path) -> tuple[tuple[int, float], ...]:
    """Lines of rows and seconds, a heading allowed: `rows,seconds`."""
    points: list[tuple[int, float]] = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, line in enumerate(csv.reader(file), 1):
            if not line or (number == 1 and not line[0].strip().isdigit()):
                continue
            try:
                rows, seconds = line
                points.append((int(rows), float(seconds)))
            except ValueError:
                raise SimulationError(
                    f"{path}:{number}: expected rows,seconds such as 8,0.0135, got "
                    f"'{','.join(line)}'"
                ) from None
    return tuple(points)


def _one_of(kind: type[_Choice], text: str, option: str) -> _Choice:
    try:
        return kind(text)
    except ValueError:
        raise SimulationError(
            f"{option}: expected one of {', '.join(one.value for one in kind)}, got '{text}'"
        ) from None
