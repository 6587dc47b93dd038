"""From files and options to scenarios, one for each model of a run."""

from bisect import bisect_left
from collections.abc import Callable
from math import inf, isfinite
from typing import Final, TypeVar

import numpy as np

from tideserve.server.core.settings import BatchingMode, OnLate
from tideserve.sim.by_model import ByModel
from tideserve.sim.demand import Counts, Demand, begin_unix_s, demands_of, whole_numbers
from tideserve.sim.errors import SimulationError
from tideserve.sim.hardware import BatchTimes, Hardware, Spread
from tideserve.sim.options import DEFAULT_MAX_BATCH_ROWS, Options
from tideserve.sim.scenario import UNIX_S, Scenario
from tideserve.sim.timing import batch_times_of

_MOST_BATCH_ROWS: Final = 4096
_MOST_LENGTH: Final = 1_048_576
_Choice = TypeVar("_Choice", BatchingMode, OnLate)


def scenarios_of(options: Options, target_of: Callable[[str], float]) -> list[Scenario]:
    """`target_of` a model, in seconds. Raises `SimulationError`."""
    _check_numbers(options)
    most_rows = ByModel.of("--max-batch-rows", options.max_batch_rows)
    try:
        demands = demands_of(options)
        models = [demand.model for demand in demands]
        most_rows.check(models)
        times = batch_times_of(options, models)
        hardware = {model: _hardware(options, times[model]) for model in models}
    except (OSError, ValueError) as error:
        raise SimulationError(str(error)) from error
    targets_s = {model: _checked_target_s(target_of(model)) for model in models}
    duration_s = options.duration or max(
        float(demand.arrived_s[-1]) + targets_s[demand.model] for demand in demands
    )
    unix_s = begin_unix_s(options, demands)
    return [
        _scenario(
            options,
            demand,
            hardware=hardware[demand.model],
            target_s=targets_s[demand.model],
            max_batch_rows=_max_batch_rows(most_rows.get(demand.model)),
            duration_s=duration_s,
            unix_s=UNIX_S if unix_s is None else unix_s,
        )
        for demand in demands
    ]


def _scenario(
    options: Options,
    demand: Demand,
    *,
    hardware: Hardware,
    target_s: float,
    max_batch_rows: int,
    duration_s: float,
    unix_s: float,
) -> Scenario:
    if demand.rows is not None and demand.rows.max() > max_batch_rows:
        raise SimulationError(
            f"expected requests of at most {max_batch_rows} rows (--max-batch-rows), "
            f"got one of {demand.rows.max()}"
        )
    edges, costs = _padded(options, demand)
    return Scenario(
        arrived_s=demand.arrived_s,
        duration_s=duration_s,
        target_s=target_s,
        hardware=hardware,
        max_batch_rows=max_batch_rows,
        mode=_one_of(BatchingMode, options.batching, "--batching"),
        on_late=_one_of(OnLate, options.on_late, "--on-late"),
        window_s=options.window,
        initial=options.initial,
        name=demand.model,
        request_rows=demand.rows,
        row_costs=costs,
        pad_edges=edges,
        max_batch_cost=options.max_batch_cost,
        unix_s=unix_s,
        day_speed=options.speed,
    )


def _padded(options: Options, demand: Demand) -> tuple[tuple[int, ...], Counts | None]:
    """The edges of the buckets, and each request's length up to its own one's."""
    edges = _edges(options)
    if demand.lengths is None:
        if edges or options.max_batch_cost is not None:
            raise SimulationError(
                "--pad and --max-batch-cost are of requests with lengths: give --lengths, or a "
                "trace with a column length"
            )
        return (), None
    if not edges:
        raise SimulationError(
            "--pad: expected the edges that requests are padded to, such as 64/128/256, where they "
            "have lengths"
        )
    padded = [
        edges[at] if (at := bisect_left(edges, length)) < len(edges) else length
        for length in demand.lengths.tolist()
    ]
    return edges, np.array(padded, np.int64)


def _edges(options: Options) -> tuple[int, ...]:
    if not options.pad:
        return ()
    edges = whole_numbers("--pad", options.pad, _MOST_LENGTH)
    if sorted(set(edges)) != edges:
        raise SimulationError(f"--pad: expected ascending edges, got '{options.pad}'")
    return tuple(edges)


def _hardware(options: Options, times: BatchTimes) -> Hardware:
    edges = _edges(options)
    return Hardware(
        times,
        start_s=Spread(options.start, options.start_worst or 0.0),
        load_s=Spread(options.standby_start, 2.0 * options.standby_start),
        prepared_s=Spread(options.prepared_start, 1.2 * options.prepared_start),
        mean_life_s=options.mean_life or inf,
        link_s=options.link,
        row_cost=edges[-1] if edges else 1,
    )


def _check_numbers(options: Options) -> None:
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
    if options.trace is None and options.speed != 1.0:
        raise SimulationError("--speed is of a --trace: give --arrivals the rate itself")
    if options.window and options.batching != BatchingMode.WINDOW.value:
        raise SimulationError(f"--window is of --batching window, got {options.batching}")


def _checked_target_s(target_s: float) -> float:
    if not (isfinite(target_s) and target_s > 0.0):
        raise SimulationError(f"--target: expected seconds, more than 0, got {target_s:g}")
    return target_s


def _max_batch_rows(text: str | None) -> int:
    if text is None:
        return DEFAULT_MAX_BATCH_ROWS
    rows = int(text) if text.isdecimal() and len(text) <= len(str(_MOST_BATCH_ROWS)) else 0
    if not 1 <= rows <= _MOST_BATCH_ROWS:
        raise SimulationError(
            f"--max-batch-rows: expected a whole number from 1 to {_MOST_BATCH_ROWS}, got '{text}'"
        )
    return rows


def _one_of(kind: type[_Choice], text: str, option: str) -> _Choice:
    try:
        return kind(text)
    except ValueError:
        raise SimulationError(
            f"{option}: expected one of {', '.join(one.value for one in kind)}, got '{text}'"
        ) from None
