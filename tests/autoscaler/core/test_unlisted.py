"""What a policy is shown beside what the frontend lists."""

from dataclasses import replace

import pytest

from tideserve.autoscaler.core.fleet import (
    Exit,
    Instance,
    ModelKey,
    Replica,
    ReplicaState,
    Snapshot,
)
from tideserve.autoscaler.core.state import Record, Verdict
from tideserve.autoscaler.core.unlisted import with_unlisted

KEY = ModelKey("m", 1, "g")
ONE = Instance("m-1-0-x", KEY, "gpu:1")
EMPTY = Snapshot(epoch=7)


def test_s1_one_that_runs_and_is_not_listed_is_shown_starting() -> None:
    shown = with_unlisted(EMPTY, [ONE], {})
    assert shown.replicas == (Replica("m-1-0-x", KEY, ReplicaState.STARTING, device="gpu:1"),)


def test_one_of_an_earlier_life_of_the_frontend_is_shown() -> None:
    record = Record(0.0, KEY, seen_epoch=6, drain_since_s=1.0)
    assert len(with_unlisted(EMPTY, [ONE], {"m-1-0-x": record}).replicas) == 1


def test_the_model_of_a_standby_is_the_one_that_it_was_given() -> None:
    record = Record(0.0, KEY, seen_epoch=6)
    standby = replace(ONE, key=None)
    assert with_unlisted(EMPTY, [standby], {"m-1-0-x": record}).replicas[0].key == KEY


@pytest.mark.parametrize(
    ("instance", "record"),
    [
        (replace(ONE, exit=Exit("exit code 0")), None),
        (replace(ONE, prepared=True), None),
        (replace(ONE, key=None), None),
        (ONE, Record(0.0, KEY, seen_epoch=7)),
        (ONE, Record(0.0, KEY, verdict=Verdict.RETIRED)),
    ],
    ids=["ended", "prepared", "standby", "let go", "over"],
)
def test_nothing_else_is_shown(instance: Instance, record: Record | None) -> None:
    records = {} if record is None else {instance.replica_id: record}
    assert with_unlisted(EMPTY, [instance], records) is EMPTY


def test_one_that_is_listed_is_shown_once() -> None:
    listed = replace(EMPTY, replicas=(Replica(ONE.replica_id, KEY, ReplicaState.READY),))
    assert with_unlisted(listed, [ONE], {}) is listed
