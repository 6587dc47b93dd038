"""The calls that are answered at once from what is known: live, ready, metadata, statistics."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from google.protobuf.message import Message

from tideserve.server.errors import InvalidRequestError, UnsupportedError
from tideserve.server.model_spec import ModelSpec, TensorSpec
from tideserve.server.models import ModelEntry, ModelTable
from tideserve.server.statistics import statistics
from tideserve.v1 import inference_pb2 as wire
from tideserve.v1.methods import INFERENCE, INFERENCE_SERVICE

# What of the protocol's extensions there always is.
EXTENSIONS: Final = (
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "schedule_policy",
    "statistics",
    "logging",
)
_UNSUPPORTED: Final = {
    "CudaSharedMemory": (
        "this server has no CUDA shared memory: send tensors in the request's raw contents, or use "
        "system shared memory"
    ),
    "TraceSetting": "this server has no request tracing: see its metrics instead",
}
_LEVELS: Final = (
    ("log_error", logging.ERROR),
    ("log_warning", logging.WARNING),
    ("log_info", logging.INFO),
)


class MetadataService:
    """Reads the model table; changes nothing but, on request, the log's level."""

    def __init__(
        self,
        models: ModelTable,
        version: str,
        is_ready: Callable[[], bool],
        is_serving: Callable[[], bool],
        extensions: Sequence[str] = (),
    ) -> None:
        """`extensions`: names of those that not every server has."""
        self._extensions = (*EXTENSIONS, *extensions)
        self._models = models
        self._version = version
        self._is_ready = is_ready
        self._is_serving = is_serving

    def answers(self) -> Iterator[tuple[str, type[Message], Callable[[Message], Message]]]:
        """Path, request type and answer of each method here."""
        known: dict[str, Callable[..., Message]] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelConfig": self._model_config,
            "ModelStatistics": self._model_statistics,
            "LogSettings": self._log_settings,
        }
        for method in INFERENCE:
            answer = known.get(method.name)
            for prefix, sentence in _UNSUPPORTED.items():
                if method.name.startswith(prefix):
                    answer = _refuse(sentence)
            if answer is not None:
                yield f"/{INFERENCE_SERVICE}/{method.name}", method.request, answer

    def _server_live(self, _: wire.ServerLiveRequest) -> wire.ServerLiveResponse:
        return wire.ServerLiveResponse(live=True)

    def _server_ready(self, _: wire.ServerReadyRequest) -> wire.ServerReadyResponse:
        return wire.ServerReadyResponse(ready=self._is_ready())

    def _model_ready(self, request: wire.ModelReadyRequest) -> wire.ModelReadyResponse:
        """Whether a request sent now would be served."""
        ready = self._is_serving() and self._models.is_bindable(request.name, request.version)
        return wire.ModelReadyResponse(ready=ready)

    def _server_metadata(self, _: wire.ServerMetadataRequest) -> wire.ServerMetadataResponse:
        return wire.ServerMetadataResponse(
            name="tideserve", version=self._version, extensions=self._extensions
        )

    def _model_metadata(self, request: wire.ModelMetadataRequest) -> wire.ModelMetadataResponse:
        entry, spec = self._bind(request.name, request.version)
        return wire.ModelMetadataResponse(
            name=spec.name,
            versions=[str(version) for version in self._models.versions(entry.key.name)],
            platform=spec.platform,
            inputs=[_tensor(tensor, spec) for tensor in spec.inputs],
            outputs=[_tensor(tensor, spec) for tensor in spec.outputs],
        )

    def _model_config(self, request: wire.ModelConfigRequest) -> wire.ModelConfigResponse:
        _, spec = self._bind(request.name, request.version)
        return wire.ModelConfigResponse(config=spec.config)

    def _model_statistics(
        self, request: wire.ModelStatisticsRequest
    ) -> wire.ModelStatisticsResponse:
        if not request.name:
            return statistics(self._models.entries.values())
        if not self._models.is_known(request.name, request.version):
            # Says which models there are.
            self._models.bind(request.name, request.version)
        return statistics(
            entry
            for entry in self._models.of_model(request.name)
            if request.version in ("", str(entry.key.version))
        )

    def _log_settings(self, request: wire.LogSettingsRequest) -> wire.LogSettingsResponse:
        """The level is the lowest that is switched on; log_verbose_level above 0 is debug."""
        root = logging.getLogger()
        level = root.level
        wanted = {name: level <= number for name, number in _LEVELS}
        verbose = int(level <= logging.DEBUG)
        for name, value in request.settings.items():
            if name in wanted and value.WhichOneof("parameter_choice") == "bool_param":
                wanted[name] = value.bool_param
            elif (
                name == "log_verbose_level"
                and value.WhichOneof("parameter_choice") == "uint32_param"
            ):
                verbose = value.uint32_param
            else:
                raise InvalidRequestError(
                    f"log setting '{name}': expected log_error, log_warning or log_info with a "
                    f"bool, or log_verbose_level with a uint32, got "
                    f"{value.WhichOneof('parameter_choice')}"
                )
        if request.settings:
            lowest = min((number for name, number in _LEVELS if wanted[name]), default=100)
            root.setLevel(logging.DEBUG if verbose else lowest)
        response = wire.LogSettingsResponse()
        for name, number in _LEVELS:
            response.settings[name].bool_param = root.level <= number
        response.settings["log_verbose_level"].uint32_param = int(root.level <= logging.DEBUG)
        return response

    def _bind(self, name: str, version: str) -> tuple[ModelEntry, ModelSpec]:
        entry = self._models.bind(name, version)
        assert entry.spec is not None
        return entry, entry.spec


def _tensor(tensor: TensorSpec, spec: ModelSpec) -> wire.ModelMetadataResponse.TensorMetadata:
    rows = [-1] if spec.max_batch_size else []
    return wire.ModelMetadataResponse.TensorMetadata(
        name=tensor.name, datatype=tensor.datatype, shape=[*rows, *tensor.dims]
    )


def _refuse(sentence: str) -> Callable[[Message], Message]:
    def answer(_: Message) -> Message:
        raise UnsupportedError(sentence)

    return answer
