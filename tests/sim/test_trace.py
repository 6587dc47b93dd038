"""Trace files: every form that is read, what is refused, and that what is written is read back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tideserve.sim.arrivals import Floats
from tideserve.sim.trace import UNNAMED, Trace, read_traces, write_trace

SECONDS = "seconds as a number, such as 12.5"
DATETIME = "an ISO datetime, such as 2023-11-16 18:15:46.68"
AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.2224670,879,55
"""


def read_trace(path: Path, *, speed: float = 1.0) -> Trace:
    """Of a file that names no models."""
    return read_traces(path, speed=speed)[UNNAMED]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trace.csv"


def listed(values: NDArray[Any] | None) -> list[float]:
    assert values is not None
    return [float(value) for value in values]


def times_of(path: Path, text: str, speed: float = 1.0) -> list[float]:
    path.write_text(text, encoding="utf-8")
    trace = read_trace(path, speed=speed)
    assert trace.rates_per_s is None
    assert trace.times_s is not None
    assert trace.times_s.dtype == np.float64
    return [float(time_s) for time_s in trace.times_s]


def rates_of(path: Path, text: str, speed: float = 1.0) -> list[float]:
    path.write_text(text, encoding="utf-8")
    trace = read_trace(path, speed=speed)
    assert trace.times_s is None
    assert trace.rates_per_s is not None
    assert trace.rates_per_s.dtype == np.float64
    return [float(rate) for rate in trace.rates_per_s]


def test_datetimes_with_a_header_and_other_columns(path: Path) -> None:
    assert times_of(path, AZURE) == [0.0, 4.314579, 4.541877]


@pytest.mark.parametrize(
    "text",
    [
        "10.5\n12\n14.25",
        "arrived_s\n10.5\n12\n14.25\n",
        "_t,tokens\n10.5,1\n12,2\n14.25,3\n",
        '"arrived","by"\n"10.5","a, b"\n"12","c"\n"14.25",""\n',
        "\ufeffarrived_s\r\n10.5\r\n\r\n 12 \r\n,,\r\n14.25\r\n",
        "12\n14.25\n10.5\n",
        "-3.5\n-2\n0.25\n",
        "1700000010.5\n1700000012\n1700000014.25\n",
        "2024-01-01T00:00:10.5\n2024-01-01T00:00:12Z\n2024-01-01T02:00:14.250+02:00\n",
        "20240101T000010.5\n20240101T000012\n20240101T000014.25\n",
    ],
    ids=[
        "bare", "header", "columns", "quoted", "bom-crlf-blank", "unsorted", "negative", "unix",
        "zones", "compact",
    ],
)  # fmt: skip
def test_one_timestamp_a_line(path: Path, text: str) -> None:
    assert times_of(path, text) == [0.0, 1.5, 3.75]


def test_bytes_that_are_not_utf_8_matter_only_in_the_first_column(path: Path) -> None:
    path.write_bytes(b"1,caf\xe9\n2,x\n")
    assert np.array_equal(_times(read_trace(path)), [0.0, 1.0])

    path.write_bytes(b"1\n\xe9\n")
    with pytest.raises(ValueError, match=r"trace\.csv:2: expected seconds"):
        read_trace(path)


def test_speed_divides_times(path: Path) -> None:
    assert times_of(path, "10\n12\n15\n", speed=4.0) == [0.0, 0.5, 1.25]


@pytest.mark.parametrize("header", ["rate", "rate_per_s", "Rate", '"rate_per_s",from'])
def test_one_rate_a_second(path: Path, header: str) -> None:
    assert rates_of(path, f"{header}\n10\n0\n\n2.5,x\n") == [10.0, 0.0, 2.5]


@pytest.mark.parametrize(
    ("speed", "rates"),
    [
        (2.0, [40.0, 20.0]),  # 10 + 30, 20 and nothing
        (1.5, [25.0, 35.0]),  # 10 + 30 / 2, 30 / 2 + 20
        (0.5, [5.0, 5.0, 15.0, 15.0, 10.0, 10.0]),
        (100.0, [60.0]),
    ],
)
def test_speed_averages_rates_anew(path: Path, speed: float, rates: list[float]) -> None:
    assert rates_of(path, "rate\n10\n30\n20\n", speed=speed) == pytest.approx(rates)


@given(st.lists(st.floats(0.0, 1e4), min_size=1, max_size=20), st.floats(0.1, 30.0))
def test_at_any_speed_as_many_requests_arrive(
    tmp_path_factory: pytest.TempPathFactory, rates: list[float], speed: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "rates.csv"
    text = "\n".join(["rate", *map(repr, rates)])

    sped_up = rates_of(path, text, speed)

    assert len(sped_up) == pytest.approx(len(rates) / speed + 0.5, abs=0.6)
    assert min(sped_up) >= 0.0
    assert sum(sped_up) == pytest.approx(sum(rates))


def test_arrivals_are_the_times_or_drawn_from_the_rates() -> None:
    times = Trace(times_s=np.array([0.0, 1.5]))
    rates = Trace(rates_per_s=np.array([0.0, 10_000.0]))

    assert times.arrivals_s(np.random.default_rng(1)).tolist() == [0.0, 1.5]
    drawn_s = rates.arrivals_s(np.random.default_rng(1))
    assert drawn_s.size == pytest.approx(10_000, rel=0.05)
    assert drawn_s[0] >= 1.0
    assert np.array_equal(drawn_s, rates.arrivals_s(np.random.default_rng(1)))


def test_a_column_of_rows_goes_with_its_times(path: Path) -> None:
    path.write_text("time,tokens,rows\n3,x,2\n1,y,4\n2,z,1\n")
    trace = read_trace(path, speed=2.0)
    assert trace.times_s is not None
    assert trace.rows is not None
    assert trace.times_s.tolist() == [0.0, 0.5, 1.0]
    assert trace.rows.tolist() == [4, 1, 2]


@pytest.mark.parametrize("text", ["", "0", "1.5", "-1", "4097", "99999999999999999999"])
def test_rows_are_whole_numbers_of_a_batch(path: Path, text: str) -> None:
    path.write_text(f"time,rows\n1,1\n2,{text}\n")
    with pytest.raises(ValueError, match=":3: expected rows, a whole number from 1 to 4096"):
        read_trace(path)


def test_rates_have_no_rows(path: Path) -> None:
    path.write_text("rate,rows\n1,1\n")
    with pytest.raises(ValueError, match="no column of rows or length beside rates"):
        read_trace(path)


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=50).map(sorted))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, times_us: list[int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.csv"
    times_s = np.array(times_us) / 1e6

    write_trace(path, times_s)

    assert _times(read_trace(path)) == pytest.approx(times_s - times_s[0], abs=1e-9)


def test_written_form(path: Path) -> None:
    write_trace(path, [0.0, 1.23456789, 20.0])

    assert path.read_bytes() == b"arrived_s\n0.000000\n1.234568\n20.000000\n"


@pytest.mark.parametrize("times_s", [[1.0, np.nan], [np.inf], np.zeros((2, 2))])
def test_only_finite_times_are_written(path: Path, times_s: list[float] | Floats) -> None:
    with pytest.raises(ValueError, match="times_s: expected a list of finite seconds, got"):
        write_trace(path, times_s)

    assert not path.exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ": expected timestamps or rates, got an empty file"),
        ("\n , \n", ": expected timestamps or rates, got an empty file"),
        ("arrived_s\n", ": expected a timestamp in each line below the header, got none"),
        ("rate\n", ": expected a rate in each line below the header, got none"),
        ("t\n\nsoon\n", f":3: expected {SECONDS}, or {DATETIME}, got 'soon': correct the line or"),
        ("12x\n13\n", ":1: expected seconds as a number, such as 12.5, or an ISO"),
        ("nan\n1\n", ":1: expected seconds as a number, such as 12.5, got 'nan'"),
        ("1\ninf\n", ":2: expected seconds as a number, such as 12.5, got 'inf'"),
        ("1\n,5\n", ":2: expected seconds as a number, such as 12.5, got ''"),
        (",5\n1\n", ":1: expected seconds as a number, such as 12.5, or an ISO"),
        ("1\n2024-01-01 00:00:00\n", ":2: expected seconds as a number, such as 12.5, got '2024-"),
        ("2024-01-01 00:00:00\n5\n", f":2: expected {DATETIME}, as in the lines above, got '5'"),
        ("2024-01-01 00:00:00\n20240101\n", ":2: expected an ISO datetime"),
        ("2024-01-01 00:00:00\n2024-13-01 00:00:00\n", ":2: expected an ISO datetime"),
        ("rate\n1\n-1\n", ":3: expected arrivals a second, a finite number of 0 or more, got '-1'"),
        ("rate\nnan\n", ":2: expected arrivals a second, a finite number of 0 or more, got 'nan'"),
        ("rate\n2024-01-01\n", ":2: expected arrivals a second"),
        ("second,rate\n0,5\n", ":1: expected the rate in the first column, got 'second,rate'"),
        (f"1\n{'9' * 70}x\n", f"got '{'9' * 60}...'"),
        (f'1\n"{"9" * 200_000}\n', ":2: expected CSV with commas: field larger than"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused(path: Path, text: str, said: str) -> None:
    path.write_text(text, encoding="utf-8")

    with pytest.raises(ValueError, match="expected") as raised:
        read_trace(path)

    assert str(raised.value).startswith(f"{path}:")
    assert said in str(raised.value)


@pytest.mark.parametrize("speed", [0.0, -1.0, np.nan, np.inf])
def test_only_a_finite_speed_above_0(path: Path, speed: float) -> None:
    with pytest.raises(ValueError, match="speed: expected a finite factor above 0, got"):
        read_trace(path, speed=speed)


def test_no_file(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"trace\.csv"):
        read_trace(path)


def test_a_trace_has_times_or_rates() -> None:
    with pytest.raises(ValueError, match="either times_s or rates_per_s, got both or none"):
        Trace()
    with pytest.raises(ValueError, match="either times_s or rates_per_s, got both or none"):
        Trace(times_s=np.zeros(1), rates_per_s=np.zeros(1))


def _times(trace: Trace) -> Floats:
    assert trace.times_s is not None
    return trace.times_s


def test_each_model_has_its_arrivals_by_the_clock_of_all(path: Path) -> None:
    path.write_text("arrived_s,model,rows,length\n12,b,1,30\n10,a,2,10\n11,b,3,20\n14,a,4,40\n")
    found = read_traces(path, speed=2.0)
    assert sorted(found) == ["a", "b"]
    assert [listed(trace.times_s) for _, trace in sorted(found.items())] == [[0.0, 2.0], [0.5, 1.0]]
    assert [listed(trace.rows) for _, trace in sorted(found.items())] == [[2, 4], [3, 1]]
    assert [listed(trace.lengths) for _, trace in sorted(found.items())] == [[10, 40], [20, 30]]


def test_each_model_has_its_own_seconds_of_rates(path: Path) -> None:
    path.write_text("rate_per_s,model\n1,a\n10,b\n2,a\n20,b\n3,a\n")
    found = read_traces(path)
    assert listed(found["a"].rates_per_s) == [1.0, 2.0, 3.0]
    assert listed(found["b"].rates_per_s) == [10.0, 20.0]


def test_datetimes_say_when_the_first_arrival_was(path: Path) -> None:
    path.write_text("2024-01-01T00:00:12Z\n2024-01-01T02:00:10.5+02:00\n")
    assert read_trace(path).began_unix_s == 1_704_067_210.5
    path.write_text("10\n12\n")
    assert read_trace(path).began_unix_s is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("arrived_s,model\n1,a\n2,\n", "trace.csv:3: expected a model's name, got ''"),
        ("arrived_s,length\n1,0\n", "trace.csv:2: expected a length, a whole number from 1"),
        ("arrived_s,length\n1,1048577\n", "trace.csv:2: expected a length"),
        ("rate,length\n1,5\n", "trace.csv:1: expected no column of rows or length beside rates"),
    ],
)
def test_models_and_lengths_that_are_none_are_refused(path: Path, text: str, words: str) -> None:
    path.write_text(text)
    with pytest.raises(ValueError, match=words):
        read_traces(path)
