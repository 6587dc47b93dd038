"""The torch backend on TorchScript and torch.export files made here."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.replica.batches import Array, config
from tideserve.replica.backends import Backend, ModelFiles
from tideserve.replica.backends.torch import TorchBackend, open_model
from tideserve.replica.datatypes import to_config, wire_name
from tideserve.replica.errors import BadOutputError, LoadError
from tideserve.replica.settings import Device
from tideserve.v1.model_config_pb2 import ModelConfig

X = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
Y = np.array([[10.0, 20.0], [30.0, 40.0]], np.float32)


class Subtract(torch.nn.Module):  # type: ignore[misc]
    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return left - right


class Two(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x + 1, x * 2


class Named(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"more": x + 1, "twice": x * 2}


class Same(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


class Shifted(torch.nn.Module):  # type: ignore[misc]
    def forward(self, x: torch.Tensor, shift: torch.Tensor | None = None) -> torch.Tensor:
        return x if shift is None else x + shift


def script(path: Path, module: torch.nn.Module) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module.eval()).save(str(path / "model.pt"))
    return path / "model.pt"


def export(path: Path, module: torch.nn.Module, *examples: torch.Tensor) -> Path:
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        module.eval(), examples, dynamic_shapes=[{0: batch}] * len(examples)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, str(path / "model.pt2"))
    return path / "model.pt2"


def opened(path: Path, given: ModelConfig | None = None) -> Backend:
    backend = open_model(ModelFiles("m", 1, path, ModelConfig(), threads=1))
    backend.complete(given or ModelConfig())
    return backend


def fp32(inputs: str, outputs: str) -> ModelConfig:
    """A configuration of FP32 [2] tensors with these names."""
    return config(
        dict.fromkeys(inputs.split(), ("FP32", (2,))),
        dict.fromkeys(outputs.split(), ("FP32", (2,))),
    )


@pytest.mark.parametrize(
    ("names", "left", "right"),
    [
        ("right left", "left", "right"),  # the arguments' own, in any order
        ("INPUT__1 INPUT__0", "INPUT__0", "INPUT__1"),  # Triton's convention
        ("first second", "first", "second"),  # the configuration's order
    ],
)
def test_inputs_find_their_arguments(tmp_path: Path, names: str, left: str, right: str) -> None:
    backend = opened(script(tmp_path, Subtract()), fp32(names, "out"))
    outputs = backend.infer({right: X, left: Y}, ("out",))
    np.testing.assert_array_equal(outputs["out"], Y - X)


@pytest.mark.parametrize(
    ("module", "names", "more", "twice"),
    [
        (Two(), "a b", "a", "b"),
        (Two(), "OUTPUT__1 OUTPUT__0", "OUTPUT__0", "OUTPUT__1"),
        (Named(), "twice more", "more", "twice"),
    ],
)
def test_outputs_are_found_by_order_index_or_key(
    tmp_path: Path, module: torch.nn.Module, names: str, more: str, twice: str
) -> None:
    path = (
        script(tmp_path, module)
        if isinstance(module, Two)
        else export(tmp_path, module, torch.zeros(2, 2))
    )
    backend = opened(path, fp32("x", names))
    outputs = backend.infer({"x": X}, (twice,))
    assert list(outputs) == [twice]
    np.testing.assert_array_equal(outputs[twice], X * 2)
    np.testing.assert_array_equal(backend.infer({"x": X}, (more,))[more], X + 1)


@pytest.mark.parametrize("make", [script, lambda path, module: export(path, module, _example())])
def test_both_kinds_of_file_give_what_the_module_gives(
    tmp_path: Path, make: Callable[[Path, torch.nn.Module], Path]
) -> None:
    torch.manual_seed(1)
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Softmax(dim=1)).eval()
    backend = opened(
        make(tmp_path, module), config({"input": ("FP32", (2,))}, {"out": ("FP32", (3,))})
    )
    rows = np.random.default_rng(1).random((5, 2), np.float32)
    rows.setflags(write=False)  # as leases arrive
    expected = module(torch.from_numpy(rows.copy())).detach().numpy()
    np.testing.assert_array_equal(backend.infer({"input": rows}, ("out",))["out"], expected)
    backend.close()


def _example() -> torch.Tensor:
    return torch.zeros(3, 2)


@pytest.mark.parametrize(
    "array",
    [
        np.array([[True, False]]),
        np.array([[0, 255]], np.uint8),
        np.array([[0, 65535]], np.uint16),
        np.array([[0, 2**32 - 1]], np.uint32),
        np.array([[0, 2**64 - 1]], np.uint64),
        np.array([[-128, 127]], np.int8),
        np.array([[-32768, 1]], np.int16),
        np.array([[-(2**31), 1]], np.int32),
        np.array([[-(2**63), 1]], np.int64),
        np.array([[0.5, -1]], np.float16),
        np.array([[0.5, 3e38]], ml_dtypes.bfloat16),
        np.array([[0.1, -1]], np.float32),
        np.array([[0.1, -1]], np.float64),
        np.zeros((0, 2), np.float32),
        np.zeros((0, 2), ml_dtypes.bfloat16),
    ],
    ids=lambda array: f"{array.dtype}-{len(array)}",
)
def test_every_type_passes_bit_for_bit(tmp_path: Path, array: Array) -> None:
    datatype = wire_name(array.dtype)
    given = config({"x": (datatype, (2,))}, {"y": (datatype, (2,))})
    backend = opened(script(tmp_path, Same()), given)
    result = backend.infer({"x": array}, ("y",))["y"]
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert result.tobytes() == array.tobytes()


def test_an_optional_input_may_be_absent(tmp_path: Path) -> None:
    given = fp32("x shift", "y")
    given.input[1].optional = True
    backend = opened(script(tmp_path, Shifted()), given)
    np.testing.assert_array_equal(backend.infer({"x": X}, ("y",))["y"], X)
    np.testing.assert_array_equal(backend.infer({"x": X, "shift": Y}, ("y",))["y"], X + Y)


def test_an_exported_program_is_called_as_it_was_exported(tmp_path: Path) -> None:
    program = torch.export.export(Subtract(), (torch.zeros(2, 2),), {"right": torch.ones(2, 2)})
    torch.export.save(program, str(tmp_path / "model.pt2"))
    backend = opened(tmp_path / "model.pt2", fp32("left right", "y"))
    np.testing.assert_array_equal(backend.infer({"right": X, "left": Y}, ("y",))["y"], Y - X)


def test_an_exported_program_completes_the_configuration(tmp_path: Path) -> None:
    path = export(tmp_path, Subtract(), torch.zeros(3, 2), torch.zeros(3, 2))
    backend = open_model(ModelFiles("m", 1, path, ModelConfig()))
    completed = backend.complete(ModelConfig())
    assert completed.max_batch_size == 64
    assert [(t.name, t.data_type, list(t.dims)) for t in completed.input] == [
        ("left", to_config("FP32"), [2]),
        ("right", to_config("FP32"), [2]),
    ]
    assert [(t.name, list(t.dims)) for t in completed.output] == [("OUTPUT__0", [2])]
    assert backend.complete(completed) == completed
    outputs = backend.infer({"left": Y, "right": X}, ("OUTPUT__0",))
    np.testing.assert_array_equal(outputs["OUTPUT__0"], Y - X)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (ModelConfig(max_batch_size=4), r"config.pbtxt must give .*forward takes left, right"),
        (fp32("a b c", "out"), "has 3 inputs, forward takes 2: left, right"),
        (fp32("IN__0 IN__7", "out"), "expected inputs numbered below 2, got IN__0, IN__7"),
        (
            config({"left": ("BYTES", (2,)), "right": ("FP32", (2,))}, {"y": ("FP32", (2,))}),
            "'left': PyTorch tensors cannot be TYPE_STRING",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(
    tmp_path: Path, given: ModelConfig, sentence: str
) -> None:
    with pytest.raises(LoadError, match=sentence):
        opened(script(tmp_path, Subtract()), given)


@pytest.mark.parametrize(
    ("module", "names", "sentence"),
    [
        (Same(), "a b", "output 'b': expected a tensor, the model returned 1 outputs"),
        (Named(), "b", "output 'b': expected a tensor, the model returned a dict of more, twice"),
    ],
)
def test_an_output_that_is_not_there_is_named(
    tmp_path: Path, module: torch.nn.Module, names: str, sentence: str
) -> None:
    backend = opened(script(tmp_path, module), fp32("x", names))
    with pytest.raises(BadOutputError, match=sentence):
        backend.infer({"x": X}, ("b",))


@pytest.mark.parametrize(
    ("name", "kind"), [("model.pt", "TorchScript file"), ("model.pt2", "torch.export program")]
)
@pytest.mark.filterwarnings("default")
def test_a_corrupt_file_is_named(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(LoadError, match=f"cannot load .*{name} as a {kind}"):
        opened(tmp_path / name)


def test_a_gpu_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = script(tmp_path, Same())
    with pytest.raises(LoadError, match="device gpu:3: this PyTorch sees 0 CUDA devices"):
        open_model(ModelFiles("m", 1, path, ModelConfig(), Device(3)))


@pytest.mark.parametrize("is_pinned", [True, False])
def test_an_input_that_lies_in_pinned_memory_is_not_copied_into_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_pinned: bool
) -> None:
    """PyTorch's meta device stands in for a GPU: it takes a tensor, without its data."""
    pinned = []

    def pin_memory(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda _: is_pinned)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    backend = opened(script(tmp_path, Same()), fp32("x", "y"))
    assert isinstance(backend, TorchBackend)
    backend._device = torch.device("meta")
    assert backend._to_tensor(X).device.type == "meta"
    assert len(pinned) == (not is_pinned)


def test_no_gradients_are_kept(tmp_path: Path) -> None:
    module: Any = torch.nn.Linear(2, 2)
    backend = opened(script(tmp_path, module), fp32("input", "y"))
    assert backend.infer({"input": X}, ("y",))["y"].shape == (2, 2)
