"""Models whose weights are shared in a test, and what lies in the folder then."""

from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from tests.replica.batches import Array
from tests.replica.model_files import write_onnx

ROWS = np.arange(48, dtype=np.float32).reshape(3, 16)


class Opener:
    """Opens sessions as the backend does; the paths that were asked for. `instead`: another file
    is opened for what was made."""

    def __init__(self, instead: Path | None = None) -> None:
        self.opened: list[Path] = []
        self.instead = instead

    def __call__(self, path: Path, options: ort.SessionOptions) -> ort.InferenceSession:
        self.opened.append(path)
        if self.instead is not None and path.name == "model.onnx":
            path = self.instead
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    @property
    def made(self) -> int:
        """How often a model's own file was opened."""
        return sum(path.name == "given.onnx" for path in self.opened)


def options() -> ort.SessionOptions:
    made = ort.SessionOptions()
    made.intra_op_num_threads = 1
    made.log_severity_level = 3
    return made


def write_model(path: Path, factor: float = 1.0) -> tuple[Path, Array]:
    """`IN` times weights; the file and the weights."""
    weights = factor * np.random.default_rng(1).standard_normal((16, 256)).astype(np.float32)
    node = helper.make_node("MatMul", ["IN", "W"], ["OUT"])
    write_onnx(
        path,
        [node],
        [("IN", TensorProto.FLOAT, ("batch", 16))],
        [("OUT", TensorProto.FLOAT, ("batch", 256))],
        [numpy_helper.from_array(weights, "W")],
    )
    return path, weights


def entry(folder: Path) -> Path:
    """The one model version's."""
    (found,) = folder.iterdir()
    return found


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in entry(folder).iterdir())


def made_in(folder: Path) -> Path:
    (found,) = (path for path in entry(folder).iterdir() if path.name != "lock")
    return found


def is_mapped(file: Path) -> bool:
    return str(file) in Path("/proc/self/maps").read_text()


def refusal(folder: Path) -> str:
    (file,) = entry(folder).glob("*.refused")
    return file.read_text()
