"""From files and options to a scenario."""

import csv
from math import inf, isfinite, nan
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
# A request has no more rows than a batch, which --max-batch-rows bounds.
_MOST_DIGITS: Final = 4
_Choice = TypeVar("_Choice", BatchingMode, OnLate)


def scenario_of(options: Options, target_s: float) -> Scenario:
    """Raises `SimulationError`."""
    _check_numbers(options, target_s)
    try:
        arrived_s, duration_s, request_rows = _arrivals(options, target_s)
        hardware = _hardware(options)
    except (OSError, ValueError) as error:
        raise SimulationError(str(error)) from error
    return Scenario(
        arrived_s=arrived_s,
        duration_s=duration_s,
        target_s=target_s,
        hardware=hardware,
        max_batch_rows=options.max_batch_rows,
        mode=_one_of(BatchingMode, options.batching, "--batching"),
        on_late=_one_of(OnLate, options.on_late, "--on-late"),
        window_s=options.window,
        initial=options.initial,
        name=options.model,
        request_rows=request_rows,
    )


def _hardware(options: Options) -> Hardware:
    return Hardware(
        _batch_times(options),
        start_s=Spread(options.start, options.start_worst or 0.0),
        load_s=Spread(options.standby_start, 2.0 * options.standby_start),
        prepared_s=Spread(options.prepared_start, 1.2 * options.prepared_start),
        mean_life_s=options.mean_life or inf,
        link_s=options.link,
    )


def _check_numbers(options: Options, target_s: float) -> None:
    """What a float can be and a time cannot; options that would have no effect."""
    finite = {
        "--speed": options.speed,
        "--duration": options.duration,
        "--noise": options.noise,
        "--window": options.window,
        "--start": options.start,
        "--start-worst": options.start_worst,
        "--standby-start": options.standby_start,
        "--prepared-start": options.prepared_start,
        "--mean-life": options.mean_life,
        "--link": options.link,
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


def _arrivals(
    options: Options, target_s: float
) -> tuple[NDArray[np.float64], float, NDArray[np.int64] | None]:
    """Times, how long the run is, and the rows of each."""
    if (options.trace is None) == (not options.arrivals):
        raise SimulationError("expected either --trace FILE or --arrivals SPEC")
    generator = np.random.default_rng([options.seed, 1])
    rows: NDArray[np.int64] | None = None
    if options.trace is not None:
        trace = read_trace(options.trace, speed=options.speed)
        times_s, rows = trace.arrivals_s(generator), trace.rows
        if options.duration is not None:
            times_s = times_s[times_s < options.duration]
            rows = None if rows is None else rows[: len(times_s)]
    else:
        duration_s = options.duration if options.duration is not None else 600.0
        times_s = parse(options.arrivals).times_s(duration_s, generator)
    if len(times_s) < _LEAST_ARRIVALS:
        raise SimulationError(
            f"expected at least {_LEAST_ARRIVALS} arrivals, got {len(times_s)}: give a longer "
            "--duration or another trace"
        )
    if options.rows:
        if rows is not None:
            raise SimulationError(f"--rows: {options.trace} has a column of rows already")
        rows = np.random.default_rng([options.seed, 2]).choice(_row_counts(options), len(times_s))
    if rows is not None and rows.max() > options.max_batch_rows:
        raise SimulationError(
            f"expected requests of at most {options.max_batch_rows} rows (--max-batch-rows), "
            f"got one of {rows.max()}"
        )
    return times_s, options.duration or float(times_s[-1]) + target_s, rows


def _row_counts(options: Options) -> list[int]:
    parts = options.rows.split("/")
    counts = [int(part) if part.isdecimal() and len(part) <= _MOST_DIGITS else 0 for part in parts]
    if min(counts) < 1:
        raise SimulationError(
            f"--rows: expected whole numbers from 1 such as 4 or 1/1/8, got '{options.rows}'"
        )
    return counts


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
