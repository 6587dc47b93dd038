"""Batch times from options and profile files, by model."""

import csv
from collections.abc import Sequence
from math import isfinite, nan
from pathlib import Path

from tideserve.sim.by_model import ByModel
from tideserve.sim.errors import SimulationError
from tideserve.sim.hardware import BatchTimes
from tideserve.sim.options import Options
from tideserve.sim.trace import MODEL_HEADER, UNNAMED

Points = list[tuple[int, float]]


def batch_times_of(options: Options, models: Sequence[str]) -> dict[str, BatchTimes]:
    """Of each of these. Raises `SimulationError`, OSError, ValueError."""
    linear = ByModel.of("--linear", options.linear)
    linear.check(models)
    if (options.profile is None) == (not linear):
        raise SimulationError(
            "expected either --profile FILE (lines of rows,seconds) or --linear PER_ROW,BASE "
            "in milliseconds"
        )
    if options.profile is not None:
        points = _read_profile(options.profile)
        return {
            model: BatchTimes(tuple(_points_of(points, model, options.profile)), options.noise)
            for model in models
        }
    found = {}
    for model in models:
        text = linear.get(model)
        if text is None:
            raise SimulationError(f"--linear: expected one for '{model}' too: {model}=PER_ROW,BASE")
        found[model] = _linear(text, options.noise)
    return found


def _linear(text: str, noise: float) -> BatchTimes:
    try:
        per_row_ms, base_ms = (float(part) for part in text.split(","))
    except ValueError:
        raise SimulationError(
            f"--linear: expected two numbers of milliseconds such as 1.053,5.072, got '{text}'"
        ) from None
    sane = isfinite(per_row_ms) and isfinite(base_ms)
    if not sane or per_row_ms < 0.0 or per_row_ms + base_ms <= 0.0:
        raise SimulationError(
            f"--linear: expected finite times that do not fall with the rows and are more than 0, "
            f"got '{text}'"
        )
    return BatchTimes.linear(per_row_ms / 1e3, base_ms / 1e3, noise)


def _points_of(points: dict[str, Points], model: str, path: Path) -> Points:
    found = points.get(UNNAMED) or points.get(model)
    if found is None:
        raise SimulationError(f"{path}: expected batch times of '{model}', got {sorted(points)}")
    return found


def _read_profile(path: Path) -> dict[str, Points]:
    """Lines of rows and seconds, a heading allowed: `rows,seconds`, or `model,rows,seconds`, which
    has a profile for each."""
    found: dict[str, Points] = {}
    width = 2
    # Spreadsheets put a byte order mark first.
    with path.open(newline="", encoding="utf-8-sig") as file:
        for number, line in enumerate(csv.reader(file), 1):
            if not line:
                continue
            if number == 1 and not _is_number(line[0]):
                width += line[0].strip().lower() == MODEL_HEADER
                continue
            try:
                *names, rows, seconds = line
                point = int(rows), float(seconds)
            except ValueError:
                names, point = [], (0, nan)
            if not isfinite(point[1]) or len(names) != width - 2:
                example = "8,0.0135" if width == 2 else "digits,8,0.0135"
                raise SimulationError(
                    f"{path}:{number}: expected {'model,' * (width - 2)}rows,seconds such as "
                    f"{example}, got '{','.join(line)}'"
                )
            found.setdefault(names[0].strip() if names else UNNAMED, []).append(point)
    return found


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
