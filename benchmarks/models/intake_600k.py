"""600 KB in, 64 bytes out and nothing to compute: what taking in an image's bytes costs."""

from pathlib import Path
from typing import Final

from benchmarks.models.onnx_file import Graph

VALUES: Final = 150_000
#: Of these, the first so many are the answer.
ANSWERED: Final = 16


def write(path: Path) -> None:
    """Writes `IN` FP32 [batch, 150000] -> `OUT` FP32 [batch, 16], the first values."""
    graph = Graph()
    begin, end, axis = (graph.weight([value]) for value in (0, ANSWERED, 1))
    graph.node("Slice", "IN", begin, end, axis, name="OUT")
    graph.write(path, {"IN": ("FP32", [VALUES])}, {"OUT": ("FP32", [ANSWERED])})
