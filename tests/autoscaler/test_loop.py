"""The loop over fakes: a table for a frontend, a table for a launcher, no time but ours."""

import logging
from dataclasses import replace

import pytest

from tests.autoscaler.fake_fleet import DIGITS, Fleet, Time
from tideserve.autoscaler.core.actions import Report
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.fixed import FixedCount
from tideserve.autoscaler.core.fleet import Exit, ReplicaState
from tideserve.autoscaler.core.settings import Device, ModelPolicy, ScalingSettings
from tideserve.autoscaler.core.state import Rules
from tideserve.autoscaler.errors import (
    CallRefusedError,
    FrontendRefusedError,
    FrontendUnavailableError,
    SupersededError,
)
from tideserve.autoscaler.launchers import Handle, ReplicaSpec
from tideserve.autoscaler.loop import Ending, Loop, LoopSettings
from tideserve.autoscaler.wake import Wake


def loop_of(fleet: Fleet, clock: Time, count: int = 2, *, orphaned: bool = False) -> Loop:
    settings = LoopSettings(
        "127.0.0.1:1",
        "secret-token",
        tick_s=0.0,
        rules=Rules(devices=(Device(slots=64, threads=3),)),
    )
    return Loop(
        fleet,
        fleet,
        fleet,
        fleet,
        FixedCount(count),
        settings,
        Wake(),
        life=1,
        orphaned=lambda: orphaned,
        clock=clock,
    )


def test_replicas_are_announced_together_before_any_is_started() -> None:
    fleet = Fleet()
    loop_of(fleet, Time()).step()
    first, second = fleet.handles
    assert fleet.calls == [f"announce {first},{second}", f"start {first}", f"start {second}"]
    assert fleet.specs[0] == ReplicaSpec(
        first, DIGITS, "127.0.0.1:1", "secret-token", "cpu", 3, frozenset({"pytorch"})
    )


def test_a_dead_replica_is_reported_then_forgotten_and_replaced() -> None:
    fleet, clock = Fleet(), Time()
    loop = loop_of(fleet, clock, count=1)
    loop.step()
    (dead,) = fleet.handles
    fleet.calls.clear()
    fleet.end(dead, "killed by SIGKILL", "last words")
    loop.step()
    (fresh,) = fleet.handles
    assert fleet.calls == [
        f"report {dead}",
        f"forget {dead}",
        f"announce {fresh}",
        f"start {fresh}",
    ]
    assert fleet.reports == [Report(dead, "killed by SIGKILL", ("last words",))]


def test_a_frozen_replica_is_killed() -> None:
    fleet, clock = Fleet(), Time()
    loop = loop_of(fleet, clock, count=1)
    loop.step()
    (frozen,) = fleet.handles
    fleet.replicas[frozen] = replace(
        fleet.replicas[frozen], state=ReplicaState.LOST, reason="no beat for 1 s"
    )
    loop.step()
    assert f"kill {frozen}" in fleet.calls
    loop.step()
    assert fleet.reports[0].cause == "killed by SIGKILL (the frontend lost it: no beat for 1 s)"


def test_each_action_is_logged_with_its_reason_and_without_the_token(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    loop_of(Fleet(), Time(), count=1).step()
    assert "model 'digits' version 1: desired 1: fixed: a count of 1" in caplog.messages
    assert any(
        message.startswith("start digits-1-0-")
        and message.endswith("pid 1: 0 replicas of model 'digits' version 1, 1 desired")
        for message in caplog.messages
    )
    assert "secret-token" not in caplog.text


def test_nothing_is_started_where_the_announcement_failed() -> None:
    fleet = Fleet()
    loop = loop_of(fleet, Time())
    for error in (FrontendUnavailableError("gone"), CallRefusedError("no such model")):
        fleet.errors["announce"] = error
        loop.step()
        assert fleet.calls == []
    fleet.errors.clear()
    loop.step()
    assert len(fleet.handles) == 2


def test_a_report_that_failed_is_given_again_and_the_replica_not_forgotten_before() -> None:
    fleet, clock = Fleet(), Time(step_s=0.6)
    loop = loop_of(fleet, clock, count=1)
    loop.step()
    (dead,) = fleet.handles
    fleet.end(dead, "exit code 1")
    fleet.errors["report"] = FrontendUnavailableError("gone")
    loop.step()
    assert dead in fleet.handles
    fleet.errors.clear()
    loop.step()
    loop.step()
    assert [report.replica_id for report in fleet.reports] == [dead]
    assert dead not in fleet.handles


def test_one_refused_call_does_not_hold_up_the_rest() -> None:
    fleet = Fleet()
    loop = loop_of(fleet, Time())
    loop.step()
    for name in list(fleet.handles):
        fleet.end(name, "exit code 1")
    fleet.errors["report"] = CallRefusedError("not known")
    loop.step()
    assert len(fleet.handles) == 2
    assert all(handle.exit is None for handle in fleet.handles.values())


def test_a_replica_that_cannot_be_launched_counts_as_a_failed_start() -> None:
    fleet, clock = Fleet(), Time()
    loop = loop_of(fleet, clock, count=1)
    fleet.launch_error = "no room"
    loop.step()
    loop.step()
    assert fleet.reports == []  # the frontend of this test calls every announced one READY
    clock.now_s = 1.1
    loop.step()
    assert fleet.reports[0].cause == "could not be started: no room"


def test_s3_an_engine_that_is_away_is_no_failed_start_however_long() -> None:
    fleet, clock = Fleet(), Time()
    loop = loop_of(fleet, clock, count=2)
    fleet.engine_away, fleet.knows_of_it = True, False
    for _ in range(60):  # 15 s
        clock.now_s += 0.25
        loop.step()
    # It went away under the first start: both that were announced are taken back, once.
    assert [report.failed_starts for report in fleet.reports] == [0, 0]
    assert fleet.reports[0].cause == "not started: the engine does not answer"
    assert fleet.replicas == {}
    fleet.engine_away = False
    clock.now_s += 0.25
    loop.step()
    assert len(fleet.handles) == 2
    assert [report.give_up_reason for report in fleet.reports] == ["", ""]


def test_s3_an_engine_that_answers_and_starts_nothing_backs_off() -> None:
    fleet, clock = Fleet(), Time()
    loop = loop_of(fleet, clock, count=1)
    fleet.engine_away, fleet.ready_at_once = True, False
    for _ in range(240):  # a minute
        clock.now_s += 0.25
        fleet.knows_of_it = False  # it was looked at, and answered
        loop.step()
    announced = sum(line.startswith("announce") for line in fleet.calls)
    assert announced < 12
    assert fleet.reports[-1].failed_starts >= 4


def test_s3_what_ended_before_this_autoscaler_began_is_no_failed_start() -> None:
    fleet = Fleet()
    fleet.handles = {
        name: Handle(name, DIGITS, "cpu", "container", Exit("exit code 0"))
        for name in (f"digits-1-{at}-old" for at in range(5))
    }
    loop = loop_of(fleet, Time(), count=1)
    loop.step()
    assert [report.failed_starts for report in fleet.reports] == [0] * 5
    assert [line for line in fleet.calls if line.startswith("start")]


def test_s1_a_new_policy_beside_a_new_frontend_keeps_what_runs() -> None:
    fleet, clock = Fleet(), Time()
    fleet.handles = {
        name: Handle(name, DIGITS, "cpu", "container")
        for name in (f"digits-1-{at}-old" for at in range(3))
    }
    policy = ElasticPolicy(ScalingSettings(default=ModelPolicy(min_replicas=1, hold_s=300.0)))
    loop = Loop(
        fleet, fleet, fleet, fleet, policy, LoopSettings("", "token"), Wake(), life=2, clock=clock
    )
    for _ in range(40):
        clock.now_s += 0.25
        loop.step()
    assert fleet.decisions[0] == {"digits": 3}
    assert [line.split()[0] for line in fleet.calls] == ["announce"] * 3


def test_while_the_frontend_is_away_nothing_is_done() -> None:
    fleet = Fleet()
    loop = loop_of(fleet, Time())
    loop.step()
    fleet.calls.clear()
    for name in list(fleet.handles):
        fleet.end(name, "exit code 1")
    fleet.away = True
    loop.step()
    assert fleet.calls == []


def test_a_stop_drains_all_and_waits_until_they_are_gone() -> None:
    fleet = Fleet()
    loop = loop_of(fleet, Time())
    loop.step()
    loop.stop()
    assert loop.run() is Ending.STOPPED
    assert sum(line.startswith("drain") for line in fleet.calls) == 2
    assert not any(line.startswith("kill") for line in fleet.calls)
    assert not [handle for handle in fleet.list() if handle.exit is None]


def test_replicas_of_a_stopping_frontend_are_drained_when_the_stop_reaches_the_autoscaler() -> None:
    fleet = Fleet()
    loop = loop_of(fleet, Time())
    loop.step()
    fleet.calls.clear()
    fleet.stopping = True
    loop.step()
    assert fleet.calls == []
    loop.stop()
    assert loop.run() is Ending.STOPPED
    assert sum(line.startswith("drain") for line in fleet.calls) == 2
    assert not any(line.startswith(("kill", "start")) for line in fleet.calls)


def test_a_stop_kills_what_does_not_leave_in_time() -> None:
    fleet, clock = Fleet(), Time(step_s=0.5)
    loop = loop_of(fleet, clock, count=1)
    loop.step()
    fleet.leaves = False
    loop.stop()
    began_s = clock.now_s
    assert loop.run() is Ending.STOPPED
    assert clock.now_s - began_s >= 10.0
    assert sum(line.startswith("kill") for line in fleet.calls) >= 1
    assert not [handle for handle in fleet.list() if handle.exit is None]


def test_a_stop_without_a_frontend_does_not_wait_for_long() -> None:
    fleet, clock = Fleet(), Time(step_s=0.1)
    loop = loop_of(fleet, clock, count=1)
    loop.step()
    fleet.away = True
    loop.stop()
    began_s = clock.now_s
    assert loop.run() is Ending.STOPPED
    assert 1.0 <= clock.now_s - began_s < 2.0
    assert sum(line.startswith("kill") for line in fleet.calls) == 1
    assert fleet.list() == [], "what ended is forgotten though nobody can be told"


def test_a_second_stop_kills_at_once() -> None:
    fleet, clock = Fleet(), Time()
    loop = loop_of(fleet, clock, count=1)
    loop.step()
    loop.stop()
    loop.stop()
    fleet.calls.clear()
    assert loop.run() is Ending.STOPPED
    (name,) = [report.replica_id for report in fleet.reports]
    assert fleet.calls == [f"kill {name}", f"report {name}", f"forget {name}"]


@pytest.mark.parametrize("call", ["report", "drain", "announce"])
def test_a_superseded_autoscaler_leaves_and_kills_nothing(call: str) -> None:
    fleet = Fleet()
    loop = loop_of(fleet, Time(), count=1)
    loop.step()
    fleet.fatal = SupersededError("newer")
    assert loop.run() is Ending.SUPERSEDED
    assert all(handle.exit is None for handle in fleet.list())
    fleet.fatal = None
    fleet.errors[call] = SupersededError("newer")
    if call == "drain":
        loop.stop()
    else:
        fleet.end(next(iter(fleet.handles)), "exit code 1")
    assert loop.run() is Ending.SUPERSEDED
    assert not any(line.startswith("kill") for line in fleet.calls)


def test_an_orphan_leaves_and_its_replicas_stay() -> None:
    fleet = Fleet()
    loop_of(fleet, Time()).step()
    fleet.calls.clear()
    assert loop_of(fleet, Time(), orphaned=True).run() is Ending.ORPHANED
    assert fleet.calls == []


def test_a_frontend_that_refuses_the_token_ends_the_loop_and_no_replica() -> None:
    fleet = Fleet()
    loop = loop_of(fleet, Time())
    loop.step()
    fleet.fatal = FrontendRefusedError("wrong token")
    with pytest.raises(FrontendRefusedError):
        loop.run()
    assert all(handle.exit is None for handle in fleet.list())
