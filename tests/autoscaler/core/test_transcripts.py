"""Whole stories, action by action, with their reasons: what a person reads in the log."""

from tests.autoscaler.world import DIGITS, World, names
from tideserve.autoscaler.core.actions import Action, Drain, Report, Start
from tideserve.autoscaler.core.fleet import Model, ModelKey


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
