"""ONNX files: loaded, completed, run in every type, refused with the reason."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.replica.batches import Array, config
from tests.replica.model_files import files, write_identity, write_onnx
from tideserve.replica.backends.onnx import open_model
from tideserve.replica.completion import DEFAULT_MAX_BATCH_SIZE
from tideserve.replica.errors import LoadError, ModelRaisedError
from tideserve.replica.settings import Device
from tideserve.v1.model_config_pb2 import TYPE_FP32, ModelConfig, ModelOptimizationPolicy

TYPES: dict[int, Array] = {
    TensorProto.BOOL: np.array([[True, False]]),
    TensorProto.UINT8: np.array([[0, 255]], np.uint8),
    TensorProto.UINT16: np.array([[0, 65535]], np.uint16),
    TensorProto.UINT32: np.array([[0, 2**32 - 1]], np.uint32),
    TensorProto.UINT64: np.array([[0, 2**64 - 1]], np.uint64),
    TensorProto.INT8: np.array([[-128, 127]], np.int8),
    TensorProto.INT16: np.array([[-32768, 32767]], np.int16),
    TensorProto.INT32: np.array([[-(2**31), 2**31 - 1]], np.int32),
    TensorProto.INT64: np.array([[-(2**63), 2**63 - 1]], np.int64),
    TensorProto.FLOAT16: np.array([[0.5, -np.inf]], np.float16),
    TensorProto.BFLOAT16: np.array([[0.5, -3e38]], ml_dtypes.bfloat16),
    TensorProto.FLOAT: np.array([[0.1, -3e38]], np.float32),
    TensorProto.DOUBLE: np.array([[0.1, 1e308]], np.float64),
}
NAMES = {
    TensorProto.FLOAT: "FP32",
    TensorProto.DOUBLE: "FP64",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
}


def type_name(kind: int) -> str:
    name: str = TensorProto.DataType.Name(kind)
    return NAMES.get(kind, name)


def ones(*shape: int) -> Array:
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("kind", TYPES, ids=type_name)
def test_every_type_is_completed_and_comes_back_bit_for_bit(kind: int, tmp_path: Path) -> None:
    backend = open_model(files(write_identity(tmp_path / "model.onnx", kind)))
    completed = backend.complete(ModelConfig())
    name = f"TYPE_{type_name(kind)}"
    assert completed == config(
        {"IN": (name.removeprefix("TYPE_"), [2])},
        {"OUT": (name.removeprefix("TYPE_"), [2])},
        DEFAULT_MAX_BATCH_SIZE,
    )
    given = TYPES[kind]
    (result,) = backend.infer({"IN": given}, ("OUT",)).values()
    assert result.dtype == given.dtype
    assert result.tobytes() == given.tobytes()


def test_zero_rows_of_bf16_come_back(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", TensorProto.BFLOAT16)
    empty = np.empty((0, 2), ml_dtypes.bfloat16)
    result = open_model(files(path)).infer({"IN": empty}, ("OUT",))["OUT"]
    assert result.shape == (0, 2)
    assert result.dtype == empty.dtype


def test_bytes_are_utf8_text_both_ways(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", TensorProto.STRING, ["batch", 1])
    backend = open_model(files(path))
    assert backend.complete(ModelConfig()) == config(
        {"IN": ("BYTES", [1])}, {"OUT": ("BYTES", [1])}, DEFAULT_MAX_BATCH_SIZE
    )
    given = np.array([["grün".encode()], [b""]], dtype=object)
    assert backend.infer({"IN": given}, ("OUT",))["OUT"].tolist() == [["grün"], [""]]
    with pytest.raises(ModelRaisedError, match=r"input 'IN': .* UTF-8"):
        backend.infer({"IN": np.array([[b"\xff"]], dtype=object)}, ("OUT",))


def test_a_file_with_a_fixed_first_dimension_is_not_batched(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", shape=[3, 2])
    completed = open_model(files(path)).complete(ModelConfig())
    assert completed == config({"IN": ("FP32", [3, 2])}, {"OUT": ("FP32", [3, 2])}, 0)


def test_max_batch_size_over_a_fixed_first_dimension_is_refused(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", shape=[3, 2])
    with pytest.raises(LoadError, match=r"first dimension of 'IN' is fixed: .* \[3, 2\]"):
        open_model(files(path)).complete(ModelConfig(max_batch_size=4))


def test_a_scalar_per_row_is_completed_with_a_reshape(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx", shape=["batch"])
    completed = open_model(files(path)).complete(ModelConfig(max_batch_size=4))
    assert completed.max_batch_size == 4
    for tensor in (completed.input[0], completed.output[0]):
        assert list(tensor.dims) == [1]
        assert tensor.HasField("reshape")
        assert list(tensor.reshape.shape) == []


def test_only_requested_outputs_are_computed(tmp_path: Path) -> None:
    path = write_onnx(
        tmp_path / "model.onnx",
        [helper.make_node("Neg", ["IN"], ["A"]), helper.make_node("Abs", ["IN"], ["B"])],
        [("IN", TensorProto.FLOAT, ["n", 1])],
        [("A", TensorProto.FLOAT, ["n", 1]), ("B", TensorProto.FLOAT, ["n", 1])],
    )
    results = open_model(files(path)).infer({"IN": ones(2, 1)}, ("B",))
    assert {name: array.tolist() for name, array in results.items()} == {"B": [[1.0], [1.0]]}


def test_an_initializer_that_is_an_input_may_be_configured_as_optional(tmp_path: Path) -> None:
    path = write_onnx(
        tmp_path / "model.onnx",
        [helper.make_node("Mul", ["IN", "SCALE"], ["OUT"])],
        [("IN", TensorProto.FLOAT, [2]), ("SCALE", TensorProto.FLOAT, [1])],
        [("OUT", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.array([3.0], np.float32), "SCALE")],
    )
    backend = open_model(files(path))
    assert [tensor.name for tensor in backend.complete(ModelConfig()).input] == ["IN"]
    made = config(
        {"IN": ("FP32", [2]), "SCALE": ("FP32", [1])}, {"OUT": ("FP32", [2])}, max_batch_size=0
    )
    made.input[1].optional = True
    assert backend.complete(made) == made
    assert backend.infer({"IN": ones(2)}, ("OUT",))["OUT"].tolist() == [3.0, 3.0]
    scale = np.array([5.0], np.float32)
    assert backend.infer({"IN": ones(2), "SCALE": scale}, ("OUT",))["OUT"].tolist() == [5.0, 5.0]


def test_a_type_without_a_name_on_the_wire_is_named(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("S", TensorProto.FLOAT, None)
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["IN"], ["S"])],
        "test",
        inputs=[helper.make_tensor_value_info("IN", TensorProto.FLOAT, [2])],
        outputs=[sequence],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(LoadError, match=r"'S' has type seq\(tensor\(float\)\): expected a tensor"):
        open_model(files(path)).complete(ModelConfig())


def test_a_directory_holds_the_file(tmp_path: Path) -> None:
    write_identity(tmp_path / "model.onnx" / "model.onnx")
    backend = open_model(files(tmp_path / "model.onnx"))
    assert backend.infer({"IN": ones(1, 2)}, ("OUT",))["OUT"].tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("content", [b"", b"not a model", None], ids=["empty", "text", "missing"])
def test_a_file_that_is_no_model_is_a_load_error(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LoadError, match=r"ONNX Runtime cannot load .*model\.onnx"):
        open_model(files(path))


def test_a_truncated_file_is_a_load_error(tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(LoadError, match="cannot load"):
        open_model(files(path))


def test_a_gpu_without_its_runtime_is_a_load_error_that_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    path = write_identity(tmp_path / "model.onnx")
    with pytest.raises(LoadError, match=r"device gpu:0 needs .* install the extra gpu"):
        open_model(files(path, device=Device(0)))


@pytest.mark.parametrize("level", [-1, 0, 1])
def test_graph_levels_of_the_configuration_are_taken(level: int, tmp_path: Path) -> None:
    path = write_identity(tmp_path / "model.onnx")
    graph = ModelOptimizationPolicy.Graph(level=level)
    made = ModelConfig(optimization=ModelOptimizationPolicy(graph=graph))
    backend = open_model(files(path, made, threads=1))
    assert backend.infer({"IN": ones(1, 2)}, ("OUT",))["OUT"].tolist() == [[1.0, 1.0]]


def test_what_the_model_raises_passes_through_and_the_next_batch_runs(tmp_path: Path) -> None:
    backend = open_model(files(write_identity(tmp_path / "model.onnx")))
    with pytest.raises(Exception, match="Got invalid dimensions"):
        backend.infer({"IN": ones(1, 3)}, ("OUT",))
    assert backend.infer({"IN": ones(1, 2)}, ("OUT",))["OUT"].tolist() == [[1.0, 1.0]]


def contradicting(change: dict[str, Any]) -> ModelConfig:
    made = config({"IN": ("FP32", [2])}, {"OUT": ("FP32", [2])})
    if "input" in change:
        made.input[0].name = change["input"]
    if "output" in change:
        made.output[0].name = change["output"]
    if "extra" in change:
        made.input.add(name=change["extra"], data_type=TYPE_FP32, dims=[2])
    if "dims" in change:
        made.output[0].dims[:] = change["dims"]
    if "type" in change:
        made.input[0].data_type = change["type"]
    return made


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"input": "X"}, "lacks the model's input 'IN'"),
        ({"extra": "X"}, "has input 'X', the model file has IN"),
        ({"output": "Y"}, "has output 'Y', the model file has OUT"),
        ({"dims": [3]}, r"output 'OUT': .* shape \[-1, 3\], the model file has \[-1, 2\]"),
        ({"dims": [2, 1]}, r"shape \[-1, 2, 1\], the model file has \[-1, 2\]"),
        ({"type": 10}, "input 'IN': config.pbtxt says FP16, the model file FP32"),
    ],
)
def test_a_configuration_that_contradicts_the_file_is_refused(
    change: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    backend = open_model(files(write_identity(tmp_path / "model.onnx")))
    with pytest.raises(LoadError, match=sentence):
        backend.complete(contradicting(change))


@pytest.mark.parametrize("kind", TYPES, ids=type_name)
def test_every_type_is_written_where_it_is_wanted(kind: int, tmp_path: Path) -> None:
    backend = open_model(files(write_identity(tmp_path / "model.onnx", kind)))
    given = TYPES[kind]
    wanted = np.zeros_like(given)
    for _ in range(3):
        wanted[...] = 0
        placed = backend.infer_into({"IN": given}, {"OUT": wanted})
        # numpy has no BF16: its bits come as the runtime gives them.
        assert placed == (kind != TensorProto.BFLOAT16)
        assert not placed or wanted.tobytes() == given.tobytes()


def test_outputs_of_another_size_are_not_written_beyond_their_place(tmp_path: Path) -> None:
    twice = helper.make_node("Concat", ["IN", "IN"], ["OUT"], axis=1)
    shape = ("batch", "columns")
    path = write_onnx(
        tmp_path / "model.onnx",
        [twice],
        [("IN", TensorProto.FLOAT, shape)],
        [("OUT", TensorProto.FLOAT, ("batch", "twice"))],
    )
    backend = open_model(files(path))
    memory = np.zeros((3, 4), np.float32)
    assert backend.infer_into({"IN": ones(1, 2)}, {"OUT": memory[1:2]})
    assert memory.sum() == 4
    for columns in (1, 3, 1, 3):  # by a binding the second time
        memory[...] = 0
        assert not backend.infer_into({"IN": ones(1, columns)}, {"OUT": memory[1:2]})
        assert not memory[[0, 2]].any()


def test_an_output_that_is_also_an_input_is_not_taken_for_written(tmp_path: Path) -> None:
    """The runtime gives the input itself, and leaves the place as the batch before it did."""
    tensor = ("IN", TensorProto.FLOAT, ("batch", 2))
    path = write_onnx(
        tmp_path / "model.onnx",
        [helper.make_node("Neg", ["IN"], ["OUT"])],
        [tensor],
        [("OUT", TensorProto.FLOAT, ("batch", 2)), tensor],
    )
    backend = open_model(files(path))
    places = {"OUT": np.zeros((1, 2), np.float32), "IN": np.zeros((1, 2), np.float32)}
    assert backend.infer_into({"IN": ones(1, 2)}, places), "without a binding, by a copy"
    assert (places["IN"] == 1).all()
    assert not backend.infer_into({"IN": 2 * ones(1, 2)}, places)
    for _ in range(3):
        assert backend.infer_into({"IN": ones(1, 2)}, {"OUT": places["OUT"]})
        assert (places["OUT"] == -1).all()


def test_an_initializer_that_a_caller_replaces_is_the_callers_in_its_batches_only(
    tmp_path: Path,
) -> None:
    tensors = [(name, TensorProto.FLOAT, ("batch", 2)) for name in ("IN", "bias")]
    path = write_onnx(
        tmp_path / "model.onnx",
        [helper.make_node("Add", ["IN", "bias"], ["OUT"])],
        tensors,
        [("OUT", TensorProto.FLOAT, ("batch", 2))],
        [numpy_helper.from_array(ones(1, 2), "bias")],
    )
    backend = open_model(files(path))
    place = {"OUT": np.zeros((1, 2), np.float32)}
    for _ in range(2):
        for bias in (2, 3):
            assert backend.infer_into({"IN": ones(1, 2), "bias": bias * ones(1, 2)}, place)
            assert (place["OUT"] == 1 + bias).all()
        assert backend.infer_into({"IN": ones(1, 2)}, place)
        assert (place["OUT"] == 2).all()
    assert not backend.infer_into({"IN": ones(1, 2), "other": ones(1, 2)}, place)


def test_strings_are_not_written_where_they_are_wanted(tmp_path: Path) -> None:
    backend = open_model(files(write_identity(tmp_path / "model.onnx", TensorProto.STRING)))
    texts = np.array([[b"a", b"b"]], dtype=object)
    for _ in range(2):
        assert not backend.infer_into({"IN": texts}, {"OUT": np.empty_like(texts)})
