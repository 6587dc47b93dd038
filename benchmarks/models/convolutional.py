"""A small convolutional network over images of 110 KB, with random weights of a fixed seed: its
answers mean nothing, its cost is that of a trained one."""

from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.models.onnx_file import Graph

SIDE: Final = 96
CLASSES: Final = 10
# Channels of each layer; every one halves the side. About 2 ms a row on one core.
_CHANNELS: Final = (3, 32, 64, 128, 128)
_SEED: Final = 1


def write(path: Path) -> None:
    """Writes `image` FP32 [batch, 3, 96, 96] -> `scores` FP32 [batch, 10]."""
    random = np.random.default_rng(_SEED)
    graph = Graph()

    def normal(*shape: int) -> str:
        """Weights that keep the size of what goes through them (He's initialisation)."""
        scale = np.sqrt(2.0 / np.prod(shape[1:]))
        return graph.weight((random.standard_normal(shape) * scale).astype(np.float32))

    last = "image"
    for channels_in, channels_out in pairwise(_CHANNELS):
        bias = graph.weight(np.zeros(channels_out, np.float32))
        kernel = normal(channels_out, channels_in, 3, 3)
        last = graph.node("Conv", last, kernel, bias, kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        last = graph.node("Relu", last)
        last = graph.node("MaxPool", last, kernel_shape=[2, 2], strides=[2, 2])
    last = graph.node("Flatten", graph.node("GlobalAveragePool", last), axis=1)
    bias = graph.weight(np.zeros(CLASSES, np.float32))
    logits = graph.node("Gemm", last, normal(CLASSES, _CHANNELS[-1]), bias, transB=1)
    graph.node("Softmax", logits, name="scores", axis=1)
    graph.write(path, {"image": ("FP32", [3, SIDE, SIDE])}, {"scores": ("FP32", [CLASSES])})
