"""Writes trained networks as model files: ONNX node by node, TorchScript by tracing."""

import warnings
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from examples.train.network import PIXEL_MAX, DigitsNetwork

# Opset 17 with IR version 8: read by every ONNX Runtime since 1.13.
OPSET: Final = 17
IR_VERSION: Final = 8
BATCH: Final = "batch"


def write_digits_onnx(network: DigitsNetwork, path: Path) -> None:
    """Writes `image` FP32 [batch, 1, 8, 8] -> `scores` FP32 [batch, 10]."""
    convolution = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Mul", ["image", "pixel_scale"], ["scaled"]),
        helper.make_node(
            "Conv", ["scaled", "first.weight", "first.bias"], ["first"], **convolution
        ),
        helper.make_node("Relu", ["first"], ["first_relu"]),
        helper.make_node(
            "Conv", ["first_relu", "second.weight", "second.bias"], ["second"], **convolution
        ),
        helper.make_node("Relu", ["second"], ["second_relu"]),
        helper.make_node(
            "MaxPool", ["second_relu"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]
        ),
        helper.make_node("Flatten", ["pooled"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "last.weight", "last.bias"], ["logits"], transB=1),
        helper.make_node("Softmax", ["logits"], ["scores"], axis=1),
    ]
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    weights["pixel_scale"] = np.array(1.0 / PIXEL_MAX, dtype=np.float32)
    _write(path, "digits", nodes, ("image", [1, 8, 8]), ("scores", [10]), weights)


def write_identity_onnx(path: Path) -> None:
    """Writes `IN` FP32 [batch, 16] -> `OUT`, the same values."""
    nodes = [helper.make_node("Identity", ["IN"], ["OUT"])]
    _write(path, "identity", nodes, ("IN", [16]), ("OUT", [16]), {})


def write_digits_torchscript(network: DigitsNetwork, path: Path) -> None:
    """Traces the network; the batch dimension stays free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        # TorchScript is deprecated in favour of torch.export, and is what this example shows.
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(network, torch.zeros(2, 1, 8, 8))
        traced.save(str(path))


def _write(
    path: Path,
    name: str,
    nodes: list[onnx.NodeProto],
    source: tuple[str, list[int]],
    result: tuple[str, list[int]],
    weights: dict[str, NDArray[np.float32]],
) -> None:
    graph = helper.make_graph(
        nodes,
        name,
        inputs=[helper.make_tensor_value_info(source[0], TensorProto.FLOAT, [BATCH, *source[1]])],
        outputs=[helper.make_tensor_value_info(result[0], TensorProto.FLOAT, [BATCH, *result[1]])],
        initializer=[numpy_helper.from_array(value, key) for key, value in weights.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="tideserve-examples",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(model, full_check=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString(deterministic=True))
