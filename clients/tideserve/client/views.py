"""What the server says of itself, as values: frozen dataclasses made from its messages."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from tideserve.v1 import control_pb2, inference_pb2
from tideserve.v1.model_config_pb2 import DataType, ModelConfig


@dataclass(frozen=True, slots=True)
class ServerMetadata:
    """Name, version and protocol extensions of a server."""

    name: str
    version: str
    extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """An input or output. -1 in `shape` is any size; the first size of a model that batches
    is the rows, -1."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """A model's tensors. `versions` are those that serve."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


@dataclass(frozen=True, slots=True)
class ConfiguredTensor:
    """A tensor as config.pbtxt has it: `dims` without the batch dimension."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelConfiguration:
    """A model's completed configuration. `max_batch_size` 0: it does not batch. `message`
    is the whole of it."""

    name: str
    platform: str
    backend: str
    max_batch_size: int
    inputs: tuple[ConfiguredTensor, ...]
    outputs: tuple[ConfiguredTensor, ...]
    parameters: Mapping[str, str]
    message: ModelConfig = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Duration:
    """So many events that took so long together."""

    count: int
    total_s: float


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """What batches of one size took."""

    batch_rows: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """One model version's counters since it was loaded. `inference_count` counts rows,
    `execution_count` batches."""

    name: str
    version: str
    last_inference_ms: int  # since the epoch; 0: never
    inference_count: int
    execution_count: int
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    batches: tuple[BatchStatistics, ...]


@dataclass(frozen=True, slots=True)
class ModelIndexEntry:
    """A model version in the repository. `state` is READY, UNAVAILABLE, LOADING or UNLOADING;
    `version` is "" for a model of which none was ever loaded."""

    name: str
    version: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class ReplicaInfo:
    """A replica as the frontend sees it. `model` and `version` are "" on a standby."""

    id: str
    model: str
    version: str
    state: str
    pid: int
    host: str
    device: str
    phase: str
    reason: str
    leases: int
    busy_s: float
    memory_bytes: int
    state_age_s: float


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """A model version and what the autoscaler wants of it. Counters since the server started;
    `queue_wait_counts` by the upper bounds `queue_wait_bounds_s`, one more for the rest.
    `desired` None: no autoscaler has said anything; `pinned` None: nobody pinned a count."""

    name: str
    version: str
    state: str
    reason: str
    ready: int
    starting: int
    desired: int | None
    decision: str
    limited_by: str
    pinned: int | None
    pin_remaining_s: float
    arrivals: int
    succeeded: int
    rejected: int
    expired: int
    failed: int
    queued_requests: int
    oldest_age_s: float
    queue_wait_bounds_s: tuple[float, ...]
    queue_wait_counts: tuple[int, ...]

    def queue_wait_since(self, earlier: "ModelStatus", quantile: float) -> float | None:
        """A quantile, in seconds, of the waits that ended since an earlier look: within its
        bucket by proportion, the last bound for what lies above it; None where none did."""
        then = earlier.queue_wait_counts or (0,) * len(self.queue_wait_counts)
        counts = [max(0, now - was) for now, was in zip(self.queue_wait_counts, then, strict=True)]
        rank, below = quantile * sum(counts), 0
        if not any(counts):
            return None
        lower = 0.0
        for bound, count in zip(self.queue_wait_bounds_s, counts, strict=False):
            if count and below + count >= rank:
                return lower + (bound - lower) * (rank - below) / count
            below += count
            lower = bound
        return lower


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """All of a server at one moment. `time_s` is the server's own clock. `standby`: replicas
    without a model. `autoscaler_http` is HOST:PORT, empty without one."""

    time_s: float
    models: tuple[ModelStatus, ...]
    replicas: tuple[ReplicaInfo, ...]
    standby: int
    autoscaler_http: str


def server_metadata_of(message: inference_pb2.ServerMetadataResponse) -> ServerMetadata:
    return ServerMetadata(message.name, message.version, tuple(message.extensions))


def model_metadata_of(message: inference_pb2.ModelMetadataResponse) -> ModelMetadata:
    return ModelMetadata(
        name=message.name,
        versions=tuple(message.versions),
        platform=message.platform,
        inputs=tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in message.inputs),
        outputs=tuple(TensorMetadata(t.name, t.datatype, tuple(t.shape)) for t in message.outputs),
    )


def model_configuration_of(message: inference_pb2.ModelConfigResponse) -> ModelConfiguration:
    config = message.config
    return ModelConfiguration(
        name=config.name,
        platform=config.platform,
        backend=config.backend,
        max_batch_size=config.max_batch_size,
        inputs=tuple(
            ConfiguredTensor(t.name, _datatype(t.data_type), tuple(t.dims), t.optional)
            for t in config.input
        ),
        outputs=tuple(
            ConfiguredTensor(t.name, _datatype(t.data_type), tuple(t.dims)) for t in config.output
        ),
        parameters=MappingProxyType(
            {key: value.string_value for key, value in sorted(config.parameters.items())}
        ),
        message=config,
    )


def statistics_of(message: inference_pb2.ModelStatisticsResponse) -> tuple[ModelStatistics, ...]:
    return tuple(_model_statistics(entry) for entry in message.model_stats)


def models_of(message: inference_pb2.RepositoryIndexResponse) -> tuple[ModelIndexEntry, ...]:
    return tuple(ModelIndexEntry(m.name, m.version, m.state, m.reason) for m in message.models)


def replicas_of(message: control_pb2.Snapshot) -> tuple[ReplicaInfo, ...]:
    return tuple(
        ReplicaInfo(
            id=r.id,
            model=r.model,
            version=str(r.version) if r.model else "",
            state=control_pb2.ReplicaState.Name(r.state),
            pid=r.pid,
            host=r.host,
            device=r.device,
            phase=r.phase,
            reason=r.reason,
            leases=r.leases,
            busy_s=r.busy_s,
            memory_bytes=r.memory_bytes,
            state_age_s=r.state_age_s,
        )
        for r in message.replicas
    )


def status_of(message: control_pb2.Snapshot) -> ServerStatus:
    replicas = replicas_of(message)
    return ServerStatus(
        time_s=message.time_s,
        models=tuple(_model_status(model, message) for model in message.models),
        replicas=replicas,
        standby=sum(replica.state == "STANDBY" for replica in replicas),
        autoscaler_http=message.autoscaler_http,
    )


def _model_status(model: control_pb2.ModelSnapshot, message: control_pb2.Snapshot) -> ModelStatus:
    key = (model.name, model.version, model.generation)
    states = [
        replica.state
        for replica in message.replicas
        if (replica.model, replica.version, replica.generation) == key
    ]
    decided, pinned = model.HasField("decision"), model.HasField("pin")
    return ModelStatus(
        name=model.name,
        version=str(model.version),
        state=control_pb2.ModelState.Name(model.state).removeprefix("MODEL_"),
        reason=model.reason,
        ready=states.count(control_pb2.READY),
        starting=states.count(control_pb2.STARTING),
        desired=model.decision.desired if decided else None,
        decision=model.decision.reason,
        limited_by=model.decision.limited_by,
        pinned=model.pin.replicas if pinned else None,
        pin_remaining_s=model.pin.remaining_s,
        arrivals=model.arrivals,
        succeeded=model.succeeded,
        rejected=model.rejected,
        expired=model.expired,
        failed=model.failed,
        queued_requests=model.queued_requests,
        oldest_age_s=model.oldest_age_s,
        queue_wait_bounds_s=tuple(model.queue_wait_s.bounds),
        queue_wait_counts=tuple(model.queue_wait_s.counts),
    )


def _model_statistics(entry: inference_pb2.ModelStatistics) -> ModelStatistics:
    stats = entry.inference_stats
    return ModelStatistics(
        name=entry.name,
        version=entry.version,
        last_inference_ms=entry.last_inference,
        inference_count=entry.inference_count,
        execution_count=entry.execution_count,
        success=_duration(stats.success),
        fail=_duration(stats.fail),
        queue=_duration(stats.queue),
        compute_input=_duration(stats.compute_input),
        compute_infer=_duration(stats.compute_infer),
        compute_output=_duration(stats.compute_output),
        batches=tuple(
            BatchStatistics(
                batch_rows=batch.batch_size,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for batch in entry.batch_stats
        ),
    )


def _duration(message: inference_pb2.StatisticDuration) -> Duration:
    return Duration(message.count, message.ns / 1e9)


def _datatype(value: DataType) -> str:
    """The client plane's name of a config.pbtxt datatype: TYPE_STRING is BYTES there."""
    name = DataType.Name(value).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name
