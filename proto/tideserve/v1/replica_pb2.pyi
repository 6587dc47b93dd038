from tideserve.v1 import model_config_pb2 as _model_config_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JoinRequest(_message.Message):
    __slots__ = ("replica_id", "pid", "host", "device", "launch_s")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LAUNCH_S_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    pid: int
    host: str
    device: str
    launch_s: float
    def __init__(self, replica_id: _Optional[str] = ..., pid: _Optional[int] = ..., host: _Optional[str] = ..., device: _Optional[str] = ..., launch_s: _Optional[float] = ...) -> None: ...

class Command(_message.Message):
    __slots__ = ("welcome", "assign", "drain", "stop")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    ASSIGN_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    assign: Assign
    drain: Drain
    stop: Stop
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., assign: _Optional[_Union[Assign, _Mapping]] = ..., drain: _Optional[_Union[Drain, _Mapping]] = ..., stop: _Optional[_Union[Stop, _Mapping]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("epoch", "beat_interval_s", "max_message_bytes", "arena")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BEAT_INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARENA_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    beat_interval_s: float
    max_message_bytes: int
    arena: Arena
    def __init__(self, epoch: _Optional[int] = ..., beat_interval_s: _Optional[float] = ..., max_message_bytes: _Optional[int] = ..., arena: _Optional[_Union[Arena, _Mapping]] = ...) -> None: ...

class Arena(_message.Message):
    __slots__ = ("path", "key", "lease_begin", "outcome_begin", "end", "file_sent", "keeps_pages")
    PATH_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    LEASE_BEGIN_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_BEGIN_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    FILE_SENT_FIELD_NUMBER: _ClassVar[int]
    KEEPS_PAGES_FIELD_NUMBER: _ClassVar[int]
    path: str
    key: bytes
    lease_begin: int
    outcome_begin: int
    end: int
    file_sent: bool
    keeps_pages: bool
    def __init__(self, path: _Optional[str] = ..., key: _Optional[bytes] = ..., lease_begin: _Optional[int] = ..., outcome_begin: _Optional[int] = ..., end: _Optional[int] = ..., file_sent: bool = ..., keeps_pages: bool = ...) -> None: ...

class Assign(_message.Message):
    __slots__ = ("model_name", "model_version", "generation", "model_path", "config", "config_complete")
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MODEL_PATH_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CONFIG_COMPLETE_FIELD_NUMBER: _ClassVar[int]
    model_name: str
    model_version: int
    generation: str
    model_path: str
    config: _model_config_pb2.ModelConfig
    config_complete: bool
    def __init__(self, model_name: _Optional[str] = ..., model_version: _Optional[int] = ..., generation: _Optional[str] = ..., model_path: _Optional[str] = ..., config: _Optional[_Union[_model_config_pb2.ModelConfig, _Mapping]] = ..., config_complete: bool = ...) -> None: ...

class Drain(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Stop(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class ExchangeRequest(_message.Message):
    __slots__ = ("replica_id", "epoch", "sequence", "outcomes", "want", "arena")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OUTCOMES_FIELD_NUMBER: _ClassVar[int]
    WANT_FIELD_NUMBER: _ClassVar[int]
    ARENA_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    epoch: int
    sequence: int
    outcomes: _containers.RepeatedCompositeFieldContainer[Outcome]
    want: bool
    arena: bool
    def __init__(self, replica_id: _Optional[str] = ..., epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., outcomes: _Optional[_Iterable[_Union[Outcome, _Mapping]]] = ..., want: bool = ..., arena: bool = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("lease_id", "result", "failure", "input_s", "infer_s", "output_s")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    INPUT_S_FIELD_NUMBER: _ClassVar[int]
    INFER_S_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_S_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    result: BatchResult
    failure: BatchFailure
    input_s: float
    infer_s: float
    output_s: float
    def __init__(self, lease_id: _Optional[int] = ..., result: _Optional[_Union[BatchResult, _Mapping]] = ..., failure: _Optional[_Union[BatchFailure, _Mapping]] = ..., input_s: _Optional[float] = ..., infer_s: _Optional[float] = ..., output_s: _Optional[float] = ...) -> None: ...

class BatchResult(_message.Message):
    __slots__ = ("outputs",)
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    def __init__(self, outputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ...) -> None: ...

class BatchFailure(_message.Message):
    __slots__ = ("kind", "message")
    class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        KIND_UNSPECIFIED: _ClassVar[BatchFailure.Kind]
        MODEL_ERROR: _ClassVar[BatchFailure.Kind]
        BAD_OUTPUT: _ClassVar[BatchFailure.Kind]
        OUT_OF_MEMORY: _ClassVar[BatchFailure.Kind]
        DEVICE_LOST: _ClassVar[BatchFailure.Kind]
        OUTPUT_TOO_LARGE: _ClassVar[BatchFailure.Kind]
    KIND_UNSPECIFIED: BatchFailure.Kind
    MODEL_ERROR: BatchFailure.Kind
    BAD_OUTPUT: BatchFailure.Kind
    OUT_OF_MEMORY: BatchFailure.Kind
    DEVICE_LOST: BatchFailure.Kind
    OUTPUT_TOO_LARGE: BatchFailure.Kind
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: BatchFailure.Kind
    message: str
    def __init__(self, kind: _Optional[_Union[BatchFailure.Kind, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Tensor(_message.Message):
    __slots__ = ("name", "datatype", "shape", "data", "row_bytes", "arena_offset", "arena_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATATYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    ROW_BYTES_FIELD_NUMBER: _ClassVar[int]
    ARENA_OFFSET_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    datatype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    data: bytes
    row_bytes: _containers.RepeatedScalarFieldContainer[int]
    arena_offset: int
    arena_bytes: int
    def __init__(self, name: _Optional[str] = ..., datatype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., data: _Optional[bytes] = ..., row_bytes: _Optional[_Iterable[int]] = ..., arena_offset: _Optional[int] = ..., arena_bytes: _Optional[int] = ...) -> None: ...

class ExchangeResponse(_message.Message):
    __slots__ = ("sequence", "lease", "drain", "dropped_lease_ids")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LEASE_FIELD_NUMBER: _ClassVar[int]
    DRAIN_FIELD_NUMBER: _ClassVar[int]
    DROPPED_LEASE_IDS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    lease: Lease
    drain: bool
    dropped_lease_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sequence: _Optional[int] = ..., lease: _Optional[_Union[Lease, _Mapping]] = ..., drain: bool = ..., dropped_lease_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Lease(_message.Message):
    __slots__ = ("lease_id", "rows", "inputs", "requested_outputs", "request_rows", "time_left_s")
    LEASE_ID_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    REQUESTED_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ROWS_FIELD_NUMBER: _ClassVar[int]
    TIME_LEFT_S_FIELD_NUMBER: _ClassVar[int]
    lease_id: int
    rows: int
    inputs: _containers.RepeatedCompositeFieldContainer[Tensor]
    requested_outputs: _containers.RepeatedScalarFieldContainer[str]
    request_rows: _containers.RepeatedScalarFieldContainer[int]
    time_left_s: float
    def __init__(self, lease_id: _Optional[int] = ..., rows: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[Tensor, _Mapping]]] = ..., requested_outputs: _Optional[_Iterable[str]] = ..., request_rows: _Optional[_Iterable[int]] = ..., time_left_s: _Optional[float] = ...) -> None: ...

class BeatRequest(_message.Message):
    __slots__ = ("replica_id", "epoch", "loading", "ready", "load_failed", "busy_s", "memory_bytes")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOADING_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    LOAD_FAILED_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    epoch: int
    loading: Loading
    ready: Ready
    load_failed: LoadFailed
    busy_s: float
    memory_bytes: int
    def __init__(self, replica_id: _Optional[str] = ..., epoch: _Optional[int] = ..., loading: _Optional[_Union[Loading, _Mapping]] = ..., ready: _Optional[_Union[Ready, _Mapping]] = ..., load_failed: _Optional[_Union[LoadFailed, _Mapping]] = ..., busy_s: _Optional[float] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class Loading(_message.Message):
    __slots__ = ("phase",)
    PHASE_FIELD_NUMBER: _ClassVar[int]
    phase: str
    def __init__(self, phase: _Optional[str] = ...) -> None: ...

class Ready(_message.Message):
    __slots__ = ("config", "phases", "profile")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    config: _model_config_pb2.ModelConfig
    phases: _containers.RepeatedCompositeFieldContainer[StartupPhase]
    profile: _containers.RepeatedCompositeFieldContainer[ProfilePoint]
    def __init__(self, config: _Optional[_Union[_model_config_pb2.ModelConfig, _Mapping]] = ..., phases: _Optional[_Iterable[_Union[StartupPhase, _Mapping]]] = ..., profile: _Optional[_Iterable[_Union[ProfilePoint, _Mapping]]] = ...) -> None: ...

class LoadFailed(_message.Message):
    __slots__ = ("message", "phases", "hopeless")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PHASES_FIELD_NUMBER: _ClassVar[int]
    HOPELESS_FIELD_NUMBER: _ClassVar[int]
    message: str
    phases: _containers.RepeatedCompositeFieldContainer[StartupPhase]
    hopeless: bool
    def __init__(self, message: _Optional[str] = ..., phases: _Optional[_Iterable[_Union[StartupPhase, _Mapping]]] = ..., hopeless: bool = ...) -> None: ...

class StartupPhase(_message.Message):
    __slots__ = ("name", "duration_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    duration_s: float
    def __init__(self, name: _Optional[str] = ..., duration_s: _Optional[float] = ...) -> None: ...

class ProfilePoint(_message.Message):
    __slots__ = ("batch_rows", "latency_s")
    BATCH_ROWS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_S_FIELD_NUMBER: _ClassVar[int]
    batch_rows: int
    latency_s: float
    def __init__(self, batch_rows: _Optional[int] = ..., latency_s: _Optional[float] = ...) -> None: ...

class BeatResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
