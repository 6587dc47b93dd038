"""What a run keeps, and which set-up is measured in the open loop."""

from pathlib import Path

import pytest

from benchmarks import rounds
from benchmarks.errors import ServerFailedError
from benchmarks.h2load import MANY_CALLERS, ONE_CALLER
from benchmarks.measure import Figures
from benchmarks.peers.mosec import Mosec
from benchmarks.peers.peer import Peer
from benchmarks.peers.setup import Setup
from benchmarks.peers.tideserve import Tideserve
from benchmarks.rounds import Case, Entry, Run, best_setups
from benchmarks.workloads import IDENTITY, Workload

BOTH = [ONE_CALLER, MANY_CALLERS]
FOLDER = Path("unused")
SLOW, FAST = Tideserve(Setup(1, 0), FOLDER), Tideserve(Setup(1, 1000), FOLDER)
MOSEC = Mosec(Setup(1, 1000), FOLDER)
ENTRY = Entry(IDENTITY, [(FAST, BOTH), (SLOW, BOTH), (MOSEC, BOTH)], ort_processes=[])


def figures(requests_per_s: float) -> list[Figures]:
    return [Figures(requests_per_s, 1.0, 2.0, None, 10.0, 100.0, requests=1000, checked=10)]


def test_it_is_the_best_of_each_kind_with_the_most_callers() -> None:
    measured = {
        Case("identity", 64, SLOW.name): figures(100.0),
        Case("identity", 64, FAST.name): figures(200.0),
        Case("identity", 1, SLOW.name): figures(900.0),
    }
    assert [peer for peer, _ in best_setups(ENTRY, measured)] == [FAST, MOSEC]


def test_it_is_the_last_of_each_kind_where_nothing_is_measured() -> None:
    assert [peer for peer, _ in best_setups(ENTRY, {})] == [SLOW, MOSEC]


class Failing(Tideserve):
    """Never starts."""

    def start(self, workload: Workload) -> None:
        raise ServerFailedError("no room")


def test_a_server_that_fails_is_named_and_the_next_has_its_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = Failing(Setup(1, 0), FOLDER), Tideserve(Setup(2, 0), FOLDER)
    monkeypatch.setattr(second, "start", lambda _: None)
    monkeypatch.setattr(rounds, "measure", lambda *_: figures(100.0)[0])
    run = Run(1.0, lambda _: None)
    run.closed([Entry(IDENTITY, [(first, BOTH), (second, BOTH)], ort_processes=[])], rounds=1)
    assert run.failures == [f"identity, {first.name}: no room"]
    assert [(case.peer, case.callers) for case in run.measured] == [
        (second.name, 1),
        (second.name, 64),
    ]


def test_an_open_loop_is_a_share_of_what_was_measured_right_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []

    def measure_open(peer: Peer, workload: Workload, rate: float, *_: object) -> Figures:
        rates.append(rate)
        return figures(rate)[0]

    monkeypatch.setattr(FAST, "start", lambda _: None)
    monkeypatch.setattr(rounds, "measure_capacity", lambda *_: 1000.0)
    monkeypatch.setattr(rounds, "measure_open", measure_open)
    run = Run(1.0, lambda _: None)
    run.open([Entry(IDENTITY, [(FAST, BOTH)], ort_processes=[])], [50, 95], rounds=1)
    assert rates == [500.0, 950.0]
    assert [case.open_percent for case in run.measured] == [50, 95]
