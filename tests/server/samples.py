"""Small values that the frontend's tests are built from."""

from collections.abc import Sequence
from math import prod

from tideserve.server.core.settings import BatchSettings, ModelSettings, QueueSettings
from tideserve.server.model_spec import DATATYPE_BYTES, ModelSpec, TensorSpec
from tideserve.server.models import ModelKey, ModelTable
from tideserve.server.repository.found import FoundModel, FoundVersion
from tideserve.v1.inference_pb2 import ModelInferRequest
from tideserve.v1.model_config_pb2 import DataType, ModelConfig


def make_spec(
    inputs: Sequence[TensorSpec] = (TensorSpec("IN", "FP32", (2,)),),
    outputs: Sequence[TensorSpec] = (TensorSpec("OUT", "FP32", (2,)),),
    *,
    max_batch_size: int = 8,
    priority_levels: int = 1,
) -> ModelSpec:
    """A model version `m` 1."""
    return ModelSpec(
        name="m",
        version=1,
        generation="g",
        path="/models/m",
        platform="onnxruntime_onnx",
        backend="onnxruntime",
        max_batch_size=max_batch_size,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        config=ModelConfig(name="m"),
        settings=ModelSettings(
            queue=QueueSettings(priority_levels=priority_levels),
            batch=BatchSettings(max_batch_rows=max_batch_size),
        ),
    )


def add_input(
    request: ModelInferRequest,
    name: str,
    datatype: str,
    shape: Sequence[int],
    raw: bytes | None = None,
) -> ModelInferRequest.InferInputTensor:
    """Adds an input, and its raw content where one is given."""
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    if raw is not None:
        request.raw_input_contents.append(raw)
    return tensor


def make_request(rows: int = 1, *, request_id: str = "", raw: bytes | None = None) -> bytes:
    """A good request for the model of `make_config`."""
    request = ModelInferRequest(model_name="m", id=request_id)
    size = rows * 2 * DATATYPE_BYTES["FP32"]
    add_input(
        request,
        "IN",
        "FP32",
        [rows, 2],
        bytes(at % 256 for at in range(size)) if raw is None else raw,
    )
    return request.SerializeToString()


def elements(shape: Sequence[int], values: Sequence[bytes]) -> bytes:
    """BYTES elements with their length prefixes."""
    assert prod(shape) == len(values)
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def make_config(
    name: str = "m", *, max_batch_size: int = 8, keys: dict[str, str] | None = None
) -> ModelConfig:
    """A complete configuration: FP32 [2] in and out."""
    config = ModelConfig(name=name, backend="onnxruntime", max_batch_size=max_batch_size)
    config.input.add(name="IN", data_type=DataType.TYPE_FP32, dims=[2])
    config.output.add(name="OUT", data_type=DataType.TYPE_FP32, dims=[2])
    for key, value in (keys or {}).items():
        config.parameters[key].string_value = value
    return config


def make_found(
    name: str = "m",
    versions: Sequence[tuple[int, str]] = ((1, "a"),),
    *,
    error: str | None = None,
    config: ModelConfig | None = None,
) -> FoundModel:
    """What a scan says of a model; `versions` are (version, generation)."""
    if error is not None:
        return FoundModel(name, f"/models/{name}", None, (), "", error=error)
    return FoundModel(
        name,
        f"/models/{name}",
        config or make_config(name),
        tuple(FoundVersion(version, generation) for version, generation in versions),
        "onnxruntime",
    )


def serve(models: ModelTable, found: FoundModel) -> list[ModelKey]:
    """Loads a model whose replicas are READY at once; the keys, by version."""
    keys = sorted(models.load(found))
    for key in keys:
        models.ready(key, found.config or make_config(found.name))
    return keys
