"""The onnx backend on models made here."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from tests.replica.batches import Array, config
from tideserve.replica.backends import Backend, ModelFiles
from tideserve.replica.backends.onnx import open_model
from tideserve.replica.datatypes import to_config
from tideserve.replica.errors import LoadError, ModelRaisedError
from tideserve.replica.settings import Device
from tideserve.v1.model_config_pb2 import ModelConfig

Shape = tuple[str | int, ...]
Io = dict[str, tuple[int, Shape]]


def save(path: Path, nodes: list[Any], inputs: Io, outputs: Io, initializers: Any = ()) -> Path:
    """A model file; opset and IR versions that every supported runtime reads."""
    graph = helper.make_graph(
        nodes,
        "made",
        [helper.make_tensor_value_info(name, *io) for name, io in inputs.items()],
        [helper.make_tensor_value_info(name, *io) for name, io in outputs.items()],
        list(initializers),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, str(path))
    return path


def save_identity(path: Path, kind: int, shape: Shape) -> Path:
    node = helper.make_node("Identity", ["x"], ["y"])
    return save(path, [node], {"x": (kind, shape)}, {"y": (kind, shape)})


def opened(path: Path, given: ModelConfig | None = None) -> Backend:
    return open_model(ModelFiles("m", 1, path, given or ModelConfig(), threads=1))


@pytest.mark.parametrize(
    ("kind", "datatype", "array"),
    [
        (TensorProto.BOOL, "BOOL", np.array([[True, False]])),
        (TensorProto.UINT8, "UINT8", np.array([[0, 255]], np.uint8)),
        (TensorProto.UINT16, "UINT16", np.array([[0, 65535]], np.uint16)),
        (TensorProto.UINT32, "UINT32", np.array([[0, 2**32 - 1]], np.uint32)),
        (TensorProto.UINT64, "UINT64", np.array([[0, 2**64 - 1]], np.uint64)),
        (TensorProto.INT8, "INT8", np.array([[-128, 127]], np.int8)),
        (TensorProto.INT16, "INT16", np.array([[-32768, 1]], np.int16)),
        (TensorProto.INT32, "INT32", np.array([[-(2**31), 1]], np.int32)),
        (TensorProto.INT64, "INT64", np.array([[-(2**63), 1]], np.int64)),
        (TensorProto.FLOAT16, "FP16", np.array([[0.5, -1]], np.float16)),
        (TensorProto.BFLOAT16, "BF16", np.array([[0.5, 3e38]], ml_dtypes.bfloat16)),
        (TensorProto.FLOAT, "FP32", np.array([[0.1, -1]], np.float32)),
        (TensorProto.DOUBLE, "FP64", np.array([[0.1, -1]], np.float64)),
    ],
)
def test_every_type_is_completed_and_passes_bit_for_bit(
    tmp_path: Path, kind: int, datatype: str, array: Array
) -> None:
    backend = opened(save_identity(tmp_path / "model.onnx", kind, ("b", 2)))
    completed = backend.complete(ModelConfig())
    assert completed.max_batch_size == 64
    assert [(t.name, t.data_type, list(t.dims)) for t in completed.input] == [
        ("x", to_config(datatype), [2])
    ]
    assert completed.output[0].data_type == to_config(datatype)
    array.setflags(write=False)  # as leases arrive
    for given in (array, array[:0]):
        result = backend.infer({"x": given}, ("y",))["y"]
        assert result.dtype == array.dtype
        assert result.shape == given.shape
        assert result.tobytes() == given.tobytes()


def test_bytes_are_utf8_texts(tmp_path: Path) -> None:
    backend = opened(save_identity(tmp_path / "model.onnx", TensorProto.STRING, ("b", 2)))
    assert backend.complete(ModelConfig()).input[0].data_type == to_config("BYTES")
    given = np.array([["é".encode(), b""]], object)
    assert backend.infer({"x": given}, ("y",))["y"].tolist() == [["é", ""]]
    with pytest.raises(ModelRaisedError, match=r"input 'x': ONNX Runtime takes BYTES .* UTF-8"):
        backend.infer({"x": np.array([[b"\xff", b""]], object)}, ("y",))


@pytest.mark.parametrize(
    ("shape", "max_batch_size", "dims", "reshape"),
    [
        (("b", 3, "n"), 64, [3, -1], None),
        (("b",), 64, [1], []),
        ((2, "n"), 0, [2, -1], None),
        ((), 0, [1], []),
    ],
)
def test_the_shape_decides_about_batching(
    tmp_path: Path, shape: Shape, max_batch_size: int, dims: list[int], reshape: list[int] | None
) -> None:
    backend = opened(save_identity(tmp_path / "model.onnx", TensorProto.FLOAT, shape))
    completed = backend.complete(ModelConfig())
    assert completed.max_batch_size == max_batch_size
    for tensor in (completed.input[0], completed.output[0]):
        assert list(tensor.dims) == dims
        assert (list(tensor.reshape.shape) if tensor.HasField("reshape") else None) == reshape
    assert backend.complete(completed) == completed, "a completed one stays as it is"


def test_a_configured_batch_size_is_kept(tmp_path: Path) -> None:
    backend = opened(save_identity(tmp_path / "model.onnx", TensorProto.FLOAT, ("b", 3)))
    completed = backend.complete(ModelConfig(max_batch_size=5))
    assert completed.max_batch_size == 5
    assert list(completed.input[0].dims) == [3]


def test_a_configured_size_may_narrow_an_open_one(tmp_path: Path) -> None:
    backend = opened(save_identity(tmp_path / "model.onnx", TensorProto.FLOAT, ("b", "n")))
    given = config({"x": ("FP32", (7,))}, {"y": ("FP32", (7,))})
    assert backend.complete(given) == given


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            config({"x": ("FP64", (3,))}, {"y": ("FP32", (3,))}),
            "input 'x': config.pbtxt says FP64, the model file FP32",
        ),
        (
            config({"x": ("FP32", (4,))}, {"y": ("FP32", (3,))}),
            r"input 'x': config.pbtxt makes the model's shape \[-1, 4\], the model file has \[-1, 3\]",
        ),
        (
            config({"x": ("FP32", (3,))}, {"z": ("FP32", (3,))}),
            "config.pbtxt has output 'z', the model file has y",
        ),
        (
            config({"q": ("FP32", (3,))}, {"y": ("FP32", (3,))}),
            "config.pbtxt lacks the model's input 'x'",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_the_file_is_refused(
    tmp_path: Path, given: ModelConfig, sentence: str
) -> None:
    backend = opened(save_identity(tmp_path / "model.onnx", TensorProto.FLOAT, ("b", 3)))
    with pytest.raises(LoadError, match=sentence):
        backend.complete(given)


@pytest.mark.parametrize(
    "given", [ModelConfig(max_batch_size=4), config({"x": ("FP32", (3,))}, {"y": ("FP32", (3,))})]
)
def test_a_fixed_first_dimension_cannot_be_batched(tmp_path: Path, given: ModelConfig) -> None:
    backend = opened(save_identity(tmp_path / "model.onnx", TensorProto.FLOAT, (2, 3)))
    with pytest.raises(LoadError, match=r"\[2, 3\]"):
        backend.complete(given)


def test_an_input_with_a_default_in_the_file_may_be_configured_as_optional(tmp_path: Path) -> None:
    path = save(
        tmp_path / "model.onnx",
        [helper.make_node("Add", ["x", "bias"], ["y"])],
        {"x": (TensorProto.FLOAT, ("b", 2)), "bias": (TensorProto.FLOAT, (1, 2))},
        {"y": (TensorProto.FLOAT, ("b", 2))},
        [helper.make_tensor("bias", TensorProto.FLOAT, (1, 2), [10.0, 20.0])],
    )
    backend = opened(path)
    assert [tensor.name for tensor in backend.complete(ModelConfig()).input] == ["x"]
    x = np.zeros((1, 2), np.float32)
    assert backend.infer({"x": x}, ("y",))["y"].tolist() == [[10, 20]]
    bias = np.array([[1, 2]], np.float32)
    assert backend.infer({"x": x, "bias": bias}, ("y",))["y"].tolist() == [[1, 2]]


def test_only_requested_outputs_are_computed(tmp_path: Path) -> None:
    path = save(
        tmp_path / "model.onnx",
        [helper.make_node("Neg", ["x"], ["a"]), helper.make_node("Abs", ["x"], ["b"])],
        {"x": (TensorProto.FLOAT, ("b", 1))},
        {"a": (TensorProto.FLOAT, ("b", 1)), "b": (TensorProto.FLOAT, ("b", 1))},
    )
    backend = opened(path)
    outputs = backend.infer({"x": np.array([[-2]], np.float32)}, ("b",))
    assert {name: array.tolist() for name, array in outputs.items()} == {"b": [[2]]}


def test_a_folder_named_model_onnx_holds_the_model(tmp_path: Path) -> None:
    folder = tmp_path / "model.onnx"
    folder.mkdir()
    save_identity(folder / "model.onnx", TensorProto.FLOAT, ("b", 3))
    assert opened(folder).complete(ModelConfig()).max_batch_size == 64


def test_a_corrupt_file_and_an_unknown_operator_are_named(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(LoadError, match=r"cannot load .*model\.onnx: .*[Pp]rotobuf"):
        opened(path)
    node = helper.make_node("Nope", ["x"], ["y"])
    save(path, [node], {"x": (TensorProto.FLOAT, (1,))}, {"y": (TensorProto.FLOAT, (1,))})
    with pytest.raises(LoadError, match="Nope"):
        opened(path)


def test_a_gpu_without_its_runtime_is_refused_with_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    path = save_identity(tmp_path / "model.onnx", TensorProto.FLOAT, ("b", 3))
    with pytest.raises(LoadError, match=r"gpu:0 needs .*CUDAExecutionProvider.*extra gpu"):
        open_model(ModelFiles("m", 1, path, ModelConfig(), Device(0)))
