"""Trace files: recorded arrivals, or recorded rates, of one model or of several.

A trace is UTF-8 text or CSV with commas. Its first column counts, and those with the headers `rows`,
`length` and `model`; others are ignored, and so are blank lines. A first line that begins with a
letter is a header. What the first column holds:

    rates        where the header is `rate` or `rate_per_s`: arrivals a second, one line a second
    timestamps   otherwise, one line an arrival: all seconds, or all ISO 8601 datetimes, which are
                 UTC where they name no zone

`rows` says how many rows each arrival has, `length` how long each of these is in the dimension that
differs; they go with timestamps only. `model` says whose the line is: each model has its own
seconds then, one after the other, where the lines are rates.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain
from math import ceil, isfinite
from pathlib import Path
from typing import Final, TextIO

import numpy as np
from numpy.typing import NDArray

from tideserve.sim.arrivals import Floats, from_rates

RATE_HEADERS: Final = ("rate", "rate_per_s")
TIMES_HEADER: Final = "arrived_s"
ROWS_HEADER: Final = "rows"
LENGTH_HEADER: Final = "length"
MODEL_HEADER: Final = "model"
UNNAMED: Final = ""
"""Whose arrivals are those of a trace without a column of models."""

_SECONDS: Final = "seconds as a number, such as 12.5"
_DATETIME: Final = "an ISO datetime, such as 2023-11-16 18:15:46.68"
_RATE: Final = "arrivals a second, a finite number of 0 or more"
_ROWS: Final = "rows, a whole number from 1 to 4096"
_LENGTH: Final = "a length, a whole number from 1 to 1048576"
_MODEL: Final = "a model's name"
_MAX_ROWS: Final = 4096
_MAX_LENGTH: Final = 1_048_576
# Of a value that an error shows.
_SHOWN: Final = 60
# Of a second: what a length divided by a speed may be off.
_ROUNDING_S: Final = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Of one model. One of the first two is there.

    `times_s`: arrivals in seconds, ascending; the first of all models at 0. `rates_per_s`: arrivals
    a second, one value for each second from 0. `rows` and `lengths`: of each arrival at `times_s`;
    None: the trace does not say. `began_unix_s`: wall time of second 0, where there were datetimes.
    """

    times_s: Floats | None = None
    rates_per_s: Floats | None = None
    rows: NDArray[np.int64] | None = None
    lengths: NDArray[np.int64] | None = None
    began_unix_s: float | None = None

    def __post_init__(self) -> None:
        if (self.times_s is None) == (self.rates_per_s is None):
            raise ValueError("expected either times_s or rates_per_s, got both or none")

    def arrivals_s(self, generator: np.random.Generator) -> Floats:
        """The recorded times; where rates were recorded, times drawn from them. Seconds."""
        if self.times_s is not None:
            return self.times_s
        assert self.rates_per_s is not None
        return from_rates(self.rates_per_s, generator)


def read_traces(path: Path, *, speed: float = 1.0) -> dict[str, Trace]:
    """The trace in `path` of each model, by its name or `UNNAMED`, played `speed` times as fast.

    Times are sorted, shifted so that the first is 0, and divided by `speed`. Rates are averaged
    anew over the seconds that come of it, so that as many requests arrive.

    Raises ValueError with path and line for what cannot be read, OSError where the file cannot.
    """
    if not (isfinite(speed) and speed > 0.0):
        raise ValueError(f"speed: expected a finite factor above 0, got {speed:g}")
    # A byte that is not UTF-8 matters only in a column that counts, which then is refused.
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = _rows(path, file)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{path}: expected timestamps or rates, got an empty file")
        line, row = first
        header = [name.lower() for name in row] if _is_header(row[0]) else []
        if not header:
            rows = chain([first], rows)
        others = _Columns(header)
        if header and header[0] in RATE_HEADERS:
            if not {ROWS_HEADER, LENGTH_HEADER}.isdisjoint(header):
                expected = "no column of rows or length beside rates"
                raise _unexpected(path, line, ",".join(row), expected)
            rates = _rates(path, others.beside(path, rows))
            return {
                name: Trace(rates_per_s=_sped_up(rates[at], speed))
                for name, at in others.places(rates.size).items()
            }
        if not set(header).isdisjoint(RATE_HEADERS):
            raise _unexpected(path, line, ",".join(row), "the rate in the first column")
        times_s, order, began_unix_s = _times_s(path, others.beside(path, rows))
        return {
            name: Trace(
                times_s=times_s[at] / speed,
                rows=_ordered(others.rows, order, at),
                lengths=_ordered(others.lengths, order, at),
                began_unix_s=began_unix_s,
            )
            for name, at in others.places(times_s.size, order).items()
        }


def write_trace(path: Path, times_s: Sequence[float] | Floats) -> None:
    """Writes arrivals, in seconds, so that `read_trace` gives them back to the microsecond.

    Raises ValueError for a time that is not finite, OSError where the file cannot be written.
    """
    times = np.asarray(times_s, dtype=np.float64)
    if times.ndim != 1 or not np.isfinite(times).all():
        raise ValueError(f"times_s: expected a list of finite seconds, got {times}")
    lines = (TIMES_HEADER, *(f"{time_s:.6f}" for time_s in times.tolist()), "")
    path.write_text("\n".join(lines), encoding="utf-8", newline="\n")


def _rows(path: Path, file: TextIO) -> Iterator[tuple[int, list[str]]]:
    """Line number and columns of every line that is not blank."""
    reader = csv.reader(file)
    try:
        for row in reader:
            columns = [cell.strip() for cell in row]
            if any(columns):
                yield reader.line_num, columns
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.line_num}: expected CSV with commas: {error}") from None


def _is_header(text: str) -> bool:
    return (text[:1].isalpha() or text[:1] == "_") and _number(text) is None


@dataclass(slots=True)
class _Columns:
    """What stands beside the first column, line by line; lists of columns that are not there stay
    empty."""

    header: Sequence[str]
    rows: list[int] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    models: list[str] = field(default_factory=list)

    def beside(
        self, path: Path, lines: Iterator[tuple[int, list[str]]]
    ) -> Iterator[tuple[int, str]]:
        """Of each line its number and first cell; the others are taken in passing."""
        rows_at, length_at, model_at = (
            self.header.index(name) if name in self.header else None
            for name in (ROWS_HEADER, LENGTH_HEADER, MODEL_HEADER)
        )
        for line, row in lines:
            if rows_at is not None:
                self.rows.append(_count_in(path, line, _cell(row, rows_at), _ROWS, _MAX_ROWS))
            if length_at is not None:
                text = _cell(row, length_at)
                self.lengths.append(_count_in(path, line, text, _LENGTH, _MAX_LENGTH))
            if model_at is not None:
                name = _cell(row, model_at)
                if not name:
                    raise _unexpected(path, line, name, _MODEL)
                self.models.append(name)
            yield line, row[0]

    def places(
        self, count: int, order: NDArray[np.intp] | None = None
    ) -> Mapping[str, NDArray[np.intp]]:
        """Where each model's values stand among `count` of them, in that order of the lines."""
        if not self.models:
            return {UNNAMED: np.arange(count)}
        names = np.array(self.models)
        if order is not None:
            names = names[order]
        return {str(name): np.flatnonzero(names == name) for name in np.unique(names)}


def _ordered(
    values: list[int], order: NDArray[np.intp], at: NDArray[np.intp]
) -> NDArray[np.int64] | None:
    return np.array(values, np.int64)[order][at] if values else None


def _cell(row: list[str], at: int) -> str:
    return row[at] if at < len(row) else ""


def _count_in(path: Path, line: int, text: str, expected: str, most: int) -> int:
    count = int(text) if text.isdecimal() and len(text) <= len(str(most)) else 0
    if not 1 <= count <= most:
        raise _unexpected(path, line, text, expected)
    return count


def _times_s(
    path: Path, cells: Iterator[tuple[int, str]]
) -> tuple[Floats, NDArray[np.intp], float | None]:
    """Sorted, the first 0, which line each was, and the first one's wall time if these are
    datetimes. All are of the first one's kind."""
    first = next(cells, None)
    if first is None:
        raise ValueError(f"{path}: expected a timestamp in each line below the header, got none")
    line, text = first
    first_at = _datetime(text)
    if _number(text) is not None:
        values = [_number_in(path, *cell, _SECONDS) for cell in chain([first], cells)]
    elif first_at is not None:
        # Differences of datetimes keep the microseconds that seconds since 1970 would round.
        values = [0.0, *((_datetime_in(path, *cell) - first_at).total_seconds() for cell in cells)]
    else:
        raise _unexpected(path, line, text, f"{_SECONDS}, or {_DATETIME}")
    unsorted_s = np.array(values, dtype=np.float64)
    order = np.argsort(unsorted_s, kind="stable")
    times_s: Floats = unsorted_s[order]
    began_unix_s = None
    if first_at is not None and _number(text) is None:
        began_unix_s = first_at.timestamp() + float(times_s[0])
    times_s -= times_s[0]
    return times_s, order, began_unix_s


def _rates(path: Path, cells: Iterator[tuple[int, str]]) -> Floats:
    rates = []
    for line, text in cells:
        rate = _number_in(path, line, text, _RATE)
        if rate < 0.0:
            raise _unexpected(path, line, text, _RATE)
        rates.append(rate)
    if not rates:
        raise ValueError(f"{path}: expected a rate in each line below the header, got none")
    return np.array(rates, dtype=np.float64)


def _sped_up(rates: Floats, speed: float) -> Floats:
    if speed == 1.0:
        return rates
    seconds = max(1, ceil(rates.size / speed - _ROUNDING_S))
    requests = np.concatenate((np.zeros(1), np.cumsum(rates)))
    edges_s = np.arange(seconds + 1) * speed
    # Interpolation rounds: what should be equal may fall by a trifle.
    sped_up: Floats = np.diff(np.interp(edges_s, np.arange(rates.size + 1), requests))
    return sped_up.clip(min=0.0)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _datetime(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at


def _number_in(path: Path, line: int, text: str, expected: str) -> float:
    value = _number(text)
    if value is None or not isfinite(value):
        raise _unexpected(path, line, text, expected)
    return value


def _datetime_in(path: Path, line: int, text: str) -> datetime:
    # Digits alone are seconds, though ISO 8601 has datetimes without separators.
    value = None if _number(text) is not None else _datetime(text)
    if value is None:
        raise _unexpected(path, line, text, f"{_DATETIME}, as in the lines above")
    return value


def _unexpected(path: Path, line: int, text: str, expected: str) -> ValueError:
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return ValueError(
        f"{path}:{line}: expected {expected}, got {shown!r}: correct the line or delete it"
    )
