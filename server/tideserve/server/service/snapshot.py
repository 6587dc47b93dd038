"""The frontend's state as one message: what autoscalers and people see."""

from tideserve.server.core.replicas import Replica
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.models import ModelEntry, ModelKey, ModelState, ModelTable
from tideserve.server.repository.spec import instance_count
from tideserve.server.service.replicas import ReplicaInfo
from tideserve.server.service.scaling import ScalingBoard
from tideserve.server.stats import Histogram
from tideserve.v1 import control_pb2
from tideserve.v1.control_pb2 import ModelSnapshot, ReplicaSnapshot, Snapshot
from tideserve.v1.replica_pb2 import ProfilePoint

MODEL_STATES = {
    ModelState.LOADING: control_pb2.MODEL_LOADING,
    ModelState.READY: control_pb2.MODEL_READY,
    ModelState.RETIRING: control_pb2.MODEL_RETIRING,
    ModelState.UNAVAILABLE: control_pb2.MODEL_UNAVAILABLE,
}


def snapshot(
    models: ModelTable,
    scheduler: Scheduler,
    info: dict[str, ReplicaInfo],
    board: ScalingBoard,
    now_s: float,
    *,
    frontend_epoch: int,
    stopping: bool,
) -> Snapshot:
    """Everything at one moment."""
    return Snapshot(
        time_s=now_s,
        frontend_epoch=frontend_epoch,
        stopping=stopping,
        autoscaler_http=board.autoscaler_http(now_s),
        models=[_model(entry, scheduler, board, now_s) for entry in models.entries.values()],
        replicas=[
            _replica(replica, info.get(replica.replica_id), now_s)
            for replica in scheduler.members.all()
        ],
    )


def _model(
    entry: ModelEntry, scheduler: Scheduler, board: ScalingBoard, now_s: float
) -> ModelSnapshot:
    stats = entry.stats
    message = ModelSnapshot(
        name=entry.key.name,
        version=entry.key.version,
        generation=entry.key.generation,
        state=MODEL_STATES[entry.state],
        reason=entry.reason,
        wanted=is_wanted(entry, scheduler),
        instance_count=instance_count(entry.found.config) if entry.found.config else 0,
        backend=entry.found.backend,
        arrivals=stats.arrivals,
        admitted=stats.admitted,
        rejected=sum(stats.rejected.values()),
        expired=stats.expired,
        cancelled=stats.cancelled,
        succeeded=stats.success.count,
        failed=sum(stats.failed.values()),
        queue_wait_s=_histogram(stats.queue_wait_s),
        latency_s=_histogram(stats.latency_s),
        batch_rows=_histogram(stats.batch_rows),
    )
    if entry.spec is not None and entry.spec.latency_target_s is not None:
        message.latency_target_s = entry.spec.latency_target_s
    board.show(message, entry.key, now_s)
    model = scheduler.models.get(entry.key)
    if model is not None:
        message.queued_requests = model.queue.requests
        message.queued_rows = model.queue.rows
        message.queued_bytes = model.queue.payload_bytes
        message.leased_requests = model.leased_requests
        oldest_s = model.queue.oldest_arrival_s()
        message.oldest_age_s = 0.0 if oldest_s is None else now_s - oldest_s
        message.profile.extend(
            ProfilePoint(batch_rows=rows, latency_s=latency_s)
            for rows, latency_s in model.profile.points()
        )
    return message


def is_wanted(entry: ModelEntry, scheduler: Scheduler) -> bool:
    """Replicas should exist: a retiring model keeps its own until what it admitted is
    answered; one that none can load has none."""
    if entry.hopeless:
        return False
    if entry.state is not ModelState.RETIRING:
        return True
    return entry.key in scheduler.models and not scheduler.is_idle(entry.key)


def _replica(replica: Replica, info: ReplicaInfo | None, now_s: float) -> ReplicaSnapshot:
    message = ReplicaSnapshot(
        id=replica.replica_id,
        state=replica.state.value,
        leases=len(replica.leases),
        reason=replica.reason,
        state_age_s=now_s - replica.state_since_s,
        was_ready=replica.was_ready,
        death_attributed=replica.attributed,
    )
    if isinstance(replica.model, ModelKey):
        message.model, message.version, message.generation = replica.model
    if info is not None:
        message.pid = info.pid
        message.host = info.host
        message.device = info.device
        message.phase = info.phase
        message.phases.extend(info.phases)
        message.busy_s = info.busy_s
        message.memory_bytes = info.memory_bytes
    return message


def _histogram(histogram: Histogram) -> control_pb2.Histogram:
    return control_pb2.Histogram(
        bounds=histogram.bounds, counts=histogram.counts, sum=histogram.sum
    )
