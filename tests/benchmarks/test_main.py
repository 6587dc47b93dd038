"""The command line says what it expects."""

import pytest

from benchmarks.__main__ import entry, main, parse
from benchmarks.workloads import CONVOLUTIONAL, IDENTITY, Workload


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--peers", "tideserve,nuclio"], "expected some of tideserve, triton, mosec, grpcio, ort"),
        (["--callers", "64,7"], "--callers: expected some of [1, 16, 64], got [7]"),
        (["--rounds", "0"], "expected 1 or more, got 0"),
        (["--seconds", "nan"], "expected more than 0, got nan"),
        (["--triton", "2"], "expected INSTANCES:QUEUE_DELAY_US, got '2'"),
        (["--triton", "0:100"], "expected INSTANCES:QUEUE_DELAY_US, got '0:100'"),
        (["--workloads", "resnet"], "expected some of identity, tensor_600k, convolutional"),
    ],
)
def test_a_bad_option_is_refused(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


@pytest.mark.parametrize("workload", [IDENTITY, CONVOLUTIONAL])
def test_a_lone_caller_meets_no_delay_unless_it_is_asked_for(workload: Workload) -> None:
    options = parse(["--peers", "tideserve,ort", "--callers", "64,1"])
    for peer, callers in entry(workload, options).peers:
        expected = [64, 1] if ", 0 us delay" in peer.name else [64]
        assert [group.count for group in callers] == expected
    options = parse(["--peers", "tideserve", "--callers", "64,1", "--tideserve", "3:500"])
    ((peer, callers),) = entry(workload, options).peers
    assert peer.name.startswith("Tideserve")  # compiled, or from the sources
    assert peer.name.endswith(", 3 replicas, 500 us delay")
    assert [group.count for group in callers] == [64, 1]


def test_bare_processes_are_as_many_as_the_instances_of_the_servers() -> None:
    options = parse(["--peers", "tideserve,triton,ort", "--tideserve", "3:0", "--triton", "2:0"])
    assert entry(CONVOLUTIONAL, options).ort_processes == [2, 3]


def test_the_echo_is_left_to_models_that_cost_nothing() -> None:
    options = parse(["--peers", "grpcio"])
    assert entry(CONVOLUTIONAL, options).peers == []
    assert len(entry(IDENTITY, options).peers) == 1
