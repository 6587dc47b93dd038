"""A small server of the client and control planes, deterministic, scripted by tests."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import numpy as np

from tideserve.client import segments
from tideserve.v1 import control_pb2, inference_pb2
from tideserve.v1.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
)
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import BY_PATH, Kind
from tideserve.v1.model_config_pb2 import ModelConfig, ModelInput, ModelOutput, ModelParameter
from tideserve.v1.segments import (
    MIN_OUTPUT_BYTES,
    OUTPUTS_BYTE_SIZE,
    OUTPUTS_OFFSET,
    OUTPUTS_REGION,
    aligned,
)

Context = grpc.ServicerContext
TOKEN = "the-token"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call fails."""

    code: grpc.StatusCode
    message: str
    pushback_ms: int | str | None = None


class UnknownSegmentError(Exception):
    """In the server's words."""


@dataclass(frozen=True, slots=True)
class FakeModel:
    """`inputs` and `outputs`: name, datatype, dims without the batch dimension."""

    name: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    run: Callable[[ModelInferRequest], ModelInferResponse]
    max_batch_size: int = 64

    def shape(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        return (-1, *dims) if self.max_batch_size else dims


def echo(request: ModelInferRequest) -> ModelInferResponse:
    """Every input comes back under its name."""
    response = ModelInferResponse(raw_output_contents=request.raw_input_contents)
    for tensor in request.inputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return response


def identity(request: ModelInferRequest) -> ModelInferResponse:
    (tensor,) = request.inputs
    response = ModelInferResponse(raw_output_contents=request.raw_input_contents)
    response.outputs.add(name="OUT", datatype=tensor.datatype, shape=tensor.shape)
    return response


def digits(request: ModelInferRequest) -> ModelInferResponse:
    """The scores of a row are its pixels' sum plus 0..9."""
    rows = request.inputs[0].shape[0]
    pixels = np.frombuffer(request.raw_input_contents[0], "<f4").reshape(rows, -1)
    scores = pixels.sum(axis=1, keepdims=True) + np.arange(10, dtype="<f4")
    response = ModelInferResponse(raw_output_contents=[scores.astype("<f4").tobytes()])
    response.outputs.add(name="scores", datatype="FP32", shape=(rows, 10))
    return response


MODELS = (
    FakeModel("echo", (("x", "FP32", (-1,)),), (("x", "FP32", (-1,)),), echo),
    FakeModel("identity", (("IN", "FP32", (16,)),), (("OUT", "FP32", (16,)),), identity),
    FakeModel("digits_onnx", (("image", "FP32", (1, 8, 8)),), (("scores", "FP32", (10,)),), digits),
    FakeModel("text", (("TEXT", "BYTES", (1,)),), (("TEXT", "BYTES", (1,)),), echo),
    FakeModel(
        "pair",
        (("a", "INT64", (2,)), ("b", "FP32", (3,))),
        (("a", "INT64", (2,)), ("b", "FP32", (3,))),
        echo,
    ),
    FakeModel("single", (("x", "FP64", (2, 2)),), (("x", "FP64", (2, 2)),), echo, 0),
)


@dataclass
class FakeServer:
    """Owns the grpcio server. `failures` are used up by ModelInfer, one a call."""

    failures: deque[Failure] = field(default_factory=deque)
    requests: list[ModelInferRequest] = field(default_factory=list)
    metadata: list[tuple[str, dict[str, str | bytes]]] = field(default_factory=list)
    timeouts_s: list[float | None] = field(default_factory=list)
    loads: list[inference_pb2.RepositoryModelLoadRequest] = field(default_factory=list)
    ready: bool = True
    not_ready_answers: int = 0
    cancelled: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)
    response: ModelInferResponse | None = None
    memory_failures: deque[Failure] = field(default_factory=deque)
    """Of registering shared memory, one a call."""
    segments: dict[str, int] = field(default_factory=dict)
    """The registered ones' files, by name."""
    put_bytes: list[int] = field(default_factory=list)
    """Of each output that was put into a segment, `shift_bytes` before where the answer says."""
    shift_bytes: int = 0
    stream_code: int | None = None
    unknown_segment_code: int | None = 3
    """In a stream, where Triton says none."""
    swap_stream_answers: bool = False
    stream_goes_on: threading.Event = field(default_factory=threading.Event)
    """Set: streams are answered. Cleared by a test, their requests wait."""
    port: int = 0
    credentials: grpc.ServerCredentials | None = None

    def start(self) -> None:
        self.stream_goes_on.set()
        self.models = {model.name: model for model in MODELS}
        self._pool = ThreadPoolExecutor(8)
        self._server = grpc.server(
            self._pool, options=[("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        )
        self._server.add_generic_rpc_handlers((_Handlers(self),))
        address = f"localhost:{self.port}"
        if self.credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, self.credentials)
        self._server.start()

    def stop(self) -> None:
        self.stream_goes_on.set()
        self._server.stop(0).wait()
        self._pool.shutdown()
        self.forget_segments()

    @property
    def address(self) -> str:
        return f"localhost:{self.port}"

    # --- methods, by their names on the wire ---------------------------------------------

    def ServerLive(self, request: Any, context: Context) -> Any:
        return inference_pb2.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Context) -> Any:
        if self.not_ready_answers:
            self.not_ready_answers -= 1
            return inference_pb2.ServerReadyResponse(ready=False)
        return inference_pb2.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, request: Any, context: Context) -> Any:
        self._model(request.name, context)
        return inference_pb2.ModelReadyResponse(ready=self.ready)

    def ServerMetadata(self, request: Any, context: Context) -> Any:
        return inference_pb2.ServerMetadataResponse(
            name="fake", version="1.2", extensions=["statistics"]
        )

    def ModelMetadata(self, request: Any, context: Context) -> Any:
        model = self._model(request.name, context)
        answer = inference_pb2.ModelMetadataResponse(
            name=model.name, versions=["1"], platform="onnxruntime_onnx"
        )
        for name, datatype, dims in model.inputs:
            answer.inputs.add(name=name, datatype=datatype, shape=model.shape(dims))
        for name, datatype, dims in model.outputs:
            answer.outputs.add(name=name, datatype=datatype, shape=model.shape(dims))
        return answer

    def ModelConfig(self, request: Any, context: Context) -> Any:
        model = self._model(request.name, context)
        return inference_pb2.ModelConfigResponse(
            config=ModelConfig(
                name=model.name,
                platform="onnxruntime_onnx",
                backend="onnxruntime",
                max_batch_size=model.max_batch_size,
                input=[
                    ModelInput(name=name, data_type=_config_type(datatype), dims=dims)
                    for name, datatype, dims in model.inputs
                ],
                output=[
                    ModelOutput(name=name, data_type=_config_type(datatype), dims=dims)
                    for name, datatype, dims in model.outputs
                ],
                parameters={"tideserve.retryable": ModelParameter(string_value="true")},
            )
        )

    def ModelStatistics(self, request: Any, context: Context) -> Any:
        answer = inference_pb2.ModelStatisticsResponse()
        for name in [request.name] if request.name else sorted(self.models):
            stats = answer.model_stats.add(
                name=name, version="1", last_inference=7, inference_count=6, execution_count=3
            )
            stats.inference_stats.success.count = 5
            stats.inference_stats.success.ns = 2_500_000_000
            stats.batch_stats.add(batch_size=2).compute_infer.count = 3
        return answer

    def RepositoryIndex(self, request: Any, context: Context) -> Any:
        answer = inference_pb2.RepositoryIndexResponse()
        for name in sorted(self.models):
            answer.models.add(name=name, version="1", state="READY")
        if not request.ready:
            answer.models.add(name="broken", state="UNAVAILABLE", reason="config.pbtxt:3: no")
        return answer

    def RepositoryModelLoad(self, request: Any, context: Context) -> Any:
        self.loads.append(request)
        for model in MODELS:
            if model.name == request.model_name:
                self.models[model.name] = model
        self._model(request.model_name, context)
        return inference_pb2.RepositoryModelLoadResponse()

    def RepositoryModelUnload(self, request: Any, context: Context) -> Any:
        self._model(request.model_name, context)
        del self.models[request.model_name]
        return inference_pb2.RepositoryModelUnloadResponse()

    def ModelInfer(self, request: ModelInferRequest, context: Context) -> ModelInferResponse:
        self.requests.append(request)
        self.timeouts_s.append(context.time_remaining())
        if self.failures:
            _abort(context, self.failures.popleft())
        if request.model_name == "hangs":
            self._hang(context)
        model = self._model(request.model_name, context)
        try:
            return self._placed_answer(request, model)
        except UnknownSegmentError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            raise

    def SystemSharedMemoryRegister(self, request: Any, context: Context) -> Any:
        if self.memory_failures:
            _abort(context, self.memory_failures.popleft())
        path = segments.FOLDER / request.key.removeprefix("/")
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_size == request.byte_size
        self.segments[request.name] = os.open(path, os.O_RDWR)
        return inference_pb2.SystemSharedMemoryRegisterResponse()

    def SystemSharedMemoryUnregister(self, request: Any, context: Context) -> Any:
        if request.name in self.segments:  # as in the real ones, no mistake otherwise
            os.close(self.segments.pop(request.name))
        return inference_pb2.SystemSharedMemoryUnregisterResponse()

    def forget_segments(self) -> None:
        """As a server that was started again."""
        while self.segments:
            os.close(self.segments.popitem()[1])

    def ModelStreamInfer(
        self, requests: Iterator[ModelInferRequest], context: Context
    ) -> Iterator[ModelStreamInferResponse]:
        held: ModelStreamInferResponse | None = None
        for request in requests:
            self.stream_goes_on.wait(30)
            self.requests.append(request)
            if request.model_name == "breaks":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the stream breaks")
            if request.model_name == "hangs":
                self._hang(context)
            if request.model_name == "stranger":
                request.id = "stranger"
            if request.model_name == "ends":
                return
            answer = self._stream_answer(request)
            if self.swap_stream_answers and held is None:
                held = answer
                continue
            yield answer
            if held is not None:
                yield held
                held = None

    def Watch(self, request: Any, context: Context) -> Iterator[control_pb2.Snapshot]:
        if dict(context.invocation_metadata()).get(TOKEN_METADATA_KEY) != TOKEN:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "expected the token")
        # Here, not after the yield: a caller that has left stops the generator there.
        context.add_callback(self.cancelled.set)
        snapshot = control_pb2.Snapshot()
        snapshot.replicas.add(
            id="replica-1",
            model="identity",
            version=1,
            state=control_pb2.READY,
            pid=4321,
            host="node",
            device="cpu",
            leases=2,
        )
        snapshot.replicas.add(id="replica-2", state=control_pb2.STANDBY, pid=4322, host="node")
        yield snapshot
        self._hang(context)

    # --- ---------------------------------------------------------------------------------

    def _hang(self, context: Context) -> NoReturn:
        """Waits until the call is gone."""
        gone = threading.Event()
        if not context.add_callback(gone.set):
            gone.set()
        self.begun.set()
        gone.wait(30)
        self.cancelled.set()
        raise RuntimeError("the caller is gone")

    def _placed_answer(self, request: ModelInferRequest, model: FakeModel) -> ModelInferResponse:
        return self._with_places(self._answer(self._without_places(request), model), request)

    def _without_places(self, request: ModelInferRequest) -> ModelInferRequest:
        """The request as if all of its inputs had come in the message."""
        raw = list(request.raw_input_contents)
        contents = []
        for tensor in request.inputs:
            if "shared_memory_region" not in tensor.parameters:
                contents.append(raw.pop(0))
                continue
            name = tensor.parameters["shared_memory_region"].string_param
            if name not in self.segments:
                raise UnknownSegmentError(
                    f"input '{tensor.name}': shared memory region '{name}' is not registered"
                )
            size = tensor.parameters["shared_memory_byte_size"].int64_param
            offset = tensor.parameters["shared_memory_offset"].int64_param
            contents.append(os.pread(self.segments[name], size, offset))
        assert not raw
        whole = ModelInferRequest()
        whole.CopyFrom(request)
        del whole.raw_input_contents[:]
        whole.raw_input_contents.extend(contents)
        return whole

    def _with_places(
        self, answer: ModelInferResponse, request: ModelInferRequest
    ) -> ModelInferResponse:
        """Large outputs are put where the request has room for them."""
        if OUTPUTS_REGION not in request.parameters:
            return answer
        name = request.parameters[OUTPUTS_REGION].string_param
        if name not in self.segments:
            raise UnknownSegmentError(
                f"the outputs: shared memory region '{name}' is not registered"
            )
        at = request.parameters[OUTPUTS_OFFSET].int64_param
        end = at + request.parameters[OUTPUTS_BYTE_SIZE].int64_param
        for number, output in enumerate(answer.outputs):
            raw = answer.raw_output_contents[number]
            if len(raw) < MIN_OUTPUT_BYTES or at + len(raw) > end:
                continue
            os.pwrite(self.segments[name], raw, at)
            self.put_bytes.append(len(raw))
            output.parameters["shared_memory_region"].string_param = name
            output.parameters["shared_memory_offset"].int64_param = at + self.shift_bytes
            output.parameters["shared_memory_byte_size"].int64_param = len(raw)
            answer.raw_output_contents[number] = b""
            at += aligned(len(raw))
        return answer

    def _model(self, name: str, context: Context) -> FakeModel:
        model = self.models.get(name)
        if model is None:
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"no model {name!r}, there are {sorted(self.models)}"
            )
        assert model is not None
        return model

    def _answer(self, request: ModelInferRequest, model: FakeModel) -> ModelInferResponse:
        answer = ModelInferResponse()
        answer.CopyFrom(self.response if self.response is not None else model.run(request))
        answer.model_name, answer.model_version, answer.id = model.name, "1", request.id
        asked = {output.name for output in request.outputs}
        if asked:
            kept = [
                (output, raw)
                for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True)
                if output.name in asked
            ]
            outputs, contents = [o for o, _ in kept], [raw for _, raw in kept]
            del answer.outputs[:], answer.raw_output_contents[:]
            answer.outputs.extend(outputs)
            answer.raw_output_contents.extend(contents)
        return answer

    def _stream_answer(self, request: ModelInferRequest) -> ModelStreamInferResponse:
        model = self.models.get(request.model_name, MODELS[0])
        code = self.stream_code
        try:
            placed = self._placed_answer(request, model)
            if request.model_name != "fails":
                return ModelStreamInferResponse(infer_response=placed)
            answer = ModelStreamInferResponse(error_message="the model raised ValueError: 7")
        except UnknownSegmentError as error:
            answer = ModelStreamInferResponse(error_message=str(error))
            code = self.unknown_segment_code
        answer.infer_response.id = request.id
        if code is not None:
            answer.infer_response.parameters["grpc_status"].int64_param = code
        return answer


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, server: FakeServer) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        method = BY_PATH.get(details.method)
        behaviour = getattr(self._server, method.name, None) if method is not None else None
        if method is None or behaviour is None:
            return None
        self._server.metadata.append((method.name, dict(details.invocation_metadata)))
        make = {
            Kind.UNARY: grpc.unary_unary_rpc_method_handler,
            Kind.SERVER_STREAM: grpc.unary_stream_rpc_method_handler,
            Kind.BIDI: grpc.stream_stream_rpc_method_handler,
        }[method.kind]
        return make(
            behaviour,
            request_deserializer=method.request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )


def _abort(context: Context, failure: Failure) -> None:
    if failure.pushback_ms is not None:
        context.set_trailing_metadata((("grpc-retry-pushback-ms", str(failure.pushback_ms)),))
    context.abort(failure.code, failure.message)


def _config_type(datatype: str) -> str:
    return "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
