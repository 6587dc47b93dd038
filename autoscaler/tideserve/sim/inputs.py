"""From files and options to a scenario."""

import csv
from math import isfinite, nan
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from tideserve.server.core.settings import BatchingMode, OnLate
from tideserve.sim.arrivals import parse
from tideserve.sim.errors import SimulationError
from tideserve.sim.hardware import BatchTimes, Hardware, Spread
from tideserve.sim.options import Options
from tideserve.sim.scenario import Scenario
from tideserve.sim.trace import read_trace

_LEAST_ARRIVALS: Final = 2
_Choice = TypeVar("_Choice", BatchingMode, OnLate)


def scenario_of(options: Options, target_s: float) -> Scenario:
    """Raises `SimulationError`."""
    _check_numbers(options, target_s)
    try:
        arrived_s, duration_s = _arrivals(options, target_s)
        batch = _batch_times(options)
        start_s = Spread(options.start)
    except (OSError, ValueError) as error:
        raise SimulationError(str(error)) from error
    return Scenario(
        arrived_s=arrived_s,
        duration_s=duration_s,
        target_s=target_s,
        hardware=Hardware(batch, start_s=start_s),
        max_batch_rows=options.max_batch_rows,
        mode=_one_of(BatchingMode, options.batching, "--batching"),
        on_late=_one_of(OnLate, options.on_late, "--on-late"),
        window_s=options.window,
        initial=options.initial,
        name=options.model,
    )


def _check_numbers(options: Options, target_s: float) -> None:
    """What a float can be and a time cannot; options that would have no effect."""
    finite = {
        "--speed": options.speed,
        "--duration": options.duration,
        "--noise": options.noise,
        "--window": options.window,
        "--start": options.start,
    }
    for option, value in finite.items():
        if value is not None and not isfinite(value):
            raise SimulationError(f"{option}: expected a finite number, got {value:g}")
    if not (isfinite(target_s) and target_s > 0.0):
        raise SimulationError(f"--target: expected seconds, more than 0, got {target_s:g}")
    if options.trace is None and options.speed != 1.0:
        raise SimulationError("--speed is of a --trace: give --arrivals the rate itself")
    if options.window and options.batching != BatchingMode.WINDOW.value:
        raise SimulationError(f"--window is of --batching window, got {options.batching}")


def _arrivals(options: Options, target_s: float) -> tuple[NDArray[np.float64], float]:
    if (options.trace is None) == (not options.arrivals):
        raise SimulationError("expected either --trace FILE or --arrivals SPEC")
    generator = np.random.default_rng([options.seed, 1])
    if options.trace is not None:
        times_s = read_trace(options.trace, speed=options.speed).arrivals_s(generator)
        if options.duration is not None:
            times_s = times_s[times_s < options.duration]
    else:
        duration_s = options.duration if options.duration is not None else 600.0
        times_s = parse(options.arrivals).times_s(duration_s, generator)
    if len(times_s) < _LEAST_ARRIVALS:
        raise SimulationError(
            f"expected at least {_LEAST_ARRIVALS} arrivals, got {len(times_s)}: give a longer "
            "--duration or another trace"
        )
    return times_s, options.duration or float(times_s[-1]) + target_s


def _batch_times(options: Options) -> BatchTimes:
    if (options.profile is None) == (not options.linear):
        raise SimulationError(
            "expected either --profile FILE (lines of rows,seconds) or --linear PER_ROW,BASE "
            "in milliseconds"
        )
    if options.profile is not None:
        return BatchTimes(_read_profile(options.profile), options.noise)
    parts = options.linear.split(",")
    try:
        per_row_ms, base_ms = (float(part) for part in parts)
    except ValueError:
        raise SimulationError(
            f"--linear: expected two numbers of milliseconds such as 1.053,5.072, "
            f"got '{options.linear}'"
        ) from None
    sane = isfinite(per_row_ms) and isfinite(base_ms)
    if not sane or per_row_ms < 0.0 or per_row_ms + base_ms <= 0.0:
        raise SimulationError(
            f"--linear: expected finite times that do not fall with the rows and are more than 0, "
            f"got '{options.linear}'"
        )
    return BatchTimes.linear(per_row_ms / 1e3, base_ms / 1e3, options.noise)


def _read_profile(path: Path) -> tuple[tuple[int, float], ...]:
    """Lines of rows and seconds, a heading allowed: `rows,seconds`."""
    points: list[tuple[int, float]] = []
    # Spreadsheets put a byte order mark first.
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, line in enumerate(csv.reader(file), 1):
            if not line or (number == 1 and not _is_number(line[0])):
                continue
            try:
                rows, seconds = line
                point = int(rows), float(seconds)
            except ValueError:
                point = 0, nan
            if not isfinite(point[1]):
                raise SimulationError(
                    f"{path}:{number}: expected rows,seconds such as 8,0.0135, got "
                    f"'{','.join(line)}'"
                )
            points.append(point)
    return tuple(points)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _one_of(kind: type[_Choice], text: str, option: str) -> _Choice:
    try:
        return kind(text)
    except ValueError:
        raise SimulationError(
            f"{option}: expected one of {', '.join(one.value for one in kind)}, got '{text}'"
        ) from None
