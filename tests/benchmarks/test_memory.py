"""What the memory benchmark makes of its readings."""

import pytest

from benchmarks.memory.__main__ import Resident, slope, table

MIB = 1 << 20


def test_the_slope_is_that_of_the_second_half() -> None:
    warming_up = [(0, 0), (10, 5000), (20, 5000)]
    assert slope([*warming_up, (30, 5030), (40, 5060), (50, 5090)]) == pytest.approx(3.0)
    assert slope([*warming_up, (30, 5000), (40, 5000), (50, 5000)]) == pytest.approx(0.0)


def test_one_reading_has_no_slope() -> None:
    assert slope([(0, 7)]) == 0.0


def test_the_table_has_a_row_for_each_reading_and_the_growth() -> None:
    lines = table(
        [
            Resident(0, 70 * MIB, 60 * MIB),
            Resident(MIB, 71 * MIB, 60 * MIB),
            Resident(2 * MIB, 72 * MIB, 60 * MIB),
        ]
    ).splitlines()
    assert lines[2] == "| 0 | 70.0 | 60.0 |"
    assert lines[4] == "| 2,097,152 | 72.0 | 60.0 |"
    growth, *figures = lines[5].strip("| ").split(" | ")
    assert growth == "bytes a request, second half"
    assert [float(figure) for figure in figures] == [1.0, 0.0]
