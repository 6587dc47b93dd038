"""From an assignment to a model that serves: phases, warm-up, and why one cannot load."""

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import text_format
from onnx import TensorProto, helper

from tests.replica.batches import Arrays, config, runner_of
from tideserve.replica import warmup
from tideserve.replica.errors import DeviceLostError, LoadError
from tideserve.replica.loading import Assignment, Loaded, NotLoaded, load
from tideserve.replica.news import loaded
from tideserve.replica.settings import Device
from tideserve.replica.warmup import warm_up
from tideserve.v1.model_config_pb2 import ModelConfig

Model = Callable[[Arrays], Any]


def zeros(inputs: Arrays) -> Arrays:
    return {"y": np.zeros((len(inputs["x"]), 1), np.float32)}


def warmed(
    made: ModelConfig, model: Model, path: Path = Path("unused"), *, synthetic: bool = True
) -> tuple[list[int], list[Arrays]]:
    """The profile's rows, and what the model was given."""
    runner, backend, io = runner_of(made, model)
    points = warm_up(runner, made, io, path, synthetic=synthetic)
    assert all(point.latency_s > 0 for point in points)
    return [point.rows for point in points], [inputs for inputs, _ in backend.requests]


def with_warmup(text: str) -> ModelConfig:
    made = config({"x": ("FP32", (2,))}, {"y": ("FP32", (1,))})
    return text_format.Parse(f"model_warmup {{ name: 'w' {text} }}", made)


# --- synthetic warm-up --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_batch_size", "rows"), [(0, [1]), (1, [1]), (6, [1, 2, 4, 6]), (8, [1, 2, 4, 8])]
)
def test_zeros_of_growing_size_up_to_the_largest_batch(
    max_batch_size: int, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(warmup, "SYNTHETIC_BUDGET_S", 60.0)
    made = config({"x": ("FP32", (2, 3))}, {"y": ("FP32", (-1, 1))}, max_batch_size)
    if max_batch_size:
        made.output[0].dims[:] = [1]
    seen, given = warmed(made, zeros)
    assert seen == rows
    shape = (2, 3) if max_batch_size == 0 else (rows[-1], 2, 3)
    assert given[-1]["x"].shape == shape
    assert not given[-1]["x"].any()
    assert len(given) == 2 * len(rows), "the second of each size is measured"


def test_bytes_are_empty_ones() -> None:
    made = config({"x": ("BYTES", (1,))}, {"y": ("FP32", (1,))}, 1)
    _, given = warmed(made, zeros)
    assert given[0]["x"].tolist() == [[b""]]


def test_growing_stops_when_the_next_size_would_pass_the_budget(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(warmup, "SYNTHETIC_BUDGET_S", 0.0)
    made = config({"x": ("FP32", (2,))}, {"y": ("FP32", (1,))}, 64)
    assert warmed(made, zeros)[0] == [1]


@pytest.mark.parametrize(("dims", "synthetic"), [((-1,), True), ((2,), False)])
def test_open_shapes_and_models_with_effects_are_not_warmed(
    dims: tuple[int, ...], synthetic: bool
) -> None:
    made = config({"x": ("FP32", dims)}, {"y": ("FP32", (1,))})
    assert warmed(made, zeros, synthetic=synthetic) == ([], [])


def test_zeros_that_fail_are_logged_and_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    def model(inputs: Arrays) -> Arrays:
        if len(inputs["x"]) == 2:
            raise ValueError("not two")
        return zeros(inputs)

    made = config({"x": ("FP32", (2,))}, {"y": ("FP32", (1,))})
    assert warmed(made, model)[0] == [1]
    assert "warm-up with 2 rows of zeros failed" in caplog.text


def test_a_device_lost_while_warming_up_is_a_failed_load() -> None:
    def model(inputs: Arrays) -> Arrays:
        raise DeviceLostError("gone")

    made = config({"x": ("FP32", (2,))}, {"y": ("FP32", (1,))})
    with pytest.raises(LoadError, match="the device failed while warming up: gone"):
        warmed(made, model)


# --- configured warm-up -------------------------------------------------------------------------


def test_configured_batches_run_instead_and_repeat_their_row(tmp_path: Path) -> None:
    (tmp_path / "warmup").mkdir()
    row = np.array([1.5, 2.5], np.float32)
    (tmp_path / "warmup" / "row.bin").write_bytes(row.tobytes())
    made = with_warmup(
        "batch_size: 3 count: 2 inputs { key: 'x' value { data_type: TYPE_FP32 dims: 2 "
        "input_data_file: 'row.bin' } }"
    )
    rows, given = warmed(made, zeros, tmp_path, synthetic=False)
    assert rows == [3]
    assert len(given) == 2
    np.testing.assert_array_equal(given[0]["x"], [row, row, row])


@pytest.mark.parametrize("kind", ["BOOL", "INT8", "UINT64", "FP16", "FP32", "BF16"])
def test_random_data_is_of_its_type_and_the_same_each_time(kind: str) -> None:
    made = config({"x": (kind, (50,))}, {"y": ("FP32", (1,))})
    text_format.Parse(
        f"model_warmup {{ batch_size: 1 inputs {{ key: 'x' value {{ data_type: TYPE_{kind} "
        "dims: 50 random_data: true } } }",
        made,
    )
    _, (first,) = warmed(made, zeros)
    _, (second,) = warmed(made, zeros)
    assert len(set(first["x"].reshape(-1).tolist())) > 1
    assert first["x"].tobytes() == second["x"].tobytes()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("batch_size: 9", "model_warmup 'w': expected a batch_size of at most 8"),
        ("inputs { key: 'x' value { dims: 2 } }", "input 'x' has no data_type"),
        (
            "inputs { key: 'x' value { data_type: TYPE_FP32 dims: -1 } }",
            r"expected dims of 0 or more, got \[-1\]",
        ),
        (
            "inputs { key: 'x' value { data_type: TYPE_FP32 dims: 2 input_data_file: 'no' } }",
            "no cannot be read: No such file or directory",
        ),
        (
            "inputs { key: 'x' value { data_type: TYPE_FP32 dims: 2 input_data_file: 'short' } }",
            r"expected 8 bytes for FP32\[2\], got 3",
        ),
        ("inputs { key: 'z' value { data_type: TYPE_FP32 dims: 2 } }", "failed: .*'z'"),
    ],
)
def test_a_configured_batch_that_fails_is_a_failed_load(
    tmp_path: Path, text: str, sentence: str
) -> None:
    (tmp_path / "warmup").mkdir()
    (tmp_path / "warmup" / "short").write_bytes(b"abc")
    with pytest.raises(LoadError, match=sentence):
        warmed(with_warmup(text), zeros, tmp_path)


# --- loading ------------------------------------------------------------------------------------


def onnx_assignment(path: Path, *, content: bytes | None = None) -> Assignment:
    (path / "1").mkdir()
    node = helper.make_node("Identity", ["x"], ["y"])
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("b", 4)) for name in "xy"]
    graph = helper.make_graph([node], "made", value[:1], value[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    file = path / "1" / "model.onnx"
    file.write_bytes(model.SerializeToString() if content is None else content)
    onnx.checker.check_model(model)
    return Assignment("m", 1, "g", path, ModelConfig())


def test_a_model_without_a_configuration_is_completed_measured_and_warmed(tmp_path: Path) -> None:
    begun: list[str] = []
    loaded = load(onnx_assignment(tmp_path), Device(), 1, begun.append)
    assert isinstance(loaded, Loaded)
    assert begun == ["import", "load", "warm-up"]
    assert [phase.name for phase in loaded.phases] == begun
    assert all(phase.duration_s > 0 for phase in loaded.phases)
    made = loaded.config
    assert (made.name, made.backend, made.platform, made.max_batch_size) == (
        "m",
        "onnxruntime",
        "onnxruntime_onnx",
        64,
    )
    assert loaded.profile[0].rows == 1


def test_a_corrupt_file_is_told_with_the_phases_so_far(tmp_path: Path) -> None:
    result = load(onnx_assignment(tmp_path, content=b"no model"), Device(), 1, lambda _: None)
    assert isinstance(result, NotLoaded)
    assert result.message.startswith("model 'm' version 1: ONNX Runtime cannot load")
    assert [phase.name for phase in result.phases] == ["import", "load"]


def test_a_version_without_a_model_file_is_told(tmp_path: Path) -> None:
    assignment = Assignment("m", 2, "g", tmp_path, ModelConfig())
    result = load(assignment, Device(), 1, lambda _: None)
    assert isinstance(result, NotLoaded)
    assert "found nothing" in result.message


def python_assignment(folder: Path, text: str) -> Assignment:
    (folder / "1").mkdir()
    (folder / "1" / "model.py").write_text(text)
    return Assignment("m", 1, "g", folder, ModelConfig(name="m"))


def test_what_is_not_installed_is_hopeless_and_one_sentence(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assignment = python_assignment(tmp_path, "import no_such_module_at_all\n")
    result = load(assignment, Device(), 1, lambda _: None)
    assert isinstance(result, NotLoaded)
    assert result.hopeless
    assert loaded(result, 0.0).load_failed.hopeless
    assert not caplog.records


def test_what_may_go_another_time_is_not_hopeless_and_shows_where_it_was_raised(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A replica that ran in this process keeps its log to itself.
    monkeypatch.setattr(logging.getLogger("tideserve.replica"), "propagate", True)
    assignment = python_assignment(tmp_path, "raise OSError('no route to the weights')\n")
    result = load(assignment, Device(), 1, lambda _: None)
    assert isinstance(result, NotLoaded)
    assert not result.hopeless
    assert not loaded(result, 0.0).load_failed.hopeless
    assert [record.exc_info is not None for record in caplog.records] == [True]


def test_only_name_version_and_generation_make_a_model() -> None:
    one = Assignment("m", 1, "g", Path("a"), ModelConfig())
    assert one.same_model(Assignment("m", 1, "g", Path("b"), ModelConfig(max_batch_size=3)))
    assert not one.same_model(Assignment("m", 1, "h", Path("a"), ModelConfig()))
    assert not one.same_model(Assignment("m", 2, "g", Path("a"), ModelConfig()))


def test_starting_a_replica_imports_no_model_runtime_and_no_command_line() -> None:
    """A forked child pays for nothing that its model does not need."""
    code = (
        "import sys, tideserve.replica.__main__\n"
        "names = {'torch', 'onnxruntime', 'typer', 'rich', 'tideserve.server'}\n"
        "print(sorted(names & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
