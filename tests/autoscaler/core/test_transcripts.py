"""Whole stories, action by action, with their reasons: what a person reads in the log."""

from tests.autoscaler.world import DIGITS, World, names
from tideserve.autoscaler.core.actions import Action, Assign, Drain, Report, Start
from tideserve.autoscaler.core.fleet import Model, ModelKey, ReplicaState
from tideserve.autoscaler.core.settings import Device
from tideserve.autoscaler.core.state import ReconcileState, Rules


def told(world: World, actions: list[Action]) -> list[str]:
    """One line an action; names without their suffix."""
    lines = []
    for action in actions:
        name = action.replica_id.rsplit("-", 1)[0]
        match action:
            case Report():
                text = f"{action.cause}; failed starts {action.failed_starts}"
            case _:
                text = action.reason
        lines.append(f"{world.now_s:5.1f} {type(action).__name__.lower()} {name}: {text}")
    return lines


def test_story_of_a_reload_that_keeps_serving() -> None:
    world = World(desired={DIGITS: 2})
    lines = told(world, world.step())
    world.ready()
    newer = ModelKey("digits", 1, "g2")
    world.models[newer] = Model(newer)
    world.desired[newer] = 2
    lines += told(world, world.step(10.0))
    world.ready()
    world.models[DIGITS] = Model(DIGITS, wanted=False)
    drains = world.step(1.0)
    lines += told(world, drains)
    for replica_id in names(drains, Drain):
        world.end(replica_id, "exit code 0")
    lines += told(world, world.step(1.0))
    assert lines == [
        "  0.0 start digits-1-0: 0 replicas of model 'digits' version 1, 2 desired",
        "  0.0 start digits-1-1: 0 replicas of model 'digits' version 1, 2 desired",
        " 10.0 start digits-1-2: 0 replicas of model 'digits' version 1, 2 desired",
        " 10.0 start digits-1-3: 0 replicas of model 'digits' version 1, 2 desired",
        " 11.0 drain digits-1-1: model 'digits' version 1 is not wanted",
        " 11.0 drain digits-1-0: model 'digits' version 1 is not wanted",
        " 12.0 report digits-1-0: exit code 0; failed starts 0",
        " 12.0 report digits-1-1: exit code 0; failed starts 0",
    ]


def test_story_of_a_version_that_cannot_start_until_its_files_are_mended() -> None:
    world = World()
    lines = []
    for wait_s in (0.0, 0.5, 1.0, 2.0, 4.0):
        actions = world.step(wait_s)
        lines += told(world, actions)
        for replica_id in names(actions, Start):
            world.end(replica_id, "exit code 1", "no such file: model.onnx")
        lines += told(world, world.step())
    lines += told(world, world.step(59.0))
    mended = ModelKey("digits", 1, "g2")
    world.models = {mended: Model(mended)}
    world.desired = {mended: 1}
    lines += told(world, world.step(0.5))
    assert lines == [
        "  0.0 start digits-1-0: 0 replicas of model 'digits' version 1, 1 desired",
        "  0.0 report digits-1-0: exit code 1; failed starts 1",
        "  0.5 start digits-1-0: 0 replicas of model 'digits' version 1, 1 desired, try 2 after 1 failures",
        "  0.5 report digits-1-0: exit code 1; failed starts 2",
        "  1.5 start digits-1-0: 0 replicas of model 'digits' version 1, 1 desired, try 3 after 2 failures",
        "  1.5 report digits-1-0: exit code 1; failed starts 3",
        "  3.5 start digits-1-0: 0 replicas of model 'digits' version 1, 1 desired, try 4 after 3 failures",
        "  3.5 report digits-1-0: exit code 1; failed starts 4",
        "  7.5 start digits-1-0: 0 replicas of model 'digits' version 1, 1 desired, try 5 after 4 failures",
        "  7.5 report digits-1-0: exit code 1; failed starts 5",
        " 67.0 start digits-1-0: 0 replicas of model 'digits' version 1, 1 desired",
    ]


def test_story_of_a_standby_that_is_used_replaced_and_of_slots_that_run_out() -> None:
    world = World(desired={DIGITS: 1}, rules=Rules(standby=1, devices=(Device(slots=3),)))
    actions = world.step()
    lines = told(world, actions)
    model, spare = names(actions, Start)
    world.ready(model)
    world.stand_by(spare)
    world.desired[DIGITS] = 2
    actions = world.step(5.0)
    lines += told(world, actions)
    world.ready(spare)
    world.stand_by(*names(actions, Start))
    world.desired[DIGITS] = 4
    lines += told(world, world.step(5.0))
    for why in world.state.waiting.values():
        lines.append(f"{world.now_s:5.1f} waiting: {why.removesuffix(WAITS)}")
    world.ready()
    world.desired[DIGITS] = 1
    drains = world.step(5.0)
    lines += told(world, drains)
    for replica_id in names(drains, Drain):
        world.end(replica_id, "exit code 0")
    lines += told(world, world.step(1.0))
    assert lines == STANDBY_STORY


WAITS = ": the next start waits for room on a device"
STANDBY_STORY = [
    "  0.0 start digits-1-0: 0 replicas of model 'digits' version 1, 1 desired",
    "  0.0 start standby-0: 0 standbys, 1 wanted",
    "  5.0 assign standby-0: 1 replicas of model 'digits' version 1, 2 desired",
    "  5.0 start standby-1: 0 standbys, 1 wanted",
    " 10.0 assign standby-1: 2 replicas of model 'digits' version 1, 4 desired",
    " 10.0 waiting: 2 replicas of model 'digits' version 1, 4 desired",
    " 10.0 waiting: 0 standbys, 1 wanted",
    " 15.0 drain standby-1: 3 replicas of model 'digits' version 1, 1 desired",
    " 15.0 drain standby-0: 3 replicas of model 'digits' version 1, 1 desired",
    " 16.0 report standby-0: exit code 0; failed starts 0",
    " 16.0 report standby-1: exit code 0; failed starts 0",
    " 16.0 start standby-2: 0 standbys, 1 wanted",
]


def test_story_of_prepared_instances() -> None:
    world = World(desired={DIGITS: 1}, rules=Rules(prepared=1))
    lines = told(world, world.step())
    world.ready(*world.replicas)
    world.desired[DIGITS] = 3
    lines += told(world, world.step(5.0))
    lines += told(world, world.step(1.0))
    world.desired.clear()
    world.models.clear()
    lines += told(world, world.step(5.0))
    assert lines == [
        "  0.0 start digits-1-0: 0 replicas of model 'digits' version 1, 1 desired",
        "  0.0 prepare standby-0: 0 prepared, 1 wanted",
        "  5.0 start standby-0: 1 replicas of model 'digits' version 1, 3 desired",
        "  5.0 start digits-1-1: 1 replicas of model 'digits' version 1, 3 desired",
        "  5.0 prepare standby-1: 0 prepared, 1 wanted",
        " 11.0 drain digits-1-1: model 'digits' version 1 is not wanted",
        " 11.0 drain standby-0: model 'digits' version 1 is not wanted",
        " 11.0 drain digits-1-0: model 'digits' version 1 is not wanted",
        " 11.0 kill standby-1: 0 prepared ones are wanted",
    ]


def test_story_of_an_autoscaler_that_is_restarted_and_then_of_the_frontend() -> None:
    world = World(desired={DIGITS: 2}, rules=Rules(standby=2))
    model, spare, _ = names(world.step(), Start)[:3]
    world.ready(*[name for name in world.replicas if name.startswith("digits")])
    world.stand_by(*[name for name in world.replicas if name.startswith("standby")])
    world.desired[DIGITS] = 3
    actions = world.step(1.0)
    (assigned,) = names(actions, Assign)
    world.ready(assigned)
    world.stand_by(*names(actions, Start))
    assert (model.startswith("digits"), spare.startswith("digits")) == (True, True)
    # The launcher started it as a standby: what it serves is known by the frontend alone.
    assert world.instances[assigned].key is None
    world.state = ReconcileState(life=8)
    lines = told(world, world.step(1.0))
    assert lines == []
    world.replicas.clear()
    world.epoch += 1
    lines = told(world, world.step(1.0))
    keys = {name: replica.key for name, replica in world.replicas.items()}
    assert lines == [
        "  3.0 announce digits-1-0: it runs and the frontend does not know it",
        "  3.0 announce digits-1-1: it runs and the frontend does not know it",
        "  3.0 announce standby-0: it runs and the frontend does not know it",
        "  3.0 announce standby-1: it runs and the frontend does not know it",
        "  3.0 announce standby-2: it runs and the frontend does not know it",
    ]
    assert [name for name, key in keys.items() if key == DIGITS] == [
        *[name for name in keys if name.startswith("digits")],
        assigned,
    ]
    world.ready(*[name for name, key in keys.items() if key is not None])
    world.set(assigned, ReplicaState.READY, was_ready=True)
    world.stand_by(*[name for name, key in keys.items() if key is None])
    assert world.step(10.0) == []
