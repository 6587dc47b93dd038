"""What is read from perf_analyzer's report."""

import pytest

from benchmarks.__main__ import analysis_cases
from benchmarks.errors import LoadFailedError
from benchmarks.perf_analyzer import is_unsteady, parse_report, shared_arguments
from benchmarks.workloads import WORKLOADS

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


def test_a_place_in_shared_memory_holds_the_output_of_a_row() -> None:
    for name, room in (("identity", 64), ("tensor_600k", 600_000)):
        *_, option, byte_size = shared_arguments(WORKLOADS[name])
        assert (option, byte_size) == ("--output-shared-memory-size", str(room))


def test_a_second_server_is_compared_in_shared_memory_only() -> None:
    second = analysis_cases(is_first=False)
    assert [str(case) for case in second] == ["16 unary, shared memory", "1 unary, shared memory"]
    assert len(analysis_cases(is_first=True)) == 6 + len(second)
