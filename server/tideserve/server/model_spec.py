"""A model version as the frontend sees it: tensors, limits, and where its files are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from tideserve.server.core.settings import ModelSettings
from tideserve.server.padding import Padding
from tideserve.v1.model_config_pb2 import ModelConfig

# Bytes of one element on the wire; BYTES elements have no fixed size.
DATATYPE_BYTES: Final[dict[str, int]] = {
    "BOOL": 1,
    "UINT8": 1,
    "UINT16": 2,
    "UINT32": 4,
    "UINT64": 8,
    "INT8": 1,
    "INT16": 2,
    "INT32": 4,
    "INT64": 8,
    "FP16": 2,
    "BF16": 2,
    "FP32": 4,
    "FP64": 8,
    "BYTES": 0,
}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output. `dims` is what callers see, without the batch dimension; -1 is
    any size. `model_dims` is what the model sees where config.pbtxt has a reshape."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    model_dims: tuple[int, ...] | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One (model, version, generation) with a complete configuration. `latency_target_s`
    (`tideserve.latency_target`) is for the autoscaler; None: none is set. `padding`
    (`tideserve.pad`) None: inputs of different shapes travel apart."""

    name: str
    version: int
    generation: str
    path: str  # <repository>/<model>
    platform: str  # as in ModelMetadata: onnxruntime_onnx, pytorch_libtorch, python, ...
    backend: str  # onnxruntime, pytorch, python
    max_batch_size: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    config: ModelConfig = field(compare=False)
    settings: ModelSettings = field(default_factory=ModelSettings)
    latency_target_s: float | None = None
    padding: Padding | None = None


def names_of(tensors: Sequence[TensorSpec]) -> str:
    """For a sentence."""
    return ", ".join(f"'{tensor.name}'" for tensor in tensors)
