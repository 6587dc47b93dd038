"""Writes a graph as an ONNX file that every server here can read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

# Opset 17 has LayerNormalization; with IR version 8 it is read by ONNX Runtime 1.13 and later.
_OPSET: Final = 17
_IR_VERSION: Final = 8
_BATCH: Final = "batch"
_ELEMENTS: Final = {"FP32": TensorProto.FLOAT, "INT64": TensorProto.INT64}


class Graph:
    """Owns the nodes and weights of a model that is being written; tensors are named by number."""

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, NDArray[Any]] = {}

    def weight(self, value: ArrayLike) -> str:
        """Keeps a constant and returns its name."""
        name = f"weight_{len(self._weights)}"
        self._weights[name] = np.asarray(value)
        return name

    def node(self, operator: str, *sources: str, name: str | None = None, **attributes: Any) -> str:
        """Adds an operator of one output and returns that output's name."""
        result = name or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(sources), [result], **attributes))
        return result

    def write(
        self,
        path: Path,
        inputs: Mapping[str, tuple[str, Sequence[int]]],
        outputs: Mapping[str, tuple[str, Sequence[int]]],
    ) -> None:
        """Writes the file; `inputs` and `outputs` are datatype and dims without the batch's."""
        graph = helper.make_graph(
            self._nodes,
            path.parent.parent.name,
            [_info(name, *spec) for name, spec in inputs.items()],
            [_info(name, *spec) for name, spec in outputs.items()],
            [numpy_helper.from_array(value, name) for name, value in self._weights.items()],
        )
        model = helper.make_model(
            graph,
            producer_name="tideserve-benchmarks",
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=_IR_VERSION,
        )
        onnx.checker.check_model(model, full_check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(model.SerializeToString(deterministic=True))


def _info(name: str, datatype: str, dims: Sequence[int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _ELEMENTS[datatype], [_BATCH, *dims])
