"""What is read from perf_analyzer's report."""

import pytest

from benchmarks.errors import LoadFailedError
from benchmarks.perf_analyzer import is_unsteady, parse_report

HEAD = "Concurrency,Inferences/Second,Client Send,p50 latency,p90 latency,p95 latency,p99 latency\n"


def test_rate_and_latency_are_read_by_the_names_of_the_columns() -> None:
    assert parse_report(HEAD + "16,8466.08,2,1808,2571,2865,3572\n") == (8466.08, 1.808, 3.572)


def test_a_report_without_its_line_is_refused() -> None:
    with pytest.raises(LoadFailedError, match="expected one line"):
        parse_report(HEAD)


def test_a_report_with_other_columns_is_refused_by_name() -> None:
    with pytest.raises(LoadFailedError, match="no column 'Inferences/Second'"):
        parse_report("Concurrency\n16\n")


def test_only_windows_that_differ_are_tried_again() -> None:
    unsteady = "Request concurrency: 64\nFailed to obtain stable measurement within 3 windows\n"
    assert is_unsteady(2, unsteady)
    assert not is_unsteady(0, unsteady)
    assert not is_unsteady(2, unsteady + "Error: UNAVAILABLE\n")
    assert not is_unsteady(99, "")
