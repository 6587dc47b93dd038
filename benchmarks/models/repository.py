"""Where a measured model lies: among the examples, or written here when it is first needed."""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from benchmarks.models import convolutional, intake_600k, sentence, tensor_600k

_ROOT: Final = Path(__file__).resolve().parents[2]
EXAMPLES: Final = _ROOT / "examples" / "models"
WRITTEN: Final = _ROOT / ".cache" / "bench-models"
_WRITERS: Final[Mapping[str, Callable[[Path], None]]] = {
    "tensor_600k": tensor_600k.write,
    "intake_600k": intake_600k.write,
    "convolutional": convolutional.write,
    "sentence": sentence.write,
}


def is_available(model: str) -> bool:
    """False where a model's weights are not installed."""
    return model != "sentence" or sentence.is_installed()


def model_file(model: str) -> Path:
    """The model's ONNX file. Writes it where it is not yet there or older than its script.

    Raises NotInstalledError where its weights are not on this machine.
    """
    writer = _WRITERS.get(model)
    if writer is None:
        return EXAMPLES / model / "1" / "model.onnx"
    path = WRITTEN / model / "1" / "model.onnx"
    if not path.exists() or path.stat().st_mtime < _changed_at(model):
        # Whole or not at all: a run that is stopped here leaves no half of a model.
        WRITTEN.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=WRITTEN) as folder:
            new = Path(folder) / model / "1" / "model.onnx"
            writer(new)
            path.parent.mkdir(parents=True, exist_ok=True)
            new.replace(path)
    return path


def _changed_at(model: str) -> float:
    scripts = (Path(__file__).with_name(f"{model}.py"), Path(__file__).with_name("onnx_file.py"))
    return max(script.stat().st_mtime for script in scripts)
