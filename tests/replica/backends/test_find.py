"""Which runtime serves a version: by backend, platform, file name, or the file that is there."""

from pathlib import Path

import pytest

from tideserve.replica.backends import KINDS, BackendKind, find
from tideserve.replica.errors import LoadError, NotInstalledError
from tideserve.v1.model_config_pb2 import ModelConfig

(TORCH,) = (kind for kind in KINDS if kind.backend == "pytorch")


@pytest.fixture
def version(tmp_path: Path) -> Path:
    for name in ("model.onnx", "model.pt2", "model.py", "net.pt", "weights.bin"):
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("made", "backend", "file", "platform"),
    [
        (ModelConfig(backend="python"), "python", "model.py", "python"),
        (ModelConfig(backend="pytorch"), "pytorch", "model.pt2", "torch_export"),
        (ModelConfig(platform="onnxruntime_onnx"), "onnxruntime", "model.onnx", "onnxruntime_onnx"),
        (ModelConfig(platform="torch_export"), "pytorch", "model.pt2", "torch_export"),
        (ModelConfig(default_model_filename="net.pt"), "pytorch", "net.pt", "pytorch_libtorch"),
        (
            ModelConfig(backend="onnxruntime", default_model_filename="weights.bin"),
            "onnxruntime",
            "weights.bin",
            "onnxruntime_onnx",
        ),
    ],
)
def test_the_configuration_says_which(
    made: ModelConfig, backend: str, file: str, platform: str, version: Path
) -> None:
    found = find(made, version)
    assert (found.kind.backend, found.path, found.platform) == (backend, version / file, platform)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.backend)
def test_the_file_that_is_there_says_which(kind: BackendKind, tmp_path: Path) -> None:
    for name, platform in kind.files:
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).touch()
        found = find(ModelConfig(), folder)
        assert (found.kind, found.path, found.platform) == (kind, folder / name, platform)


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (
            ModelConfig(backend="tensorflow"),
            "backend 'tensorflow' is not one .*: expected .*onnxruntime",
        ),
        (ModelConfig(platform="ensemble"), "platform 'ensemble' is not one"),
        (ModelConfig(default_model_filename="gone.onnx"), "'gone.onnx' is not in"),
        (
            ModelConfig(default_model_filename="weights.bin"),
            "'weights.bin' does not tell the backend",
        ),
    ],
)
def test_what_cannot_be_found_is_named(made: ModelConfig, sentence: str, version: Path) -> None:
    with pytest.raises(LoadError, match=sentence):
        find(made, version)


def test_a_folder_without_a_model_file_is_listed(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(LoadError, match=r"expected one of model\.onnx, .* found notes\.txt"):
        find(ModelConfig(), tmp_path)


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="found nothing"):
        find(ModelConfig(), tmp_path / "none")


def test_a_runtime_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr("tideserve.replica.backends.import_module", import_module)
    sentence = r"it needs torch, which is not installed: pip install 'tideserve\[torch\]'"
    with pytest.raises(NotInstalledError, match=sentence):
        TORCH.opener()


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libcudart.so.12: cannot open shared object file", name="torch"),
        ModuleNotFoundError("No module named 'sympy'", name="sympy"),
    ],
)
def test_a_runtime_that_is_installed_and_broken_is_told_in_its_own_words(
    error: ImportError, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(name: str) -> None:
        raise error

    monkeypatch.setattr("tideserve.replica.backends.import_module", import_module)
    with pytest.raises(LoadError, match=str(error)) as raised:
        TORCH.opener()
    assert not isinstance(raised.value, NotInstalledError)
