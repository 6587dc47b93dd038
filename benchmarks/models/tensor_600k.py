"""600 KB in and out and nothing to compute: what moving bytes costs."""

from pathlib import Path
from typing import Final

from benchmarks.models.onnx_file import Graph

VALUES: Final = 150_000


def write(path: Path) -> None:
    """Writes `IN` FP32 [batch, 150000] -> `OUT`, the same values."""
    graph = Graph()
    graph.node("Identity", "IN", name="OUT")
    graph.write(path, {"IN": ("FP32", [VALUES])}, {"OUT": ("FP32", [VALUES])})
