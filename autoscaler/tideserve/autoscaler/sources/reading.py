"""From the wire's snapshot to the core's values."""

from collections.abc import Mapping
from typing import Final

from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Histogram, Load
from tideserve.v1 import control_pb2

_STATES: Final = {
    control_pb2.STARTING: ReplicaState.STARTING,
    control_pb2.STANDBY: ReplicaState.STANDBY,
    control_pb2.READY: ReplicaState.READY,
    control_pb2.DRAINING: ReplicaState.DRAINING,
    control_pb2.LOST: ReplicaState.LOST,
}


def snapshot_of(message: control_pb2.Snapshot) -> Snapshot:
    """The fleet. Replicas in states that this version does not know are left out."""
    return Snapshot(
        epoch=message.frontend_epoch,
        models=tuple(
            Model(
                _key_of(model),
                model.wanted,
                model.backend,
                model.latency_target_s or None,
                model.instance_count or 1,
                served=model.state == control_pb2.MODEL_READY,
                held_requests=model.queued_requests,
            )
            for model in message.models
        ),
        replicas=tuple(
            _replica_of(replica) for replica in message.replicas if replica.state in _STATES
        ),
        stopping=message.stopping,
    )


def loads_of(message: control_pb2.Snapshot, now_s: float) -> dict[ModelKey, Load]:
    """Counters as they are, of this life of the frontend."""
    return {_key_of(model): _load_of(model, now_s) for model in message.models}


def pins_of(message: control_pb2.Snapshot) -> dict[ModelKey, int]:
    """Counts that people set."""
    return {_key_of(model): model.pin.replicas for model in message.models if model.HasField("pin")}


class EvenCounters:
    """Owns, for each model version, what its counters had reached in earlier lives of what is
    read, so that they never fall."""

    def __init__(self) -> None:
        self._epoch = 0
        self._last: dict[ModelKey, Load] = {}  # of this life
        self._before: dict[ModelKey, Load] = {}  # at the end of the life before

    def even(self, loads: Mapping[ModelKey, Load], epoch: int) -> dict[ModelKey, Load]:
        """These loads on top of earlier lives. Versions that went away in this life, or did not
        come back in it, are forgotten."""
        if epoch != self._epoch:
            self._before = {key: self._total(key, load) for key, load in self._last.items()}
            self._last = {}
            self._epoch = epoch
        for key in self._last.keys() - loads.keys():
            self._before.pop(key, None)
        for key, load in loads.items():
            last = self._last.get(key)
            if last is not None and load.arrivals < last.arrivals:
                self._before[key] = self._total(key, last)
        self._last = dict(loads)
        return {key: self._total(key, load) for key, load in loads.items()}

    def _total(self, key: ModelKey, load: Load) -> Load:
        before = self._before.get(key)
        return load if before is None else added(before, load)


def added(before: Load, load: Load) -> Load:
    """`load` with the counters of `before` added to its own."""
    return Load(
        at_s=load.at_s,
        arrivals=before.arrivals + load.arrivals,
        rejected=before.rejected + load.rejected,
        expired=before.expired + load.expired,
        succeeded=before.succeeded + load.succeeded,
        failed=before.failed + load.failed,
        rows=before.rows + load.rows,
        queue_wait_s=_sum(before.queue_wait_s, load.queue_wait_s),
        latency_s=_sum(before.latency_s, load.latency_s),
        queued_requests=load.queued_requests,
        queued_rows=load.queued_rows,
        leased_requests=load.leased_requests,
        oldest_age_s=load.oldest_age_s,
        profile=load.profile or before.profile,
        good_for_s=load.good_for_s,
    )


def _sum(before: Histogram, now: Histogram) -> Histogram:
    """Another version of the frontend may have other buckets: then only its own count."""
    if before.bounds != now.bounds:
        return now
    counts = tuple(a + b for a, b in zip(before.counts, now.counts, strict=True))
    return Histogram(now.bounds, counts, before.sum + now.sum)


def _load_of(model: control_pb2.ModelSnapshot, now_s: float) -> Load:
    return Load(
        at_s=now_s,
        arrivals=model.arrivals,
        rejected=model.rejected,
        expired=model.expired,
        succeeded=model.succeeded,
        failed=model.failed,
        rows=model.batch_rows.sum,
        queue_wait_s=_histogram_of(model.queue_wait_s),
        latency_s=_histogram_of(model.latency_s),
        queued_requests=model.queued_requests,
        queued_rows=model.queued_rows,
        leased_requests=model.leased_requests,
        oldest_age_s=model.oldest_age_s,
        profile=tuple((point.batch_rows, point.latency_s) for point in model.profile),
    )


def _histogram_of(message: control_pb2.Histogram) -> Histogram:
    return Histogram(tuple(message.bounds), tuple(message.counts), message.sum)


def _key_of(message: control_pb2.ModelSnapshot) -> ModelKey:
    return ModelKey(message.name, message.version, message.generation)


def _replica_of(message: control_pb2.ReplicaSnapshot) -> Replica:
    key = ModelKey(message.model, message.version, message.generation) if message.model else None
    return Replica(
        replica_id=message.id,
        key=key,
        state=_STATES[message.state],
        state_age_s=message.state_age_s,
        pid=message.pid,
        device=message.device,
        leases=message.leases,
        was_ready=message.was_ready,
        death_attributed=message.death_attributed,
        reason=message.reason,
        startup_s=tuple((phase.name, phase.duration_s) for phase in message.phases),
        busy_s=message.busy_s,
        memory_bytes=message.memory_bytes,
    )
