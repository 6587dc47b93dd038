"""ONNX Runtime: CPU, CUDA or TensorRT by device and configuration.

The CUDA and TensorRT paths have not run on such a device yet.
"""

import ctypes
import math
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from tideserve.replica.backends import Array, Arrays, ModelFiles
from tideserve.replica.backends.onnx_bindings import Bindings
from tideserve.replica.backends.shared_weights import open_shared
from tideserve.replica.completion import FileTensor, complete
from tideserve.replica.datatypes import numpy_type
from tideserve.replica.errors import LoadError, ModelRaisedError
from tideserve.v1.model_config_pb2 import ModelConfig

# ONNX element types (onnx.proto, TensorProto.DataType) by ONNX Runtime's names for them.
_DATATYPES: Final = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(bfloat16)": "BF16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
_ONNX_BFLOAT16: Final = 16
_CUDA: Final = "CUDAExecutionProvider"
_TENSORRT: Final = "TensorrtExecutionProvider"
_CPU: Final = "CPUExecutionProvider"


def open_model(files: ModelFiles) -> "OnnxBackend":
    """Loads `model.onnx`, a file or a directory that holds one. Raises `LoadError`."""
    path = files.path / "model.onnx" if files.path.is_dir() else files.path
    providers = _providers(files)

    def open_session(path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
        return ort.InferenceSession(str(path), options, providers=providers)

    session = None
    try:
        if files.weights_folder is not None and files.device.index is None:
            folder = files.weights_folder
            session = open_shared(path, folder, lambda: _options(files), open_session)
        if session is None:
            session = open_session(path, _options(files))
    except Exception as error:
        raise LoadError(f"ONNX Runtime cannot load {path}: {error}") from error
    wanted = providers[0][0]
    if session.get_providers()[0] != wanted:
        raise LoadError(
            f"expected to run on {files.device} by {wanted}, ONNX Runtime fell back to "
            f"{session.get_providers()[0]}: its log says why (often the CUDA or cuDNN version)"
        )
    return OnnxBackend(session, on_gpu=files.device.index is not None)


def _options(files: ModelFiles) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = files.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # Replicas share cores: a thread that spins between batches takes them from the others.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if files.config.optimization.HasField("graph"):
        # Triton's levels: -1 basic, 1 extended, 0 all.
        level = files.config.optimization.graph.level
        if level < 0:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        elif level > 0:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    return options


def _providers(files: ModelFiles) -> list[tuple[str, dict[str, Any]]]:
    if files.device.index is None:
        return [(_CPU, {})]
    available = ort.get_available_providers()
    if _CUDA not in available:
        raise LoadError(
            f"device {files.device} needs ONNX Runtime with {_CUDA}, this one has "
            f"{', '.join(available)}: install the extra gpu instead of cpu"
        )
    options = {"device_id": files.device.index}
    providers: list[tuple[str, dict[str, Any]]] = [(_CUDA, dict(options)), (_CPU, {})]
    accelerators = files.config.optimization.execution_accelerators.gpu_execution_accelerator
    if any(accelerator.name.lower() == "tensorrt" for accelerator in accelerators):
        if _TENSORRT not in available:
            raise LoadError(
                f"config.pbtxt asks for the tensorrt accelerator, this ONNX Runtime has "
                f"{', '.join(available)}"
            )
        providers.insert(0, (_TENSORRT, dict(options)))
    return providers


class OnnxBackend:
    """Owns one InferenceSession."""

    def __init__(self, session: ort.InferenceSession, *, on_gpu: bool) -> None:
        self._session = session
        self._on_gpu = on_gpu
        nodes = (
            *session.get_inputs(),
            *session.get_outputs(),
            *session.get_overridable_initializers(),
        )
        self._bindings = Bindings(session)
        self._bf16 = any(node.type == "tensor(bfloat16)" for node in nodes)

    def complete(self, config: ModelConfig) -> ModelConfig:
        overridable = self._session.get_overridable_initializers()
        return complete(
            config,
            [_file_tensor(node) for node in self._session.get_inputs()],
            [_file_tensor(node) for node in self._session.get_outputs()],
            [_file_tensor(node) for node in overridable if node.type in _DATATYPES],
        )

    def infer(self, inputs: Arrays, requested: tuple[str, ...]) -> Arrays:
        names = list(requested)
        feeds = {
            name: _strings(name, array) if array.dtype.kind == "O" else array
            for name, array in inputs.items()
        }
        if self._bf16:
            values = self._session.run_with_ort_values(
                names, {name: _ort_value(array) for name, array in feeds.items()}
            )
            return {name: _array(value) for name, value in zip(names, values, strict=True)}
        if self._on_gpu:
            return self._infer_bound(feeds, names)
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def infer_into(self, inputs: Arrays, outputs: Arrays) -> bool:
        """On the CPU: a device's outputs come to memory of the runtime's own."""
        strings = any(array.dtype.kind == "O" for array in inputs.values())
        if self._bf16 or self._on_gpu or strings:
            return False
        try:
            return self._bindings.run(inputs, outputs)
        except Exception:  # noqa: BLE001 - the runtime's own; `infer` says it again
            return False

    def close(self) -> None:
        del self._session, self._bindings

    def _infer_bound(self, feeds: Arrays, names: list[str]) -> Arrays:
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_cpu_input(name, array)
        for name in names:
            binding.bind_output(name, "cpu")
        self._session.run_with_iobinding(binding)
        return {
            name: value.numpy() for name, value in zip(names, binding.get_outputs(), strict=True)
        }


def _file_tensor(node: ort.NodeArg) -> FileTensor:
    kind = node.type
    if kind.startswith("optional(") and kind.endswith(")"):
        kind = kind.removeprefix("optional(").removesuffix(")")
    datatype = _DATATYPES.get(kind)
    if datatype is None:
        raise LoadError(
            f"{node.name!r} has type {node.type}: expected a tensor of {', '.join(_DATATYPES)}"
        )
    shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
    return FileTensor(node.name, datatype, shape)


def _strings(name: str, array: Array) -> Array:
    """ONNX Runtime's strings are text; bytes would become their Python notation."""
    texts = np.empty(array.size, dtype=object)
    try:
        texts[:] = [element.decode() for element in array.reshape(-1)]
    except UnicodeDecodeError as error:
        raise ModelRaisedError(
            f"input {name!r}: ONNX Runtime takes BYTES elements in UTF-8 only: {error}"
        ) from error
    return texts.reshape(array.shape)


def _ort_value(array: Array) -> ort.OrtValue:
    """numpy has no BF16, so its bits travel as UINT16 with their ONNX type beside them."""
    if array.dtype.name == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            np.ascontiguousarray(array).view(np.uint16), _ONNX_BFLOAT16
        )
    return ort.OrtValue.ortvalue_from_numpy(array)


def _array(value: ort.OrtValue) -> Array:
    if value.data_type() != "tensor(bfloat16)":
        array: Array = value.numpy()
        return array
    shape = tuple(value.shape())
    size = math.prod(shape)
    if size == 0:
        return np.empty(shape, numpy_type("BF16"))
    bits = np.ctypeslib.as_array((ctypes.c_uint16 * size).from_address(value.data_ptr()))
    # The memory is the value's and ends with it.
    return bits.copy().view(numpy_type("BF16")).reshape(shape)
