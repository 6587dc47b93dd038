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
        (["--triton", "2"], "expected INSTANCES:QUEUE_DELAY_US[:BUSY_POLL_US], got '2'"),
        (["--triton", "0:100"], "expected INSTANCES:QUEUE_DELAY_US[:BUSY_POLL_US], got '0:100'"),
        (["--tideserve", "1:0:5:5"], "[:BUSY_POLL_US], got '1:0:5:5'"),
        (["--triton", "1:0:100"], "expected no BUSY_POLL_US, got '1:0:100'"),
        (["--workloads", "resnet"], "expected some of identity, tensor_600k, intake_600k"),
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
        expected = [64, 1] if peer.name.endswith(", 0 us delay") else [64]
        if peer.name.endswith(", 0 us delay, 500 us busy poll"):
            expected = [1]
        assert [group.count for group in callers] == expected
    options = parse(["--peers", "tideserve", "--callers", "64,1", "--tideserve", "3:500,1:0:50"])
    (waiting, waiting_callers), (busy, busy_callers) = entry(workload, options).peers
    assert waiting.name.startswith("Tideserve")  # compiled, or from the sources
    assert waiting.name.endswith(", 3 replicas, 500 us delay")
    assert busy.name.endswith(", 1 replica, 0 us delay, 50 us busy poll")
    for callers in (waiting_callers, busy_callers):
        assert [group.count for group in callers] == [64, 1]


def test_a_model_that_computes_needs_its_cores() -> None:
    """The lone callers' set-up is for those that do not."""
    names = {
        workload: [peer.name for peer, _ in entry(workload, parse(["--peers", "tideserve"])).peers]
        for workload in (IDENTITY, CONVOLUTIONAL)
    }
    assert sum("busy poll" in name for name in names[IDENTITY]) == 1
    assert not any("busy poll" in name for name in names[CONVOLUTIONAL])


def test_bare_processes_are_as_many_as_the_instances_of_the_servers() -> None:
    options = parse(["--peers", "tideserve,triton,ort", "--tideserve", "3:0", "--triton", "2:0"])
    assert entry(CONVOLUTIONAL, options).ort_processes == [2, 3]


def test_the_echo_is_left_to_models_that_cost_nothing() -> None:
    options = parse(["--peers", "grpcio"])
    assert entry(CONVOLUTIONAL, options).peers == []
    assert len(entry(IDENTITY, options).peers) == 1
