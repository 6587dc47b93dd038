from dataclasses import replace

import pytest

from tests.autoscaler.world import DIGITS, World, names
from tideserve.autoscaler.core.actions import Announce, Drain, Kill, Report, Start
from tideserve.autoscaler.core.fleet import (
    Instance,
    Model,
    ModelKey,
    Replica,
    ReplicaState,
)
from tideserve.autoscaler.core.settings import Device
from tideserve.autoscaler.core.state import Rules


def started(count: int = 1) -> tuple[World, list[str]]:
    """A world with that many READY replicas."""
    world = World(desired={DIGITS: count})
    ids = names(world.step(), Start)
    world.ready()
    assert world.step(0.1) == []
    return world, ids


def test_missing_replicas_are_started_with_numbers_from_zero() -> None:
    actions = World(desired={DIGITS: 3}).step()
    assert [type(action) for action in actions] == [Start, Start, Start]
    assert [name.rsplit("-", 1)[0] for name in names(actions, Start)] == [
        "digits-1-0",
        "digits-1-1",
        "digits-1-2",
    ]


def test_what_is_starting_counts_as_capacity() -> None:
    world = World(desired={DIGITS: 2})
    assert len(world.step()) == 2
    assert world.step(1.0) == []


def test_a_started_replica_that_no_snapshot_shows_yet_counts_as_capacity() -> None:
    world = World()
    world.step()
    world.replicas.clear()
    assert world.step(0.1) == []


def test_without_a_snapshot_nothing_changes() -> None:
    world, (replica_id,) = started()
    world.end(replica_id)
    world.away = True
    before = world.state
    assert world.step(100.0) == []
    assert world.state is before


def test_a_lost_replica_that_had_been_ready_is_killed_and_replaced_in_one_pass() -> None:
    world, (replica_id,) = started()
    world.lose(replica_id)
    actions = world.step()
    assert names(actions, Kill) == [replica_id]
    assert len(names(actions, Start)) == 1
    (report,) = world.step(0.01)
    assert isinstance(report, Report)
    assert report.failed_starts == 0
    assert report.cause == "killed by SIGKILL (the frontend lost it)"


def test_a_dead_replica_is_reported_with_its_log_and_replaced_at_once() -> None:
    world, (replica_id,) = started()
    world.end(replica_id, "killed by SIGSEGV", "last words")
    report, start = world.step()
    assert report == Report(replica_id, "killed by SIGSEGV", ("last words",))
    assert isinstance(start, Start)
    assert start.replica_id != replica_id


def test_a_dead_ready_replica_waits_a_moment_for_the_frontends_word_on_the_cause() -> None:
    world, (replica_id,) = started()
    world.end(replica_id)
    world.ready(replica_id)  # the frontend has not noticed
    assert world.step(0.1) == []
    world.lose(replica_id, attributed=True)
    assert names(world.step(0.1), Start) == []
    assert len(names(world.step(0.5), Start)) == 1


def test_a_dead_ready_replica_is_replaced_though_the_frontend_never_notices() -> None:
    world, (replica_id,) = started()
    world.end(replica_id)
    world.ready(replica_id)
    assert world.step(0.1) == []
    assert len(names(world.step(1.0), Start)) == 1


@pytest.mark.parametrize("failures", [1, 2, 3, 4])
def test_failed_starts_back_off_doubling_from_half_a_second(failures: int) -> None:
    world = World()
    for number in range(1, failures + 1):
        (replica_id,) = names(world.step(), Start)
        world.end(replica_id)
        (report,) = world.step(0.1)
        assert isinstance(report, Report)
        assert (report.failed_starts, report.give_up_reason) == (number, "")
        assert world.step(0.5 * 2 ** (number - 1) - 0.01) == []
        world.now_s += 0.02
    assert len(names(world.step(), Start)) == 1


def test_the_fifth_failure_in_a_row_gives_the_version_up_and_says_why() -> None:
    world = World()
    for _ in range(5):
        (replica_id,) = names(world.step(40.0), Start)
        world.end(replica_id, "exit code 3", "Traceback", "ValueError: no weights", "")
        (report,) = world.step(0.1)
    assert isinstance(report, Report)
    assert report.failed_starts == 5
    assert report.give_up_reason == (
        "replicas of model 'digits' version 1 failed 5 times in a row, the last one with exit "
        "code 3; the last line of its log: ValueError: no weights; the next try is in 60 s or "
        "when its files change"
    )
    assert world.step(59.0) == []
    assert len(names(world.step(1.1), Start)) == 1


def test_a_new_generation_of_the_files_is_tried_at_once() -> None:
    world = World()
    for _ in range(5):
        (replica_id,) = names(world.step(40.0), Start)
        world.end(replica_id)
        world.step(0.1)
    newer = replace(DIGITS, generation="g2")
    world.models = {newer: Model(newer)}
    world.desired = {newer: 1}
    (start,) = world.step(0.1)
    assert isinstance(start, Start)
    assert start.key == newer
    assert DIGITS not in world.state.failures


def test_while_a_version_fails_one_replica_at_a_time_is_tried() -> None:
    world = World(desired={DIGITS: 8})
    for replica_id in names(world.step(), Start):
        world.end(replica_id)
    reports = world.step(0.1)
    assert {report.failed_starts for report in reports if isinstance(report, Report)} == {1}
    assert len(names(world.step(0.5), Start)) == 1
    assert world.step(5.0) == []


def test_a_ready_replica_ends_the_failures_and_the_rest_is_started() -> None:
    world = World(desired={DIGITS: 3})
    for replica_id in names(world.step(), Start):
        world.end(replica_id)
    world.step(0.1)
    (probe,) = names(world.step(0.5), Start)
    world.ready(probe)
    assert len(names(world.step(0.1), Start)) == 2


def test_a_version_with_a_serving_replica_is_not_called_unavailable() -> None:
    world = World(desired={DIGITS: 2})
    good, bad = names(world.step(), Start)
    world.ready(good)
    world.end(bad)
    reasons = []
    for _ in range(12):
        for action in world.step(61.0):
            if isinstance(action, Report):
                reasons.append(action.give_up_reason)
            if isinstance(action, Start):
                world.end(action.replica_id)
    assert len(reasons) >= 5
    assert set(reasons) == {""}


def test_deaths_laid_to_requests_back_off_though_each_replica_was_ready() -> None:
    world, (replica_id,) = started()
    waits = []
    for _ in range(4):
        world.end(replica_id, "killed by SIGKILL")
        world.lose(replica_id, attributed=True)
        (report,) = world.step()
        assert isinstance(report, Report)
        assert (report.failed_starts, report.give_up_reason) == (0, "")
        died_s = world.now_s
        while not (starts := names(world.step(0.05), Start)):
            continue
        waits.append(round(world.now_s - died_s, 1))
        (replica_id,) = starts
        world.ready(replica_id)
        world.step(0.1)
    assert waits == [0.5, 1.0, 2.0, 4.0]
    world.lose(replica_id, attributed=True)
    world.step()
    (last,) = world.step(0.1)
    assert isinstance(last, Report)
    assert last.give_up_reason.startswith("replicas of model 'digits' version 1 failed 5 times")


def test_a_replica_that_stays_ready_ends_the_count_of_attributed_deaths() -> None:
    world, (replica_id,) = started()
    world.lose(replica_id, attributed=True)
    world.step()
    world.step(0.1)
    (next_id,) = names(world.step(0.5), Start)
    world.ready(next_id)
    world.step(1.0)
    assert world.state.failures[DIGITS].count == 1
    world.set(next_id, ReplicaState.READY, was_ready=True, state_age_s=10.0)
    world.step(9.0)
    assert DIGITS not in world.state.failures


def test_a_replica_not_ready_in_time_is_killed_and_counts_as_a_failed_start() -> None:
    world = World(rules=Rules(start_timeout_s=20.0))
    (replica_id,) = names(world.step(), Start)
    assert world.step(19.9) == []
    (kill,) = world.step(0.2)
    assert kill == Kill(replica_id, "it was not READY within 20 s")
    (report,) = world.step(0.1)
    assert isinstance(report, Report)
    assert report.failed_starts == 1
    assert report.cause == "killed by SIGKILL (it was not READY within 20 s)"


def test_a_kill_without_effect_is_repeated() -> None:
    world, (replica_id,) = started()
    world.lose(replica_id)
    world.step()
    world.instances[replica_id] = replace(world.instances[replica_id], exit=None)
    assert names(world.step(4.9), Kill) == []
    assert names(world.step(0.2), Kill) == [replica_id]


def test_a_version_no_longer_wanted_is_drained_and_never_started() -> None:
    world, ids = started(2)
    world.models = {DIGITS: Model(DIGITS, wanted=False)}
    actions = world.step()
    assert sorted(names(actions, Drain)) == ids
    assert len(actions) == 2
    for replica_id in ids:
        world.end(replica_id, "exit code 0")
    assert sorted(names(world.step(1.0), Report)) == ids
    assert world.step(1.0) == []


def test_scaling_down_drains_the_highest_numbered_idle_replica() -> None:
    world, ids = started(3)
    world.set(ids[2], ReplicaState.READY, leases=1)
    world.desired = {DIGITS: 2}
    assert names(world.step(), Drain) == [ids[1]]
    assert world.step(0.1) == []


def test_scaling_down_drains_one_that_starts_before_any_ready_one() -> None:
    world, ids = started(2)
    world.desired = {DIGITS: 3}
    (starting,) = names(world.step(), Start)
    world.desired = {DIGITS: 2}
    assert names(world.step(), Drain) == [starting]
    assert starting not in ids


def test_a_drained_replica_that_leaves_is_no_failure() -> None:
    world, ids = started(2)
    world.desired = {DIGITS: 1}
    world.step()
    world.end(ids[1], "exit code 0")
    (report,) = world.step(0.1)
    assert report == Report(ids[1], "exit code 0")
    assert world.state.failures == {}


def test_a_replica_that_drains_too_long_is_killed() -> None:
    world, (replica_id,) = started()
    world.desired = {}
    world.step()
    assert world.step(29.0) == []
    (kill,) = world.step(1.5)
    assert kill == Kill(replica_id, "it did not leave within 30 s of its drain")


def test_a_drain_that_the_frontend_missed_is_repeated() -> None:
    world, (replica_id,) = started()
    world.desired = {}
    world.step()
    world.ready(replica_id)
    assert world.step(0.5) == []
    assert names(world.step(0.6), Drain) == [replica_id]


def test_a_running_replica_unknown_to_the_frontend_is_announced_and_counts() -> None:
    world = World()
    world.instances["old"] = Instance("old", DIGITS)
    (announce,) = world.step()
    assert isinstance(announce, Announce)
    assert (announce.replica_id, announce.key) == ("old", DIGITS)
    assert world.step(0.1) == []


def test_after_a_restart_of_the_frontend_every_replica_is_announced_again() -> None:
    world, ids = started(2)
    world.epoch = 2
    world.replicas.clear()
    actions = world.step(2.0)
    assert names(actions, Announce) == ids
    assert len(actions) == 2


def test_an_announcement_that_was_lost_is_repeated() -> None:
    world = World()
    world.instances["old"] = Instance("old", DIGITS)
    world.step()
    world.replicas.clear()
    assert world.step(0.5) == []
    assert names(world.step(0.6), Announce) == ["old"]


def test_a_replica_that_left_the_frontend_is_not_announced_again_but_replaced() -> None:
    world, (replica_id,) = started()
    world.replicas.clear()
    actions = world.step(0.1)
    assert names(actions, Announce) == []
    assert len(names(actions, Start)) == 1
    assert names(world.step(5.0), Kill) == [replica_id]


def test_an_adopted_replica_of_an_unknown_model_is_killed_only_after_a_while() -> None:
    world = World()
    stray = ModelKey("gone", 1, "g")
    world.instances["stray"] = Instance("stray", stray)
    assert names(world.step(), Kill) == []
    assert names(world.step(5.1), Kill) == ["stray"]


def test_an_announced_replica_that_no_launcher_has_is_reported_and_replaced() -> None:
    world = World()
    world.replicas["ghost"] = Replica("ghost", DIGITS, ReplicaState.STARTING)
    assert world.step() == []
    report, start = world.step(5.1)
    assert isinstance(report, Report)
    assert report.replica_id == "ghost"
    assert report.failed_starts == 0
    assert isinstance(start, Start)


def test_an_announced_standby_that_no_launcher_has_does_not_drain_for_ever() -> None:
    """The autoscaler was killed between the two: the frontend lists no device of it."""
    world, _ = started()
    world.replicas["ghost"] = Replica("ghost", None, ReplicaState.STARTING, device="")
    assert names(world.step(), Drain) == ["ghost"]
    world.replicas["ghost"] = replace(world.replicas["ghost"], state=ReplicaState.DRAINING, pid=0)
    assert world.step(4.0) == []
    assert names(world.step(1.1), Report) == ["ghost"]


def test_a_lost_replica_of_an_earlier_autoscaler_is_reported_not_killed() -> None:
    world = World()
    world.replicas["dead"] = Replica("dead", DIGITS, ReplicaState.LOST, was_ready=True)
    report, start = world.step()
    assert isinstance(report, Report)
    assert report.replica_id == "dead"
    assert isinstance(start, Start)


def test_a_stopping_frontend_gets_no_new_replicas_and_no_drains() -> None:
    world, ids = started(2)
    world.stopping = True
    world.desired = {DIGITS: 1}
    assert world.step() == []
    world.end(ids[0], "exit code 0")
    world.desired = {DIGITS: 5}
    (report,) = world.step()
    assert isinstance(report, Report)
    assert world.state.failures == {}


def test_a_standby_that_is_wanted_is_left_alone_and_one_that_is_not_drained() -> None:
    world, _ = started()
    world.rules = Rules(standby=1)
    world.replicas["spare"] = Replica("spare", None, ReplicaState.STANDBY, pid=9)
    assert world.step(1000.0) == []
    world.rules = Rules(standby=0)
    assert names(world.step(), Drain) == ["spare"]


def test_a_report_the_frontend_did_not_take_is_given_again() -> None:
    world, (replica_id,) = started()
    world.end(replica_id)
    first = world.step()[0]
    world.instances[replica_id] = Instance(replica_id, DIGITS, exit=None)
    world.end(replica_id)
    assert names(world.step(0.5), Report) == []
    (again,) = [action for action in world.step(0.6) if isinstance(action, Report)]
    assert isinstance(first, Report)
    assert again.failed_starts == first.failed_starts


def test_a_number_is_used_again_but_never_a_name() -> None:
    world, ids = started(2)
    world.end(ids[0])
    (start,) = [action for action in world.step() if isinstance(action, Start)]
    assert start.replica_id.startswith("digits-1-0-")
    assert start.replica_id not in ids


def test_replicas_take_turns_on_devices() -> None:
    world = World(desired={DIGITS: 3}, rules=Rules(devices=(Device("gpu:0"), Device("gpu:1"))))
    devices = [action.device for action in world.step() if isinstance(action, Start)]
    assert devices == ["gpu:0", "gpu:1", "gpu:0"]


def test_records_of_replicas_that_are_gone_are_forgotten() -> None:
    world, (replica_id,) = started()
    world.end(replica_id)
    world.step()
    world.step(0.1)
    assert replica_id not in world.state.records


@pytest.mark.parametrize("age_s", [1.0, 10.0, 500.0])
def test_a_restarted_frontend_is_told_of_replicas_of_any_age_and_none_is_killed(
    age_s: float,
) -> None:
    world, ids = started(2)
    world.step(age_s)
    world.replicas.clear()
    world.epoch += 1
    actions = world.step(0.1)
    assert names(actions, Announce) == ids
    assert names(actions, Kill) == []
    world.ready()
    assert world.step(200.0) == []


def test_a_restarted_frontend_without_models_yet_kills_nobody_at_once() -> None:
    world, ids = started(2)
    world.step(500.0)
    models, world.models = world.models, {}
    world.replicas.clear()
    world.epoch += 1
    assert world.step(0.1) == []
    world.models = models
    assert names(world.step(1.0), Announce) == ids


def test_s4_one_that_drains_is_not_killed_while_it_holds_a_lease() -> None:
    world, (replica_id,) = started(1)
    world.desired[DIGITS] = 0
    assert names(world.step(), Drain) == [replica_id]
    world.set(replica_id, ReplicaState.DRAINING, leases=1)
    assert names(world.step(1000.0), Kill) == []
    world.set(replica_id, ReplicaState.DRAINING, leases=0)
    assert names(world.step(1.0), Kill) == [replica_id]
