"""Standbys, prepared instances and slots: where the next replica comes from."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tests.autoscaler.world import DIGITS, World, names
from tideserve.autoscaler.core.actions import Action, Assign, Drain, Kill, Prepare, Report, Start
from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState
from tideserve.autoscaler.core.settings import Device
from tideserve.autoscaler.core.state import Rules

OTHER = ModelKey("other", 1, "g1")


def standing_by(count: int = 1, **rules: int) -> tuple[World, list[str]]:
    """No replica of the model, that many joined standbys."""
    world = World(desired={DIGITS: 0}, rules=Rules(standby=count, **rules))  # type: ignore[arg-type]
    spares = names(world.step(), Start)
    world.stand_by(*spares)
    assert world.step(0.1) == []
    return world, spares


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions]


def test_a_standby_is_given_the_model_and_another_one_takes_its_place() -> None:
    world, (spare,) = standing_by()
    assert spare.startswith("standby-0-")
    world.desired[DIGITS] = 1
    actions = world.step(0.1)
    assert kinds(actions) == ["Assign", "Start"]
    assert names(actions, Assign) == [spare]
    (start,) = [action for action in actions if isinstance(action, Start)]
    assert start.key is None
    assert start.replica_id != spare
    assert world.step(0.1) == []


def test_an_assigned_standby_is_the_model_s_from_then_on() -> None:
    world, (spare,) = standing_by()
    world.desired[DIGITS] = 1
    world.step()
    world.ready(spare)
    world.desired[DIGITS] = 0
    assert names(world.step(1.0), Drain) == [spare]


def test_beyond_the_standbys_new_ones_are_started() -> None:
    world, _ = standing_by()
    world.desired[DIGITS] = 3
    actions = world.step()
    assert kinds(actions) == ["Assign", "Start", "Start", "Start"]
    assert [a.key for a in actions if isinstance(a, Start)] == [DIGITS, DIGITS, None]


def test_a_standby_that_has_not_joined_yet_is_not_given_a_model() -> None:
    world = World(desired={DIGITS: 0}, rules=Rules(standby=1))
    world.step()
    world.desired[DIGITS] = 1
    assert kinds(world.step()) == ["Start"]


def test_an_assignment_without_effect_is_given_again() -> None:
    world, (spare,) = standing_by()
    world.desired[DIGITS] = 1
    world.step()
    world.set(spare, ReplicaState.STANDBY, key=None)
    assert names(world.step(0.5), Assign) == []
    assert names(world.step(0.6), Assign) == [spare]


def test_a_standby_that_dies_is_replaced_at_once_and_no_model_suffers() -> None:
    world, (spare,) = standing_by()
    world.end(spare)
    actions = world.step()
    assert kinds(actions) == ["Report", "Start"]
    assert isinstance(actions[0], Report)
    assert actions[0].failed_starts == 0


def test_standbys_that_cannot_start_back_off_and_models_start_meanwhile() -> None:
    world = World(desired={DIGITS: 0}, rules=Rules(standby=2))
    for spare in names(world.step(), Start):
        world.end(spare)
    assert kinds(world.step()) == ["Report", "Report"]
    world.desired[DIGITS] = 1
    assert [a.key for a in world.step(0.1) if isinstance(a, Start)] == [DIGITS]
    assert [a.key for a in world.step(1.0) if isinstance(a, Start)] == [None]


def test_an_assigned_standby_that_fails_to_load_counts_against_the_model() -> None:
    world, (spare,) = standing_by()
    world.desired[DIGITS] = 1
    world.step()
    world.end(spare)
    (report,) = [action for action in world.step() if isinstance(action, Report)]
    assert report.failed_starts == 1


def test_nothing_desired_leaves_no_standby() -> None:
    world, spares = standing_by(2)
    world.desired.clear()
    assert sorted(names(world.step(), Drain)) == sorted(spares)


def test_a_frontend_that_restarted_learns_the_model_of_an_assigned_standby() -> None:
    world, (spare,) = standing_by()
    world.desired[DIGITS] = 1
    world.step()
    world.ready(spare)
    world.step()
    world.replicas.clear()
    world.epoch += 1
    world.step(2.0)
    assert world.replicas[spare].key == DIGITS


def test_after_both_restarted_one_of_unknown_model_is_announced_as_a_standby() -> None:
    world, (spare,) = standing_by()
    world.state = replace(world.state, records={}, life=8)
    world.replicas.clear()
    world.step(0.1)
    assert world.replicas[spare].key is None


def test_a_standby_is_given_a_model_before_a_surplus_of_them_is_drained() -> None:
    world, spares = standing_by(2)
    world.rules = Rules(standby=0)
    world.desired[DIGITS] = 1
    actions = world.step()
    assert kinds(actions) == ["Assign", "Drain"]
    assert sorted(action.replica_id for action in actions) == sorted(spares)


def test_an_assigned_standby_that_dies_before_the_frontend_says_so_is_nobody_s_failure() -> None:
    world, (spare,) = standing_by()
    world.deaf = True
    world.desired[DIGITS] = 1
    assert names(world.step(), Assign) == [spare]
    world.deaf = False
    world.end(spare)
    actions = world.step()
    (report,) = [action for action in actions if isinstance(action, Report)]
    assert report.failed_starts == 0
    assert DIGITS in [action.key for action in actions if isinstance(action, Start)]


def test_a_standby_that_never_takes_its_model_is_given_up_and_replaced() -> None:
    world, (spare,) = standing_by(start_timeout_s=10)
    world.deaf = True
    world.desired[DIGITS] = 1
    world.stand_by(*names(world.step(), Start))
    for _ in range(9):
        assert names(world.step(1.01), Assign) == [spare]
    world.deaf = False
    assert names(world.step(2.0), Kill) == [spare]
    assert DIGITS in world.state.failures


def test_assigned_standbys_that_do_not_serve_yet_go_first_when_too_many() -> None:
    world, (spare,) = standing_by()
    world.desired[DIGITS] = 2
    started = [a.replica_id for a in world.step() if isinstance(a, Start) and a.key == DIGITS]
    world.ready(*started)
    world.desired[DIGITS] = 1
    assert names(world.step(1.0), Drain) == [spare]


def test_the_standby_on_the_device_with_the_fewest_replicas_is_given_the_model() -> None:
    gpus = (Device("gpu:0", slots=3), Device("gpu:1", slots=3))
    world = World(desired={DIGITS: 1}, rules=Rules(standby=2, devices=gpus))
    by_device = {a.replica_id: a.device for a in world.step() if isinstance(a, Start)}
    assert sorted(by_device.values()) == ["gpu:0", "gpu:0", "gpu:1"]
    world.ready(*[name for name in by_device if name.startswith("digits")])
    world.stand_by(*[name for name in by_device if name.startswith("standby")])
    world.desired[DIGITS] = 2
    (assigned,) = names(world.step(), Assign)
    assert by_device[assigned] == "gpu:1"


def test_a_standby_on_a_device_without_memory_for_the_model_is_passed_over() -> None:
    rules = Rules(
        standby=1,
        devices=(Device("gpu:0", slots=2, memory_bytes=3), Device("gpu:1", slots=2)),
        memory_bytes_of={"digits": 4},
    )
    world = World(desired={DIGITS: 0}, rules=rules)
    (spare,) = [action for action in world.step() if isinstance(action, Start)]
    assert spare.device == "gpu:0"
    world.stand_by(spare.replica_id)
    world.desired[DIGITS] = 1
    (start,) = world.step()
    assert isinstance(start, Start)
    assert (start.key, start.device) == (DIGITS, "gpu:1")


def test_a_standby_on_a_device_that_is_listed_no_more_is_replaced() -> None:
    world, (spare,) = standing_by()
    world.rules = Rules(standby=1, devices=(Device("gpu:0"),))
    actions = world.step()
    assert names(actions, Drain) == [spare]
    assert [a.device for a in actions if isinstance(a, Start)] == ["gpu:0"]


# --- prepared ---------------------------------------------------------------------------------


def test_instances_are_prepared_one_at_a_time_and_started_before_new_ones_are_made() -> None:
    world = World(desired={DIGITS: 0}, rules=Rules(prepared=2))
    first = names(world.step(), Prepare)
    assert names(world.step(0.1), Prepare) == []
    second = names(world.step(1.0), Prepare)
    assert world.step(10.0) == []
    world.desired[DIGITS] = 3
    starts = names(world.step(), Start)
    assert set(starts[:2]) == {*first, *second}
    assert starts[2].startswith("digits-1-")


def test_prepared_instances_that_are_not_wanted_are_removed() -> None:
    world = World(desired={DIGITS: 0}, rules=Rules(prepared=1))
    (name,) = names(world.step(), Prepare)
    world.rules = Rules()
    assert names(world.step(1.0), Kill) == [name]


def test_prepared_instances_on_a_device_that_is_listed_no_more_are_made_anew() -> None:
    world = World(desired={DIGITS: 0}, rules=Rules(prepared=1))
    (name,) = names(world.step(), Prepare)
    world.rules = Rules(prepared=1, devices=(Device("gpu:0"),))
    actions = world.step(1.0)
    assert names(actions, Kill) == [name]
    assert [a.device for a in actions if isinstance(a, Prepare)] == ["gpu:0"]


def test_a_prepared_instance_whose_start_is_not_seen_yet_is_not_started_again() -> None:
    world = World(desired={DIGITS: 0}, rules=Rules(prepared=1))
    (name,) = names(world.step(), Prepare)
    world.desired[DIGITS] = 1
    made = world.instances[name]
    assert names(world.step(), Start) == [name]
    world.instances[name] = made  # the launcher still shows it as it was
    world.desired[DIGITS] = 2
    starts = names(world.step(), Start)
    assert len(starts) == 1
    assert name not in starts


def test_one_that_never_heard_of_its_drain_goes_on_serving_and_is_told_again() -> None:
    world = World(rules=Rules(drain_timeout_s=3.0))
    (name,) = names(world.step(), Start)
    world.ready(name)
    world.deaf = True
    world.desired[DIGITS] = 0
    for _ in range(10):
        assert kinds(world.step(1.01)) == ["Drain"]
    world.deaf = False
    assert kinds(world.step(1.01)) == ["Drain"]
    assert world.step(2.0) == []
    assert names(world.step(2.0), Kill) == [name], "now it has had its time"


# --- slots ------------------------------------------------------------------------------------


def test_what_finds_no_slot_waits_for_one() -> None:
    world = World(desired={DIGITS: 3}, rules=Rules(devices=(Device("cpu", slots=2),)))
    first, _ = names(world.step(), Start)
    assert world.state.waiting == {
        DIGITS: "0 replicas of model 'digits' version 1, 3 desired: "
        "the next start waits for room on a device"
    }
    world.ready()
    assert world.step(1.0) == []
    world.end(first)
    assert len(names(world.step(), Start)) == 1
    world.desired[DIGITS] = 2
    world.step()
    assert world.state.waiting == {}


def test_models_take_the_last_slots_before_standbys_do() -> None:
    rules = Rules(devices=(Device("cpu", slots=2),), standby=2)
    world = World(desired={DIGITS: 1}, rules=rules)
    assert [a.key for a in world.step() if isinstance(a, Start)] == [DIGITS, None]
    assert world.state.waiting.keys() == {None}


def test_a_new_version_may_take_one_slot_more_than_there_are() -> None:
    world = World(desired={DIGITS: 2}, rules=Rules(devices=(Device("cpu", slots=2),)))
    world.step()
    world.ready()
    newer = ModelKey("digits", 1, "g2")
    world.models[newer] = Model(newer)
    world.desired[newer] = 2
    assert [a.key for a in world.step() if isinstance(a, Start)] == [newer]
    assert world.step(0.1) == []


def test_memory_of_a_model_bounds_its_replicas_on_a_device() -> None:
    rules = Rules(
        devices=(
            Device("gpu:0", slots=9, memory_bytes=10),
            Device("gpu:1", slots=9, memory_bytes=5),
        ),
        memory_bytes_of={"digits": 4},
    )
    world = World(desired={DIGITS: 9}, rules=rules)
    devices = [action.device for action in world.step() if isinstance(action, Start)]
    assert sorted(devices) == ["gpu:0", "gpu:0", "gpu:1"]


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(0, 3), st.booleans()),
        max_size=12,
    )
)
def test_s1_no_more_than_desired_and_no_more_than_the_slots_ever_run(
    turns: list[tuple[int, int, int, bool]],
) -> None:
    slots = 4
    world = World(
        models={DIGITS: Model(DIGITS), OTHER: Model(OTHER)},
        desired={},
        rules=Rules(devices=(Device("cpu", slots=slots),), standby=1),
    )
    for digits, other, deaths, joins in turns:
        world.desired = {DIGITS: digits, OTHER: other}
        world.step(2.0)
        assert len(world.living()) <= slots
        for key, desired in world.desired.items():
            starting = [r for r in world.replicas.values() if r.key == key and _counts(r)]
            living = [r for r in starting if r.replica_id in world.living()]
            before = [r for r in living if r.state is ReplicaState.READY]
            assert len(living) <= max(desired, len(before))
        for name in world.living()[:deaths]:
            world.end(name)
        if joins:
            for name in world.living():
                if name in world.replicas and world.replicas[name].state is ReplicaState.STARTING:
                    joined = world.replicas[name].key is not None
                    world.set(name, ReplicaState.READY if joined else ReplicaState.STANDBY)


def _counts(replica: Replica) -> bool:
    return replica.state in (ReplicaState.STARTING, ReplicaState.READY)
