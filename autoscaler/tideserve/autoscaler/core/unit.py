"""A replica as both sides show it, with what is remembered of it."""

from dataclasses import dataclass, replace

from tideserve.autoscaler.core.fleet import Instance, ModelKey, Replica, ReplicaState
from tideserve.autoscaler.core.state import Record


@dataclass(slots=True)
class Unit:
    """Working value of one pass; only `record` changes, and `key` of a standby that is given
    one. `here` is False for one that this life of the frontend has listed and let go."""

    replica_id: str
    key: ModelKey | None
    record: Record
    instance: Instance | None
    replica: Replica | None
    here: bool = True

    @property
    def runs(self) -> bool:
        return self.instance is not None and self.instance.exit is None

    @property
    def status(self) -> ReplicaState:
        """STARTING while the frontend does not list it."""
        return self.replica.state if self.replica is not None else ReplicaState.STARTING

    @property
    def counts(self) -> bool:
        """Whether it is capacity: READY, or on the way there (S1). Of a standby: whether it
        can be given a model, now or soon."""
        return (
            self.here
            and self.record.verdict is None
            and self.record.drain_since_s is None
            and self.status in (ReplicaState.STARTING, ReplicaState.STANDBY, ReplicaState.READY)
        )

    @property
    def assignable(self) -> bool:
        """A standby that has joined."""
        return self.key is None and self.counts and self.status is ReplicaState.STANDBY

    @property
    def on_the_way(self) -> bool:
        """It starts, or was given a model and has not served yet."""
        standing_by = self.status is ReplicaState.STANDBY and self.key is not None
        return standing_by or self.status is ReplicaState.STARTING

    @property
    def idle(self) -> bool:
        return self.replica is None or self.replica.leases == 0

    @property
    def device(self) -> str:
        """The device it takes up, empty once it has ended."""
        if self.instance is not None:
            return self.instance.device if self.runs else ""
        return self.replica.device if self.replica is not None else ""


def unit_of(
    replica_id: str,
    record: Record | None,
    instance: Instance | None,
    replica: Replica | None,
    epoch: int,
    now_s: float,
) -> Unit:
    """Brings the record up to what both sides show now. `epoch` is the frontend's life."""
    record = record or Record(since_s=now_s)
    if replica is not None:
        record = _listed(record, replica, epoch, now_s)
    if instance is not None:
        record = replace(record, launched=True)
        if instance.exit is not None and record.ended_s is None:
            record = replace(record, ended_s=now_s)
    key = (replica.key if replica else None) or record.key or (instance.key if instance else None)
    record = replace(record, key=key)
    here = replica is not None or record.seen_epoch != epoch
    return Unit(replica_id, key, record, instance, replica, here)


def at_a_restarted_frontend(record: Record, now_s: float) -> Record:
    """It knows of no drain and has to be told of the replica, which starts there anew."""
    return replace(
        record, since_s=now_s, drain_since_s=None, drain_sent_s=None, announce_sent_s=None
    )


def _listed(record: Record, replica: Replica, epoch: int, now_s: float) -> Record:
    if replica.state is ReplicaState.DRAINING and record.drain_since_s is None:
        record = replace(record, drain_since_s=now_s)
    was_ready = replica.was_ready or replica.state is ReplicaState.READY
    if record.key is None and replica.key is None:
        was_ready = was_ready or replica.state is ReplicaState.STANDBY
    return replace(
        record,
        seen_epoch=epoch,
        seen_s=now_s,
        was_ready=record.was_ready or was_ready,
        attributed=record.attributed or replica.death_attributed,
    )
