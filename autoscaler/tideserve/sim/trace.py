"""Trace files: recorded arrivals, or recorded rates.

A trace is UTF-8 text or CSV with commas. Its first column counts, and one with the header `rows`;
others are ignored, and so are blank lines. A first line that begins with a letter is a header. What
the first column holds:

    rates        where the header is `rate` or `rate_per_s`: arrivals a second, one line a second
    timestamps   otherwise, one line an arrival: all seconds, or all ISO 8601 datetimes, which are
                 UTC where they name no zone

The column `rows` says how many rows each arrival has, and goes with timestamps only.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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

_SECONDS: Final = "seconds as a number, such as 12.5"
_DATETIME: Final = "an ISO datetime, such as 2023-11-16 18:15:46.68"
_RATE: Final = "arrivals a second, a finite number of 0 or more"
_ROWS: Final = "rows, a whole number from 1 to 4096"
_MAX_ROWS: Final = 4096
# Of a value that an error shows.
_SHOWN: Final = 60
# Of a second: what a length divided by a speed may be off.
_ROUNDING_S: Final = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """One of the first two is there.

    `times_s`: arrivals in seconds, ascending from 0. `rates_per_s`: arrivals a second, one value
    for each second from 0. `rows`: of each arrival at `times_s`; None: the trace does not say.
    """

    times_s: Floats | None = None
    rates_per_s: Floats | None = None
    rows: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if (self.times_s is None) == (self.rates_per_s is None):
            raise ValueError("expected either times_s or rates_per_s, got both or none")

    def arrivals_s(self, generator: np.random.Generator) -> Floats:
        """The recorded times; where rates were recorded, times drawn from them. Seconds."""
        if self.times_s is not None:
            return self.times_s
        assert self.rates_per_s is not None
        return from_rates(self.rates_per_s, generator)


def read_trace(path: Path, *, speed: float = 1.0) -> Trace:
    """The trace in `path`, played `speed` times as fast.

    Times are sorted, shifted so that the first is 0, and divided by `speed`. Rates are averaged
    anew over the seconds that come of it, so that as many requests arrive.

    Raises ValueError with path and line for what cannot be read, OSError where the file cannot.
    """
    if not (isfinite(speed) and speed > 0.0):
        raise ValueError(f"speed: expected a finite factor above 0, got {speed:g}")
    # A byte that is not UTF-8 matters only in the first column, which then is refused.
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        rows = _rows(path, file)
        first = next(rows, None)
        if first is None:
            raise ValueError(f"{path}: expected timestamps or rates, got an empty file")
        line, row = first
        header = [name.lower() for name in row] if _is_header(row[0]) else []
        if not header:
            rows = chain([first], rows)
        cells = ((line, row[0]) for line, row in rows)
        rows_at = header.index(ROWS_HEADER) if ROWS_HEADER in header else None
        if header and header[0] in RATE_HEADERS:
            if rows_at is not None:
                raise _unexpected(path, line, ",".join(row), "no column of rows beside rates")
            return Trace(rates_per_s=_sped_up(_rates(path, cells), speed))
        if not set(header).isdisjoint(RATE_HEADERS):
            raise _unexpected(path, line, ",".join(row), "the rate in the first column")
        if rows_at is None:
            return Trace(times_s=_times_s(path, cells)[0] / speed)
        lines = list(rows)
        request_rows = [_rows_in(path, line, row, rows_at) for line, row in lines]
        times_s, order = _times_s(path, ((line, row[0]) for line, row in lines))
        return Trace(times_s=times_s / speed, rows=np.array(request_rows, np.int64)[order])


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


def _rows_in(path: Path, line: int, row: list[str], at: int) -> int:
    text = row[at] if at < len(row) else ""
    count = int(text) if text.isdecimal() and len(text) <= len(str(_MAX_ROWS)) else 0
    if not 1 <= count <= _MAX_ROWS:
        raise _unexpected(path, line, text, _ROWS)
    return count


def _times_s(path: Path, cells: Iterator[tuple[int, str]]) -> tuple[Floats, NDArray[np.intp]]:
    """Sorted, the first 0, and which line each was. All are of the first one's kind."""
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
    times_s -= times_s[0]
    return times_s, order


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
