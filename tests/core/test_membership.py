"""Membership: announced, joined, READY, and which life a call belongs to."""

from tideserve.server.core.actions import ReplicaLeft
from tideserve.server.core.membership import MAX_LOST_RECORDS, Membership
from tideserve.server.core.replicas import ReplicaState
from tideserve.server.core.scheduler import Scheduler


def joined(members: Membership, replica_id: str = "r1", model: str | None = "m") -> int:
    members.announce(replica_id, model, 0.0)
    epoch = members.join(replica_id, 0.0)
    assert epoch is not None
    return epoch


def test_only_an_announced_replica_may_join_and_only_once() -> None:
    members = Membership(1)
    assert members.join("r1", 0.0) is None
    joined(members)
    assert members.join("r1", 0.0) is None


def test_each_life_has_a_larger_epoch_and_old_ones_are_over() -> None:
    members = Membership(70)
    first = joined(members)
    record = members.get("r1")
    assert record is not None
    members.lose(record, 1.0, "gone")
    assert members.join("r1", 1.0) is None
    second = joined(members)
    assert (first, second) == (70, 71)
    assert members.living("r1", first) is None
    assert not members.beat("r1", first, 2.0)
    assert members.beat("r1", second, 2.0)


def test_announcing_a_known_replica_changes_nothing() -> None:
    members = Membership(1)
    joined(members)
    members.ready("r1", 0.0)
    before = members.get("r1")
    members.announce("r1", "other", 1.0)
    assert members.get("r1") is before


def test_a_standby_becomes_starting_when_it_gets_a_model_then_ready() -> None:
    members = Membership(1)
    joined(members, model=None)
    record = members.get("r1")
    assert record is not None
    assert record.state is ReplicaState.STANDBY
    assert not members.ready("r1", 0.0)
    assert members.assign("r1", "m", 1.0)
    assert not members.assign("r1", "m2", 1.0)
    assert members.ready("r1", 2.0)
    assert (record.state, record.model, record.was_ready) == (ReplicaState.READY, "m", True)
    assert members.of_model("m") == [record]


def test_one_that_has_not_joined_is_not_ready() -> None:
    members = Membership(1)
    members.announce("r1", "m", 0.0)
    assert not members.ready("r1", 0.0)


def test_lost_records_are_bounded_and_the_oldest_go() -> None:
    members = Membership(1)
    for number in range(MAX_LOST_RECORDS + 5):
        joined(members, f"r{number}")
        record = members.get(f"r{number}")
        assert record is not None
        members.lose(record, 0.0, "gone")
    assert [record.replica_id for record in members.all()] == [
        f"r{number}" for number in range(5, MAX_LOST_RECORDS + 5)
    ]


def test_a_replica_with_an_open_life_line_is_not_forgotten() -> None:
    members = Membership(1)
    joined(members)
    members.forget("r1")
    record = members.get("r1")
    assert record is not None
    members.lose(record, 0.0, "gone")
    members.forget("r1")
    assert members.get("r1") is None
    members.forget("r1")


def test_a_replica_drained_before_it_joined_is_refused_when_it_does() -> None:
    scheduler = Scheduler()
    scheduler.members.announce("r1", None, 0.0)
    assert scheduler.on_drain("r1", 1.0, "not needed") == []
    assert scheduler.members.join("r1", 2.0) is None
    # Its process ends, as it was asked to: nothing is lost.
    assert scheduler.on_ended("r1", 3.0, "exit code 0") == [ReplicaLeft("r1")]
    assert scheduler.members.all() == []
    assert scheduler.on_ended("r1", 4.0, "exit code 0") == []
