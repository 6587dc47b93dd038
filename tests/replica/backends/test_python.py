"""Python models: what `load` is given, what is taken from `infer`, and every way to be wrong."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.replica.batches import config
from tests.replica.model_files import files
from tideserve.replica.backends.python import PythonBackend, open_model
from tideserve.replica.errors import BadOutputError, LoadError, NotInstalledError
from tideserve.replica.settings import Device
from tideserve.v1.model_config_pb2 import ModelConfig

COMPLETE = config({"IN": ("FP32", [1])}, {"OUT": ("FP32", [1])})
CLASS = """
class Model:
    def load(self, context):
        {load}
    def infer(self, inputs):
        {infer}
    def unload(self):
        self.unloaded = True
"""


@pytest.fixture(autouse=True)
def _imports_undone() -> Iterator[None]:
    """Loading a model adds to the import path and to the modules of the process."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def write(
    folder: Path, text: str = "", *, load: str = "pass", infer: str = "return inputs"
) -> Path:
    path = folder / "1" / "model.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or CLASS.format(load=load, infer=infer))
    return path


def model_of(backend: PythonBackend) -> object:
    return backend._model


def test_load_is_given_the_context(tmp_path: Path) -> None:
    path = write(tmp_path, load="self.context = context")
    made = ModelConfig()
    made.parameters["form"].string_value = "NFC"
    backend = open_model(files(path, made, device=Device(1), threads=2))
    context = backend._model.context
    assert (context.name, context.version) == ("m", 1)
    assert context.path == path.parent
    assert context.parameters == {"form": "NFC"}
    assert (context.device, context.threads) == ("gpu:1", 2)


def test_a_batch_goes_in_and_out_as_a_dict(tmp_path: Path) -> None:
    backend = open_model(files(write(tmp_path, infer='return {"OUT": inputs["IN"] * 2}')))
    given = np.array([[1.0], [2.0]], np.float32)
    assert backend.infer({"IN": given}, ("OUT",))["OUT"].tolist() == [[2.0], [4.0]]


def test_what_infer_returns_must_be_a_dict(tmp_path: Path) -> None:
    backend = open_model(files(write(tmp_path, infer='return inputs["IN"]')))
    with pytest.raises(BadOutputError, match="return a dict of arrays, got ndarray"):
        backend.infer({"IN": np.zeros(1)}, ("OUT",))


def test_close_unloads(tmp_path: Path) -> None:
    backend = open_model(files(write(tmp_path)))
    backend.close()
    assert backend._model.unloaded


def test_a_module_beside_the_model_can_be_imported(tmp_path: Path) -> None:
    text = "import beside_test_python\n" + CLASS.format(
        load="self.value = beside_test_python.VALUE", infer="return inputs"
    )
    path = write(tmp_path, text)
    (path.parent / "beside_test_python.py").write_text("VALUE = 7\n")
    assert open_model(files(path))._model.value == 7


def test_two_versions_do_not_share_a_module(tmp_path: Path) -> None:
    counter = "COUNT = []\n" + CLASS.format(
        load="COUNT.append(1); self.count = len(COUNT)", infer="return inputs"
    )
    backends = [open_model(files(write(tmp_path / name, counter))) for name in ("a", "b")]
    assert [backend._model.count for backend in backends] == [1, 1]


def test_a_complete_configuration_is_kept(tmp_path: Path) -> None:
    assert open_model(files(write(tmp_path))).complete(COMPLETE) == COMPLETE


@pytest.mark.parametrize("missing", ["input", "output"])
def test_types_and_sizes_must_be_configured(missing: str, tmp_path: Path) -> None:
    made = ModelConfig()
    made.CopyFrom(COMPLETE)
    made.ClearField(missing)
    with pytest.raises(LoadError, match=r"config\.pbtxt must give input and output"):
        open_model(files(write(tmp_path))).complete(made)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1\n", "expected a class named Model, found none"),
        ("class TritonPythonModel: pass\n", "TritonPythonModel, which needs Triton's own"),
        ("class Model:\n    def infer(self, inputs): ...\n", "class Model lacks load, unload"),
        ("def broken(:\n", "importing it raised SyntaxError"),
        ("import no_such_module_at_all\n", "needs the module no_such_module_at_all, which"),
        ("raise SystemExit('no licence')\n", "importing it raised SystemExit: no licence"),
        (CLASS.format(load="1 / 0", infer="..."), "load raised ZeroDivisionError: division"),
        (CLASS.format(load="raise SystemExit(3)", infer="..."), "load raised SystemExit: 3"),
    ],
)
def test_a_file_that_cannot_serve_is_named_with_the_reason(
    text: str, sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(LoadError, match=rf"model\.py.*{sentence}"):
        open_model(files(write(tmp_path, text)))


@pytest.mark.parametrize(
    "text",
    [
        "import no_such_module_at_all\n",
        CLASS.format(load="import no_such_module_at_all", infer="..."),
    ],
)
def test_a_module_that_is_not_installed_is_told_apart(text: str, tmp_path: Path) -> None:
    with pytest.raises(NotInstalledError, match="no_such_module_at_all"):
        open_model(files(write(tmp_path, text)))


def test_a_missing_file_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="FileNotFoundError"):
        open_model(files(tmp_path / "model.py"))


def test_a_file_that_is_no_python_source_is_a_load_error(tmp_path: Path) -> None:
    path = tmp_path / "model.txt"
    path.write_text("text")
    with pytest.raises(LoadError, match="is no Python source file"):
        open_model(files(path))


def test_a_failed_import_leaves_no_module_behind(tmp_path: Path) -> None:
    before = {name for name in sys.modules if name.startswith("tideserve_model_")}
    with pytest.raises(LoadError):
        open_model(files(write(tmp_path, "1 / 0\n")))
    assert {name for name in sys.modules if name.startswith("tideserve_model_")} == before
