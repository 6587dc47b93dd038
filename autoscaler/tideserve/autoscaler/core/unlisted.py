"""What runs and the frontend does not list (yet): after its restart, all of it."""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from tideserve.autoscaler.core.fleet import Instance, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.core.state import Record


def with_unlisted(
    snapshot: Snapshot, instances: Iterable[Instance], records: Mapping[str, Record]
) -> Snapshot:
    """The snapshot as a policy is to see it: with the running instances of a model that will be
    announced as STARTING ones (S1). Those that this life of the frontend has listed and let go,
    and those that are over, are none. Without them a policy that begins beside a restarted
    frontend would see an empty fleet, and have all but its minimum drained as they rejoin.
    """
    listed = {replica.replica_id for replica in snapshot.replicas}
    unlisted = [
        Replica(one.replica_id, key, ReplicaState.STARTING, device=one.device)
        for one in instances
        if one.exit is None and not one.prepared and one.replica_id not in listed
        if (record := records.get(one.replica_id)) is None
        or (record.verdict is None and record.seen_epoch != snapshot.epoch)
        if (key := (record.key if record is not None else None) or one.key) is not None
    ]
    return replace(snapshot, replicas=(*snapshot.replicas, *unlisted)) if unlisted else snapshot
