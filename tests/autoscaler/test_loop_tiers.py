"""The loop over fakes: standbys, prepared instances, decisions told, reconfiguring, dry runs."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import pytest

from tests.autoscaler.fake_fleet import DIGITS, Fleet, Time
from tideserve.autoscaler.core.actions import Action, Assign, Start
from tideserve.autoscaler.core.decision import Decision, Policy
from tideserve.autoscaler.core.fixed import FixedCount
from tideserve.autoscaler.core.fleet import ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.core.settings import Device
from tideserve.autoscaler.core.state import Rules
from tideserve.autoscaler.errors import CallRefusedError, FrontendUnavailableError, LaunchError
from tideserve.autoscaler.launchers import Handle, ReplicaSpec
from tideserve.autoscaler.loop import Ending, Loop, LoopSettings
from tideserve.autoscaler.wake import Wake

Change = tuple[Policy, Rules] | None


class PreparingFleet(Fleet):
    """Its launcher has the tier of prepared instances."""

    def prepare(self, spec: ReplicaSpec) -> Handle:
        if self.launch_error:
            raise LaunchError(self.launch_error)
        self.calls.append(f"prepare {spec.replica_id}")
        handle = Handle(spec.replica_id, None, spec.device, "made", prepared=True)
        self.handles[spec.replica_id] = handle
        return handle


class WarmingFleet(Fleet):
    """Its launcher is not ready for starts until the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.is_warm = False
        self.asked: list[frozenset[str]] = []

    def warm(self, backends: frozenset[str]) -> bool:
        self.asked.append(backends)
        return self.is_warm


class Notes:
    """A journal."""

    def __init__(self) -> None:
        self.actions: list[list[Action]] = []

    def record(
        self,
        now_s: float,
        snapshot: Snapshot,
        sample: Sample,
        decisions: Mapping[ModelKey, Decision],
        actions: Sequence[Action],
    ) -> None:
        assert decisions.keys() == {DIGITS}
        self.actions.append(list(actions))


def loop_of(
    fleet: Fleet,
    clock: Time,
    rules: Rules,
    count: int = 1,
    *,
    notes: Notes | None = None,
    changes: Callable[[], Change] = lambda: None,
    dry_run: bool = False,
    named: Callable[[], frozenset[str]] = frozenset,
) -> Loop:
    settings = LoopSettings("127.0.0.1:1", "token", tick_s=0.0, rules=rules, dry_run=dry_run)
    return Loop(
        fleet,
        fleet,
        fleet,
        fleet,
        FixedCount(count),
        settings,
        Wake(),
        life=1,
        journal=notes,
        changes=changes,
        named=named,
        clock=clock,
    )


# --- standbys ---------------------------------------------------------------------------------


def test_a_standby_is_announced_without_a_model_and_assigned_when_one_is_needed() -> None:
    fleet, clock = Fleet(), Time()
    changed: list[Change] = [None, (FixedCount(2), Rules(standby=1))]
    loop = loop_of(
        fleet, clock, Rules(standby=1), changes=lambda: changed.pop(0) if changed else None
    )
    loop.step()
    model, spare = fleet.handles
    assert [spec.key for spec in fleet.specs] == [DIGITS, None]
    assert fleet.replicas[spare].key is None
    fleet.calls.clear()
    loop.step()
    assert fleet.calls[0] == f"assign {spare} digits"
    assert fleet.replicas[spare].key == DIGITS
    assert fleet.replicas[model].key == DIGITS
    assert fleet.specs[-1].key is None, "another standby takes its place"


def test_a_refused_assignment_comes_again() -> None:
    fleet, clock = Fleet(), Time()
    changed: list[Change] = [None, (FixedCount(2), Rules(standby=1))]
    loop = loop_of(
        fleet, clock, Rules(standby=1), changes=lambda: changed.pop(0) if changed else None
    )
    loop.step()
    fleet.errors["assign"] = CallRefusedError("not now")
    loop.step()
    fleet.errors.clear()
    clock.now_s = 1.1
    loop.step()
    assert sum(line.startswith("assign") for line in fleet.calls) == 1


# --- prepared ---------------------------------------------------------------------------------


def test_a_prepared_instance_is_made_and_then_started_under_its_name() -> None:
    fleet, clock = PreparingFleet(), Time()
    changed: list[Change] = [None, (FixedCount(1), Rules(prepared=1))]
    loop = loop_of(
        fleet, clock, Rules(prepared=1), 0, changes=lambda: changed.pop(0) if changed else None
    )
    loop.step()
    (made,) = fleet.handles
    assert fleet.calls == [f"prepare {made}"]
    loop.step()
    assert fleet.calls[1:3] == [f"announce {made}", f"start {made}"]
    assert fleet.specs[-1].key == DIGITS


def test_a_prepared_instance_that_cannot_be_started_is_tried_once_and_removed() -> None:
    fleet, clock = PreparingFleet(), Time()
    changed: list[Change] = [None, (FixedCount(1), Rules(prepared=1))]
    loop = loop_of(
        fleet, clock, Rules(prepared=1), 0, changes=lambda: changed.pop(0) if changed else None
    )
    loop.step()
    (made,) = fleet.handles
    fleet.launch_error = "the engine is away"
    for now_s in (0.0, 1.0, 2.1):
        clock.now_s = now_s
        loop.step()
    assert [report.replica_id for report in fleet.reports] == [made]
    assert fleet.calls.count(f"announce {made}") == 1


def test_a_stop_leaves_nothing_prepared_even_without_a_frontend() -> None:
    fleet, clock = PreparingFleet(), Time(step_s=0.1)
    loop = loop_of(fleet, clock, Rules(prepared=1), 0)
    loop.step()
    (made,) = fleet.handles
    fleet.away = True
    loop.stop()
    assert loop.run() is Ending.STOPPED
    assert f"kill {made}" in fleet.calls


def test_a_launcher_without_that_tier_prepares_nothing_and_it_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet, clock = Fleet(), Time(step_s=2.0)
    loop = loop_of(fleet, clock, Rules(prepared=1), 0)
    for _ in range(3):
        loop.step()
    assert fleet.calls == []
    assert sum("is ignored" in message for message in caplog.messages) == 1


def test_a_failed_preparation_is_told_once_and_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fleet, clock = PreparingFleet(), Time(step_s=2.0)
    fleet.launch_error = "no such image"
    loop = loop_of(fleet, clock, Rules(prepared=1), 0)
    for _ in range(3):
        loop.step()
    assert sum("no such image" in message for message in caplog.messages) == 1
    fleet.launch_error = ""
    loop.step()
    assert len(fleet.handles) == 1


# --- room -------------------------------------------------------------------------------------


def test_what_waits_for_room_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fleet, clock = Fleet(), Time(step_s=1.0)
    loop = loop_of(fleet, clock, Rules(devices=(Device(slots=1),)), 3)
    for _ in range(3):
        loop.step()
    told = [message for message in caplog.messages if "waits for room" in message]
    assert told == [
        (
            "0 replicas of model 'digits' version 1, 3 desired: "
            "the next start waits for room on a device"
        )
    ]
    assert len(fleet.handles) == 1


def test_replicas_take_the_cpu_sets_that_the_fewest_have() -> None:
    fleet, clock = Fleet(), Time()
    sets = (frozenset({0, 1}), frozenset({2, 3}))
    rules = Rules(devices=(Device(slots=8, cores=sets),), standby=1)
    loop = loop_of(fleet, clock, rules, 2)
    loop.step()
    assert [spec.cores for spec in fleet.specs] == [sets[0], sets[1], sets[0]]
    second = fleet.specs[1].replica_id
    fleet.end(second, "exit code 1")
    loop.step()
    assert fleet.specs[-1].cores == sets[1]


def test_nothing_is_announced_before_the_launcher_is_warm() -> None:
    fleet, clock = WarmingFleet(), Time()
    notes = Notes()
    loop = loop_of(fleet, clock, Rules(), notes=notes)
    loop.step()
    assert fleet.calls == []
    assert fleet.asked[0] == frozenset({"pytorch"})
    assert notes.actions == [[]]
    fleet.is_warm = True
    loop.step()
    assert [line.split()[0] for line in fleet.calls] == ["announce", "start"]
    assert [type(action) for action in notes.actions[1]] == [Start]


def test_a_launcher_is_warmed_before_any_replica_is_desired() -> None:
    fleet = WarmingFleet()
    loop_of(fleet, Time(), Rules(), 0).step()
    assert fleet.asked == [frozenset({"pytorch"})]


# --- what is told -----------------------------------------------------------------------------


def test_decisions_are_reported_when_they_change_and_every_two_seconds() -> None:
    fleet, clock = Fleet(), Time()
    changed: list[Change] = []
    loop = loop_of(fleet, clock, Rules(), changes=lambda: changed.pop() if changed else None)
    for now_s in (0.0, 0.5, 1.9):
        clock.now_s = now_s
        loop.step()
    assert fleet.decisions == [{"digits": 1}]
    clock.now_s = 2.0
    loop.step()
    assert fleet.decisions == [{"digits": 1}] * 2
    clock.now_s = 2.1
    changed.append((FixedCount(3), Rules()))
    loop.step()
    assert fleet.decisions[2:] == [{"digits": 3}]


@pytest.mark.parametrize("error", [CallRefusedError("none"), FrontendUnavailableError("gone")])
def test_decisions_that_cannot_be_reported_disturb_nothing(error: Exception) -> None:
    fleet, clock = Fleet(), Time()
    assert isinstance(error, CallRefusedError | FrontendUnavailableError)
    fleet.errors["decisions"] = error
    loop_of(fleet, clock, Rules()).step()
    assert len(fleet.handles) == 1


def test_the_journal_hears_of_every_look_and_of_what_was_carried_out() -> None:
    fleet, clock, notes = Fleet(), Time(), Notes()
    loop = loop_of(fleet, clock, Rules(standby=1), 0, notes=notes)
    loop.step()
    loop.step()
    fleet.away = True
    loop.step()
    fleet.away = False
    loop._policy = FixedCount(1)
    fleet.errors["assign"] = CallRefusedError("not now")
    loop.step()
    kinds = [[type(action) for action in actions] for actions in notes.actions]
    assert kinds == [[Start], [], [Start]], "the refused assignment is not among them"
    fleet.errors.clear()
    clock.now_s = 1.1
    loop.step()
    assert [type(action) for action in notes.actions[-1]] == [Assign]


# --- changed while it runs --------------------------------------------------------------------


def test_another_policy_and_other_rules_take_effect_at_the_next_look() -> None:
    fleet, clock = Fleet(), Time()
    changed: list[Change] = []
    loop = loop_of(fleet, clock, Rules(), changes=lambda: changed.pop() if changed else None)
    loop.step()
    changed.append((FixedCount(4), Rules(devices=(Device(slots=3, threads=7),))))
    loop.step()
    assert len(fleet.handles) == 3
    assert fleet.specs[-1].threads == 7
    loop.step()
    assert len(fleet.handles) == 3


def test_a_name_that_no_model_has_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    names = frozenset({"digits", "digit"})
    loop = loop_of(Fleet(), Time(), Rules(), named=lambda: names)
    loop.step()
    loop.step()
    told = [text for text in caplog.messages if text.startswith("models.")]
    assert told == ["models.digit: the frontend serves no model of that name; there are: digits"]


def test_a_dry_run_decides_and_tells_and_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    fleet, clock, notes = Fleet(), Time(), Notes()
    loop_of(fleet, clock, Rules(standby=1), 2, notes=notes, dry_run=True).step()
    assert (fleet.calls, fleet.decisions, notes.actions) == ([], [], [])
    assert "model 'digits' version 1: desired 2: fixed: a count of 2" in caplog.messages


def test_a_standby_that_is_lost_is_killed_and_replaced_as_a_standby() -> None:
    fleet, clock = Fleet(), Time()
    loop = loop_of(fleet, clock, Rules(standby=1), 0)
    loop.step()
    loop.step()
    (spare,) = fleet.handles
    fleet.end(spare, "killed by SIGKILL")
    fleet.replicas[spare] = replace(fleet.replicas[spare], reason="its life line broke")
    loop.step()
    (report,) = fleet.reports
    assert (report.replica_id, report.failed_starts) == (spare, 0)
    (fresh,) = fleet.handles
    assert fleet.replicas[fresh].key is None
