"""Which set-up is measured in the open loop."""

from pathlib import Path

from benchmarks.h2load import MANY_CALLERS, ONE_CALLER
from benchmarks.measure import Figures
from benchmarks.peers.mosec import Mosec
from benchmarks.peers.setup import Setup
from benchmarks.peers.tideserve import Tideserve
from benchmarks.rounds import Case, Entry, best_setups
from benchmarks.workloads import IDENTITY

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
