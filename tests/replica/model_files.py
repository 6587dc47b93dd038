"""Model files for replica tests: ONNX made node by node, TorchScript and torch.export from modules."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from tideserve.replica.backends import ModelFiles
from tideserve.v1.model_config_pb2 import ModelConfig

OPSET = 17
IR_VERSION = 8

Value = tuple[str, int, Sequence[int | str]]
"""Name, TensorProto type, shape."""


def write_onnx(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    initializers: Sequence[onnx.TensorProto] = (),
) -> Path:
    graph = helper.make_graph(
        list(nodes),
        "test",
        inputs=[helper.make_tensor_value_info(*value) for value in inputs],
        outputs=[helper.make_tensor_value_info(*value) for value in outputs],
        initializer=list(initializers),
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def write_identity(
    path: Path,
    kind: int = TensorProto.FLOAT,
    shape: Sequence[int | str] = ("batch", 2),
) -> Path:
    """`IN` -> `OUT`, the same values."""
    node = helper.make_node("Identity", ["IN"], ["OUT"])
    return write_onnx(path, [node], [("IN", kind, shape)], [("OUT", kind, shape)])


def write_script(path: Path, module: torch.nn.Module) -> Path:
    with warnings.catch_warnings():
        # What the files that users have were made with, deprecated or not.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(module).save(str(path))
    return path


def write_exported(
    path: Path, module: torch.nn.Module, example: tuple[Any, ...], dynamic: dict[str, Any] | None
) -> Path:
    program = torch.export.export(module, example, dynamic_shapes=dynamic)
    torch.export.save(program, str(path))
    return path


def files(path: Path, config: ModelConfig | None = None, **fields: Any) -> ModelFiles:
    return ModelFiles("m", 1, path, config or ModelConfig(), **fields)
