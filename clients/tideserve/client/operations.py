"""The unary calls: which method, which message, and what its answer is read as.

Both clients run these; neither knows a message of its own.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from tideserve.client import views
from tideserve.client.errors import InvalidArgument, InvalidResponse
from tideserve.client.inference import outputs_of
from tideserve.client.segments import Segment
from tideserve.v1 import control_pb2, health_pb2, inference_pb2
from tideserve.v1.methods import CONTROL_SERVICE, INFERENCE_SERVICE

if TYPE_CHECKING:
    from tideserve.client.tensors import Array

T = TypeVar("T")

MODEL_STREAM_INFER: Final = f"/{INFERENCE_SERVICE}/ModelStreamInfer"
WATCH: Final = f"/{CONTROL_SERVICE}/Watch"
SCALE: Final = f"/{CONTROL_SERVICE}/ScaleModel"
# protobuf writes no message of 2 GiB; the rest is for a request id that is set later.
_MAX_MESSAGE_BYTES: Final = 2**31 - 2**16


@dataclass(frozen=True, slots=True)
class Operation(Generic[T]):
    """One call: `path`, the request, and how the bytes of the answer become a value."""

    path: str
    request: Message
    response: type[Message]
    view: Callable[[Any], T]
    model: str = ""

    def payload(self) -> bytes:
        """Raises `InvalidArgument` for a request over protobuf's limit."""
        check_size(self.request, self.model)
        return self.request.SerializeToString()

    def read(self, payload: bytes) -> T:
        """Raises `InvalidResponse`."""
        return self.view(parsed(self.response, payload, self.model))


def check_size(request: Message, model: str) -> None:
    """Raises `InvalidArgument` for a request over protobuf's limit."""
    size = request.ByteSize()
    if size > _MAX_MESSAGE_BYTES:
        raise InvalidArgument(
            f"the request has {size} bytes, 2 GiB at most: send fewer rows", model=model
        )


def parsed(kind: type[Message], payload: bytes, model: str) -> Any:
    """Raises `InvalidResponse` for bytes that are no such message."""
    message = kind()
    try:
        message.ParseFromString(payload)
    except DecodeError as error:
        raise InvalidResponse(
            f"expected a {kind.DESCRIPTOR.name}, got {len(payload)} bytes that are none: is this "
            "an Open Inference Protocol server?",
            model=model,
        ) from error
    return message


def infer(
    request: inference_pb2.ModelInferRequest,
    view: "Callable[[Any], dict[str, Array]]" = outputs_of,
) -> "Operation[dict[str, Array]]":
    return Operation(
        _inference("ModelInfer"),
        request,
        inference_pb2.ModelInferResponse,
        view,
        request.model_name,
    )


def register(segment: Segment) -> Operation[None]:
    """Of shared memory, with the server."""
    request = inference_pb2.SystemSharedMemoryRegisterRequest(
        name=segment.name, key=f"/{segment.name}", byte_size=segment.byte_size
    )
    return Operation(
        _inference("SystemSharedMemoryRegister"),
        request,
        inference_pb2.SystemSharedMemoryRegisterResponse,
        lambda _: None,
    )


def unregister(name: str) -> Operation[None]:
    return Operation(
        _inference("SystemSharedMemoryUnregister"),
        inference_pb2.SystemSharedMemoryUnregisterRequest(name=name),
        inference_pb2.SystemSharedMemoryUnregisterResponse,
        lambda _: None,
    )


def server_live() -> Operation[bool]:
    return Operation(
        _inference("ServerLive"),
        inference_pb2.ServerLiveRequest(),
        inference_pb2.ServerLiveResponse,
        lambda message: bool(message.live),
    )


def server_ready() -> Operation[bool]:
    return Operation(
        _inference("ServerReady"),
        inference_pb2.ServerReadyRequest(),
        inference_pb2.ServerReadyResponse,
        lambda message: bool(message.ready),
    )


def model_ready(model: str, version: str) -> Operation[bool]:
    return Operation(
        _inference("ModelReady"),
        inference_pb2.ModelReadyRequest(name=model, version=version),
        inference_pb2.ModelReadyResponse,
        lambda message: bool(message.ready),
        model,
    )


def server_metadata() -> Operation[views.ServerMetadata]:
    return Operation(
        _inference("ServerMetadata"),
        inference_pb2.ServerMetadataRequest(),
        inference_pb2.ServerMetadataResponse,
        views.server_metadata_of,
    )


def model_metadata(model: str, version: str) -> Operation[views.ModelMetadata]:
    return Operation(
        _inference("ModelMetadata"),
        inference_pb2.ModelMetadataRequest(name=model, version=version),
        inference_pb2.ModelMetadataResponse,
        views.model_metadata_of,
        model,
    )


def model_config(model: str, version: str) -> Operation[views.ModelConfiguration]:
    return Operation(
        _inference("ModelConfig"),
        inference_pb2.ModelConfigRequest(name=model, version=version),
        inference_pb2.ModelConfigResponse,
        views.model_configuration_of,
        model,
    )


def statistics(model: str, version: str) -> Operation[tuple[views.ModelStatistics, ...]]:
    return Operation(
        _inference("ModelStatistics"),
        inference_pb2.ModelStatisticsRequest(name=model, version=version),
        inference_pb2.ModelStatisticsResponse,
        views.statistics_of,
        model,
    )


def models(ready_only: bool) -> Operation[tuple[views.ModelIndexEntry, ...]]:
    return Operation(
        _inference("RepositoryIndex"),
        inference_pb2.RepositoryIndexRequest(ready=ready_only),
        inference_pb2.RepositoryIndexResponse,
        views.models_of,
    )


def load(model: str, config: Mapping[str, Any] | str | None) -> Operation[None]:
    """`config` overrides config.pbtxt for this load: a mapping or text in JSON, as Triton's
    load parameter `config`."""
    request = inference_pb2.RepositoryModelLoadRequest(model_name=_named(model))
    if config is not None:
        try:
            text = config if isinstance(config, str) else json.dumps(dict(config))
        except (TypeError, ValueError) as error:
            raise InvalidArgument(
                f"config: expected what JSON has: {error}", model=model
            ) from error
        request.parameters["config"].string_param = text
    return Operation(
        _inference("RepositoryModelLoad"),
        request,
        inference_pb2.RepositoryModelLoadResponse,
        lambda _: None,
        model,
    )


def unload(model: str) -> Operation[None]:
    return Operation(
        _inference("RepositoryModelUnload"),
        inference_pb2.RepositoryModelUnloadRequest(model_name=_named(model)),
        inference_pb2.RepositoryModelUnloadResponse,
        lambda _: None,
        model,
    )


def replicas() -> Operation[tuple[views.ReplicaInfo, ...]]:
    """Read from the first snapshot of a Watch."""
    return Operation(WATCH, control_pb2.WatchRequest(), control_pb2.Snapshot, views.replicas_of)


def health(service: str) -> Operation[bool]:
    return Operation(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest(service=service),
        health_pb2.HealthCheckResponse,
        lambda message: bool(message.status == health_pb2.HealthCheckResponse.SERVING),
        service,
    )


def status() -> Operation[views.ServerStatus]:
    """Read from the first snapshot of a Watch."""
    return Operation(WATCH, control_pb2.WatchRequest(), control_pb2.Snapshot, views.status_of)


def scale(model: str, replicas: int, duration_s: float, version: str) -> Operation[None]:
    """Raises `InvalidArgument`."""
    if not 0 <= replicas < 2**32:
        raise InvalidArgument(f"expected 0 or more replicas, got {replicas}", model=model)
    if version and not (version.isascii() and version.isdecimal()):
        raise InvalidArgument(f"expected a version such as 1, got {version!r}", model=model)
    request = control_pb2.ScaleModelRequest(
        model_name=_named(model),
        model_version=int(version or 0),
        replicas=replicas,
        duration_s=duration_s,
    )
    return Operation(SCALE, request, control_pb2.ScaleModelResponse, lambda _: None, model)


def _inference(name: str) -> str:
    return f"/{INFERENCE_SERVICE}/{name}"


def _named(model: str) -> str:
    if not model:
        raise InvalidArgument("expected the name of a model, got an empty string")
    return model
