"""The repository's folders: what is found, what is said of what is wrong, generations."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server.repository.conftest import AddModel
from tideserve.server.errors import RepositoryError
from tideserve.server.repository.scan import FoundModel, scan, scan_model
from tideserve.v1.model_config_pb2 import ModelConfig


def _only(root: Path) -> FoundModel:
    (model,) = scan(root).models
    return model


def _error(root: Path) -> str:
    model = _only(root)
    assert (model.config, model.versions, model.backend) == (None, (), "")
    assert model.error is not None
    return model.error


def _generation(root: Path, version: int = 1) -> str:
    (generation,) = (it.generation for it in _only(root).versions if it.version == version)
    return generation


def test_models_come_by_name_with_config_versions_and_backend(
    root: Path, add_model: AddModel
) -> None:
    add_model("b", 'max_batch_size: 4 backend: "onnxruntime"', "1/model.onnx", "12/model.onnx")
    add_model("a", None, "3/model.py")
    found = scan(root)
    assert found.root == str(root)
    assert [model.name for model in found.models] == ["a", "b"]
    a, b = found.models
    assert a.path == str(root / "a")
    assert a.config == ModelConfig(name="a", backend="python")
    assert b.config == ModelConfig(name="b", backend="onnxruntime", max_batch_size=4)
    assert [version.version for version in b.versions] == [12]
    assert (b.error, b.unsupported, b.warnings) == (None, (), ())


def test_a_relative_root_gives_paths_that_replicas_elsewhere_can_open(
    root: Path, add_model: AddModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model("a", None, "1/model.py")
    monkeypatch.chdir(root.parent)
    found = scan(Path("models"))
    assert found.root == str(root)
    assert found.models[0].path == str(root / "a")


def test_files_hidden_folders_and_what_is_no_version_are_ignored(
    root: Path, add_model: AddModel
) -> None:
    (root / "README.md").write_text("models")
    add_model(".git", "nonsense")
    add_model("m", None, *(f"{name}/model.py" for name in ("1", "0", "02", "x", "-3", "1.5", "٣")))
    (root / "m" / "7").write_text("a file, not a version")
    model = _only(root)
    assert [version.version for version in model.versions] == [1]
    assert model.warnings == ()


def test_the_policy_selects_versions(root: Path, add_model: AddModel) -> None:
    add_model("m", "version_policy { all {} }", "1/model.pt", "2/model.pt2", "3/model.pt")
    model = _only(root)
    assert [version.version for version in model.versions] == [1, 2, 3]
    assert model.backend == "pytorch"


@pytest.mark.parametrize(
    ("config", "file", "backend"),
    [
        (None, "model.onnx", "onnxruntime"),
        (None, "model.pt", "pytorch"),
        (None, "model.pt2", "pytorch"),
        (None, "model.py", "python"),
        ('backend: "python"', "model.py", "python"),
        ('platform: "onnxruntime_onnx"', "model.onnx", "onnxruntime"),
        ('platform: "pytorch_libtorch" backend: "pytorch"', "model.pt", "pytorch"),
        ('platform: "libtorch"', "model.pt", "pytorch"),
        ('platform: "torch_export"', "model.pt2", "pytorch"),
        ('default_model_filename: "net.onnx"', "net.onnx", "onnxruntime"),
        ('default_model_filename: "code/run.py"', "code/run.py", "python"),
        ('default_model_filename: "blob" backend: "pytorch"', "blob", "pytorch"),
    ],
)
def test_the_backend_is_told_by_the_config_or_the_file(
    root: Path, add_model: AddModel, config: str | None, file: str, backend: str
) -> None:
    add_model("m", config, f"1/{file}")
    model = _only(root)
    assert (model.error, model.backend) == (None, backend)
    assert model.config is not None
    assert model.config.backend == backend


def test_without_a_config_an_onnx_file_goes_before_a_python_one(
    root: Path, add_model: AddModel
) -> None:
    add_model("m", None, "1/model.py", "1/model.onnx")
    assert _only(root).backend == "onnxruntime"


def test_without_a_config_the_newest_version_with_a_model_tells_the_backend(
    root: Path, add_model: AddModel
) -> None:
    folder = add_model("m", None, "1/model.onnx", "2/model.py", "3/notes.txt")
    model = _only(root)
    assert model.backend == "python"
    assert [version.version for version in model.versions] == [2]
    assert model.warnings == (f"{folder / '3'}: left out: expected model.py, found none",)


@pytest.mark.parametrize(
    ("config", "files", "sentence"),
    [
        (
            None,
            (),
            "{m}: expected a backend in config.pbtxt or a version folder (1, 2, ...) with one of model.onnx, model.pt, model.pt2, model.py, found neither",
        ),
        (
            'backend: "onnxruntime"',
            ("1/model.pt",),
            "{c}: expected a version folder (1, 2, ...) with model.onnx, found none",
        ),
        (
            'backend: "pytorch"',
            (),
            "{c}: expected a version folder (1, 2, ...) with model.pt or model.pt2, found none",
        ),
        (
            'backend: "tensorrt"',
            ("1/model.plan",),
            "{c}: backend: expected one of onnxruntime, pytorch, python, got 'tensorrt'",
        ),
        (
            'platform: "tensorflow_savedmodel"',
            ("1/model.onnx",),
            "{c}: platform: expected one of onnxruntime_onnx, pytorch_libtorch, python, libtorch, torch_export, got 'tensorflow_savedmodel'",
        ),
        (
            'platform: "pytorch_libtorch" backend: "python"',
            ("1/model.py",),
            "{c}: expected a platform of backend 'python', got 'pytorch_libtorch'",
        ),
        (
            'default_model_filename: "../../secret.onnx"',
            ("1/model.onnx",),
            "{c}: default_model_filename: expected a name inside the version's folder, got '../../secret.onnx'",
        ),
        (
            'default_model_filename: "/etc/model.onnx"',
            ("1/model.onnx",),
            "{c}: default_model_filename: expected a name inside the version's folder, got '/etc/model.onnx'",
        ),
        (
            'default_model_filename: "weights.bin"',
            ("1/weights.bin",),
            "{c}: expected a backend (onnxruntime, pytorch, python), because default_model_filename 'weights.bin' does not tell it; got none",
        ),
        (
            'name: "other"',
            ("1/model.py",),
            "{c}: name: expected the folder's name, 'm', or none, got 'other'",
        ),
        (
            "version_policy { specific { versions: [3, 4] } }",
            ("1/model.py", "2/model.py"),
            "{c}: version_policy: expected one that selects of the versions 1, 2, got {{specific {{ versions: 3 versions: 4 }}}}",
        ),
        ("max_batch_size: x", ("1/model.py",), "{c}:1:17: expected an integer, got x"),
        (
            "max_batch_size: 4 dynamic_batching { preferred_batch_size: 8 }",
            ("1/model.py",),
            "{c}: dynamic_batching.preferred_batch_size: expected rows from 1 to max_batch_size, 4, got 8",
        ),
        (
            'parameters { key: "tideserve.batchin" value { string_value: "eager" } }',
            ("1/model.py",),
            "{c}: parameters: there is no key 'tideserve.batchin': did you mean 'tideserve.batching'?",
        ),
        (
            'input { name: "x" dims: 0 }',
            ("1/model.py",),
            "{c}: input 'x': dims: expected sizes of 1 or more, or -1 for any size, got 0",
        ),
        (
            'platform: "ensemble" ensemble_scheduling {}',
            (),
            "{c}: ensembles are not supported; expected a model with a file of its own, call the steps one after the other",
        ),
    ],
)
def test_what_is_wrong_with_a_model_is_said(
    root: Path, add_model: AddModel, config: str | None, files: tuple[str, ...], sentence: str
) -> None:
    folder = add_model("m", config, *files)
    assert _error(root) == sentence.format(m=folder, c=folder / "config.pbtxt")


def test_one_bad_model_disturbs_no_other(root: Path, add_model: AddModel) -> None:
    add_model("good", None, "1/model.onnx")
    before = scan(root).models
    add_model("bad", "{", "1/model.onnx")
    add_model("empty")
    bad, empty, good = scan(root).models
    assert bad.error is not None
    assert empty.error is not None
    assert (good,) == before


def test_a_model_that_cannot_be_read_disturbs_no_other(
    root: Path, add_model: AddModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model("good", None, "1/model.onnx")
    locked = add_model("locked", None, "1/model.onnx")
    iterdir, is_dir = Path.iterdir, Path.is_dir

    def locked_is_dir(path: Path) -> bool:
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", locked_is_dir)
    monkeypatch.setattr(
        Path, "iterdir", lambda path: iterdir(path) if locked_is_dir(path) else iter(())
    )
    good, bad = scan(root).models
    assert good.error is None
    assert bad.error == (
        f"{locked}: expected a file or folder that this user can read, got: Permission denied"
    )


def test_a_config_that_links_to_nothing_is_an_error_not_a_missing_config(
    root: Path, add_model: AddModel
) -> None:
    folder = add_model("m", None, "1/model.onnx")
    (folder / "config.pbtxt").symlink_to(folder / "gone")
    assert "No such file or directory" in _error(root)


def test_a_folder_name_that_cannot_travel_is_an_error_in_words_that_can(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/m\xff\n")).mkdir()
    model = _only(root)
    assert model.error is not None
    assert "expected a folder name of printable characters" in model.error
    for text in (model.name, model.path, model.error):
        text.encode("utf-8")
    assert "\n" not in model.error


def test_a_version_whose_file_is_still_to_come_is_left_out_and_said(
    root: Path, add_model: AddModel
) -> None:
    folder = add_model("m", None, "1/model.onnx", "2/model.onnx.part")
    model = _only(root)
    assert [version.version for version in model.versions] == [1]
    assert model.warnings == (f"{folder / '2'}: left out: expected model.onnx, found none",)
    add_model("m", None, "2/model.onnx")
    assert [version.version for version in _only(root).versions] == [2]
    assert _only(root).warnings == ()


def test_a_specific_version_that_is_not_there_is_said(root: Path, add_model: AddModel) -> None:
    folder = add_model("m", "version_policy { specific { versions: [1, 9] } }", "1/model.py")
    model = _only(root)
    assert [version.version for version in model.versions] == [1]
    assert model.warnings == (
        f"{folder / 'config.pbtxt'}: version_policy names 9, which has no folder",
    )


def test_unsupported_fields_are_named_not_refused(root: Path, add_model: AddModel) -> None:
    add_model("m", "response_cache { enable: true } optimization { priority: 1 }", "1/model.py")
    model = _only(root)
    assert model.error is None
    assert model.unsupported == ("optimization.priority", "response_cache")


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_root_that_is_no_folder_is_refused_with_its_path_and_what_to_do(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "models"
    if kind == "file":
        path.write_text("")
    with pytest.raises(RepositoryError) as refused:
        scan(path)
    assert str(refused.value).startswith(f"{path}: expected a folder of models")
    assert "give `tideserve serve` the path of a model repository" in str(refused.value)


def test_an_empty_root_has_no_models(root: Path) -> None:
    assert scan(root).models == ()


def test_one_model_is_read_as_by_a_scan(root: Path, add_model: AddModel) -> None:
    add_model("m", None, "1/model.onnx")
    assert scan_model(root, "m") == _only(root)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "other", "../models/m", "m/1", "m/", "/m", ".git", "m\0", "\udcff"]
)
def test_a_name_that_is_no_models_folder_gives_none(
    root: Path, add_model: AddModel, name: str
) -> None:
    add_model("m", None, "1/model.onnx")
    add_model(".git", None, "1/model.onnx")
    assert scan_model(root, name) is None


# --- generations ----------------------------------------------------------------------


def _write(path: str, content: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(content)

    return change


def _touch(folder: Path) -> None:
    os.utime(folder / "1" / "model.py", ns=(1, 1))


def _rename(folder: Path) -> None:
    (folder / "1" / "weights.bin").rename(folder / "1" / "weights.old")


def _remove(folder: Path) -> None:
    (folder / "1" / "weights.bin").unlink()


def _nothing(folder: Path) -> None:
    assert folder.is_dir()


CONFIG = "max_batch_size: 4\n"


@pytest.mark.parametrize(
    "change",
    [
        _write("config.pbtxt", "max_batch_size: 8"),
        _write("config.pbtxt", CONFIG + "instance_group { count: 2 }"),
        _write("1/model.py", "longer than it was"),
        _write("1/new.bin", ""),
        _write("1/lib/new.py", ""),
        _touch,
        _rename,
        _remove,
    ],
)
def test_a_change_that_matters_changes_the_generation(
    root: Path, add_model: AddModel, change: Callable[[Path], None]
) -> None:
    folder = add_model("m", CONFIG, "1/model.py", "1/weights.bin")
    before = _generation(root)
    change(folder)
    assert _generation(root) != before


@pytest.mark.parametrize(
    "change",
    [
        _nothing,
        _write("config.pbtxt", "# better\n  max_batch_size : 4 "),
        _write("config.pbtxt", CONFIG + "version_policy { all {} }"),
        _write("config.pbtxt", 'name: "m" backend: "python"' + CONFIG),
        _write("2/model.py", "another version"),
        _write("notes.txt", "beside the versions"),
        _write("1/.model.py.swp", "an editor's"),
        _write("1/__pycache__/model.pyc", "what loading leaves"),
    ],
)
def test_a_change_that_does_not_matter_leaves_the_generation(
    root: Path, add_model: AddModel, change: Callable[[Path], None]
) -> None:
    folder = add_model(
        "m", CONFIG + "version_policy { specific { versions: 1 } }", "1/model.py", "1/weights.bin"
    )
    before = _generation(root)
    change(folder)
    assert _generation(root) == before


def test_the_order_of_parameters_does_not_change_the_generation(
    root: Path, add_model: AddModel
) -> None:
    lines = [f'parameters {{ key: "{key}" value {{ string_value: "v" }} }}' for key in range(20)]
    add_model("m", "\n".join(lines), "1/model.py")
    before = _generation(root)
    add_model("m", "\n".join(reversed(lines)))
    assert _generation(root) == before


def test_versions_of_equal_configs_and_files_differ_by_time_alone(
    root: Path, add_model: AddModel
) -> None:
    folder = add_model("m", "version_policy { all {} }", "1/model.py", "2/model.py")
    for version in ("1", "2"):
        os.utime(folder / version / "model.py", ns=(5, 5))
    one, two = _only(root).versions
    assert one.generation == two.generation
    os.utime(folder / "2" / "model.py", ns=(5, 6))
    one_after, two_after = _only(root).versions
    assert one_after == one
    assert two_after != two


def test_a_folder_that_goes_while_it_is_read_does_not_stop_the_scan(
    root: Path, add_model: AddModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_model("m", "version_policy { all {} }", "1/model.py", "2/model.py")
    scandir = os.scandir

    def scandir_after_removal(path: Path) -> object:
        if str(path).endswith("/2"):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_after_removal)
    assert _only(root).error is None


def test_a_file_that_links_to_nothing_does_not_stop_the_scan(
    root: Path, add_model: AddModel
) -> None:
    folder = add_model("m", None, "1/model.py")
    before = _generation(root)
    (folder / "1" / "gone.bin").symlink_to(folder / "nowhere")
    assert _generation(root) == before
