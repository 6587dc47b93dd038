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
