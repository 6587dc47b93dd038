from tideserve.v1 import replica_pb2 as _replica_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReplicaState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPLICA_STATE_UNSPECIFIED: _ClassVar[ReplicaState]
    STARTING: _ClassVar[ReplicaState]
    STANDBY: _ClassVar[ReplicaState]
    READY: _ClassVar[ReplicaState]
    DRAINING: _ClassVar[ReplicaState]
    LOST: _ClassVar[ReplicaState]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_LOADING: _ClassVar[ModelState]
    MODEL_READY: _ClassVar[ModelState]
    MODEL_RETIRING: _ClassVar[ModelState]
    MODEL_UNAVAILABLE: _ClassVar[ModelState]
REPLICA_STATE_UNSPECIFIED: ReplicaState
STARTING: ReplicaState
STANDBY: ReplicaState
READY: ReplicaState
DRAINING: ReplicaState
LOST: ReplicaState
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_LOADING: ModelState
MODEL_READY: ModelState
MODEL_RETIRING: ModelState
MODEL_UNAVAILABLE: ModelState

class WatchRequest(_message.Message):
    __slots__ = ("interval_s", "autoscaler_generation")
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    AUTOSCALER_GENERATION_FIELD_NUMBER: _ClassVar[int]
    interval_s: float
    autoscaler_generation: int
    def __init__(self, interval_s: _Optional[float] = ..., autoscaler_generation: _Optional[int] = ...) -> None: ...

class Snapshot(_message.Message):
    __slots__ = ("time_s", "frontend_epoch", "models", "replicas", "stopping", "autoscaler_http")
    TIME_S_FIELD_NUMBER: _ClassVar[int]
    FRONTEND_EPOCH_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    STOPPING_FIELD_NUMBER: _ClassVar[int]
    AUTOSCALER_HTTP_FIELD_NUMBER: _ClassVar[int]
    time_s: float
    frontend_epoch: int
    models: _containers.RepeatedCompositeFieldContainer[ModelSnapshot]
    replicas: _containers.RepeatedCompositeFieldContainer[ReplicaSnapshot]
    stopping: bool
    autoscaler_http: str
    def __init__(self, time_s: _Optional[float] = ..., frontend_epoch: _Optional[int] = ..., models: _Optional[_Iterable[_Union[ModelSnapshot, _Mapping]]] = ..., replicas: _Optional[_Iterable[_Union[ReplicaSnapshot, _Mapping]]] = ..., stopping: bool = ..., autoscaler_http: _Optional[str] = ...) -> None: ...

class ModelSnapshot(_message.Message):
    __slots__ = ("name", "version", "generation", "state", "reason", "wanted", "backend", "arrivals", "admitted", "rejected", "expired", "cancelled", "succeeded", "failed", "queued_requests", "queued_rows", "queued_bytes", "oldest_age_s", "queue_wait_s", "latency_s", "batch_rows", "profile", "leased_requests", "decision", "pin", "latency_target_s", "instance_count")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    EXPIRED_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    SUCCEEDED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_ROWS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_BYTES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_AGE_S_FIELD_NUMBER: _ClassVar[int]
    QUEUE_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    LEASED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    LATENCY_TARGET_S_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_COUNT_FIELD_NUMBER: _ClassVar[int]
    name: str
    version: int
    generation: str
    state: ModelState
    reason: str
    wanted: bool
    backend: str
    arrivals: int
    admitted: int
    rejected: int
    expired: int
    cancelled: int
    succeeded: int
    failed: int
    queued_requests: int
    queued_rows: int
    queued_bytes: int
    oldest_age_s: float
    queue_wait_s: Histogram
    latency_s: Histogram
    batch_rows: Histogram
    profile: _containers.RepeatedCompositeFieldContainer[_replica_pb2.ProfilePoint]
    leased_requests: int
    decision: Decision
    pin: Pin
    latency_target_s: float
    instance_count: int
    def __init__(self, name: _Optional[str] = ..., version: _Optional[int] = ..., generation: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., reason: _Optional[str] = ..., wanted: bool = ..., backend: _Optional[str] = ..., arrivals: _Optional[int] = ..., admitted: _Optional[int] = ..., rejected: _Optional[int] = ..., expired: _Optional[int] = ..., cancelled: _Optional[int] = ..., succeeded: _Optional[int] = ..., failed: _Optional[int] = ..., queued_requests: _Optional[int] = ..., queued_rows: _Optional[int] = ..., queued_bytes: _Optional[int] = ..., oldest_age_s: _Optional[float] = ..., queue_wait_s: _Optional[_Union[Histogram, _Mapping]] = ..., latency_s: _Optional[_Union[Histogram, _Mapping]] = ..., batch_rows: _Optional[_Union[Histogram, _Mapping]] = ..., profile: _Optional[_Iterable[_Union[_replica_pb2.ProfilePoint, _Mapping]]] = ..., leased_requests: _Optional[int] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ..., pin: _Optional[_Union[Pin, _Mapping]] = ..., latency_target_s: _Optional[float] = ..., instance_count: _Optional[int] = ...) -> None: ...

class Decision(_message.Message):
    __slots__ = ("desired", "reason", "limited_by", "inputs", "age_s")
    class InputsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    LIMITED_BY_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    desired: int
    reason: str
    limited_by: str
    inputs: _containers.ScalarMap[str, float]
    age_s: float
    def __init__(self, desired: _Optional[int] = ..., reason: _Optional[str] = ..., limited_by: _Optional[str] = ..., inputs: _Optional[_Mapping[str, float]] = ..., age_s: _Optional[float] = ...) -> None: ...

class Pin(_message.Message):
    __slots__ = ("replicas", "remaining_s")
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    REMAINING_S_FIELD_NUMBER: _ClassVar[int]
    replicas: int
    remaining_s: float
    def __init__(self, replicas: _Optional[int] = ..., remaining_s: _Optional[float] = ...) -> None: ...

class Histogram(_message.Message):
    __slots__ = ("bounds", "counts", "sum")
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    bounds: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum: float
    def __init__(self, bounds: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum: _Optional[float] = ...) -> None: ...

class ReplicaSnapshot(_message.Message):
    __slots__ = ("id", "model", "version", "generation", "state", "pid", "host", "device", "phases", "phase", "busy_s", "memory_bytes", "leases", "reason", "state_age_s", "was_ready", "death_attributed")
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STATE_AGE_S_FIELD_NUMBER: _ClassVar[int]
    WAS_READY_FIELD_NUMBER: _ClassVar[int]
    DEATH_ATTRIBUTED_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    version: int
    generation: str
    state: ReplicaState
    pid: int
    host: str
    device: str
    phases: _containers.RepeatedCompositeFieldContainer[_replica_pb2.StartupPhase]
    phase: str
    busy_s: float
    memory_bytes: int
    leases: int
    reason: str
    state_age_s: float
    was_ready: bool
    death_attributed: bool
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[int] = ..., generation: _Optional[str] = ..., state: _Optional[_Union[ReplicaState, str]] = ..., pid: _Optional[int] = ..., host: _Optional[str] = ..., device: _Optional[str] = ..., phases: _Optional[_Iterable[_Union[_replica_pb2.StartupPhase, _Mapping]]] = ..., phase: _Optional[str] = ..., busy_s: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., leases: _Optional[int] = ..., reason: _Optional[str] = ..., state_age_s: _Optional[float] = ..., was_ready: bool = ..., death_attributed: bool = ...) -> None: ...

class AnnounceRequest(_message.Message):
    __slots__ = ("autoscaler_generation", "replicas")
    AUTOSCALER_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    autoscaler_generation: int
    replicas: _containers.RepeatedCompositeFieldContainer[Announcement]
    def __init__(self, autoscaler_generation: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[Announcement, _Mapping]]] = ...) -> None: ...

class Announcement(_message.Message):
    __slots__ = ("replica_id", "model_name", "model_version", "generation")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    model_name: str
    model_version: int
    generation: str
    def __init__(self, replica_id: _Optional[str] = ..., model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., generation: _Optional[str] = ...) -> None: ...

class AnnounceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportExitRequest(_message.Message):
    __slots__ = ("autoscaler_generation", "replica_id", "cause", "log_tail", "failed_starts", "give_up_reason")
    AUTOSCALER_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    LOG_TAIL_FIELD_NUMBER: _ClassVar[int]
    FAILED_STARTS_FIELD_NUMBER: _ClassVar[int]
    GIVE_UP_REASON_FIELD_NUMBER: _ClassVar[int]
    autoscaler_generation: int
    replica_id: str
    cause: str
    log_tail: _containers.RepeatedScalarFieldContainer[str]
    failed_starts: int
    give_up_reason: str
    def __init__(self, autoscaler_generation: _Optional[int] = ..., replica_id: _Optional[str] = ..., cause: _Optional[str] = ..., log_tail: _Optional[_Iterable[str]] = ..., failed_starts: _Optional[int] = ..., give_up_reason: _Optional[str] = ...) -> None: ...

class ReportExitResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainReplicaRequest(_message.Message):
    __slots__ = ("autoscaler_generation", "replica_id")
    AUTOSCALER_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    autoscaler_generation: int
    replica_id: str
    def __init__(self, autoscaler_generation: _Optional[int] = ..., replica_id: _Optional[str] = ...) -> None: ...

class DrainReplicaResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AssignModelRequest(_message.Message):
    __slots__ = ("autoscaler_generation", "replica_id", "model_name", "model_version", "generation")
    AUTOSCALER_GENERATION_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    autoscaler_generation: int
    replica_id: str
    model_name: str
    model_version: int
    generation: str
    def __init__(self, autoscaler_generation: _Optional[int] = ..., replica_id: _Optional[str] = ..., model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., generation: _Optional[str] = ...) -> None: ...

class AssignModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReportDecisionsRequest(_message.Message):
    __slots__ = ("autoscaler_generation", "decisions", "autoscaler_http")
    AUTOSCALER_GENERATION_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    AUTOSCALER_HTTP_FIELD_NUMBER: _ClassVar[int]
    autoscaler_generation: int
    decisions: _containers.RepeatedCompositeFieldContainer[ModelDecision]
    autoscaler_http: str
    def __init__(self, autoscaler_generation: _Optional[int] = ..., decisions: _Optional[_Iterable[_Union[ModelDecision, _Mapping]]] = ..., autoscaler_http: _Optional[str] = ...) -> None: ...

class ModelDecision(_message.Message):
    __slots__ = ("model_name", "model_version", "generation", "decision")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    DECISION_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: int
    generation: str
    decision: Decision
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., generation: _Optional[str] = ..., decision: _Optional[_Union[Decision, _Mapping]] = ...) -> None: ...

class ReportDecisionsResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ScaleModelRequest(_message.Message):
    __slots__ = ("model_name", "model_version", "replicas", "duration_s")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: int
    replicas: int
    duration_s: float
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., replicas: _Optional[int] = ..., duration_s: _Optional[float] = ...) -> None: ...

class ScaleModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
