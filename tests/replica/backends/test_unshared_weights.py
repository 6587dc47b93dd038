"""Weights that cannot be shared are never in the way of a model, nor of its right answers."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.replica.backends.shared_weights_files import (
    ROWS,
    Opener,
    entry,
    made_in,
    names,
    options,
    refusal,
    write_model,
)
from tests.replica.model_files import write_identity, write_onnx
from tideserve.replica.backends import shared_weights
from tideserve.replica.backends.shared_weights import open_shared


def test_r4_what_answers_otherwise_is_refused_once_and_for_all(
    folder: Path, tmp_path: Path
) -> None:
    path, weights = write_model(tmp_path / "model" / "given.onnx")
    other, _ = write_model(tmp_path / "other" / "other.onnx", 1.01)
    opener = Opener(instead=other)
    session = open_shared(path, folder, options, opener)
    assert session is not None
    np.testing.assert_allclose(session.run(None, {"IN": ROWS})[0], ROWS @ weights, rtol=1e-5)
    assert refusal(folder) == "the saved model answers otherwise"
    assert len(names(folder)) == 2, "nothing else is left"
    opener.instead = None
    assert open_shared(path, folder, options, opener) is None
    assert opener.made == 1


def test_one_with_another_face_is_refused(folder: Path, tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    other = write_identity(tmp_path / "other" / "other.onnx")
    assert open_shared(path, folder, options, Opener(instead=other)) is not None
    assert refusal(folder) == "the saved model has other inputs or outputs"


def write_never_fit(path: Path) -> Path:
    """Two inputs that never have the same size where one row is as good as any."""
    node = helper.make_node("Reshape", ["IN", "SHAPE"], ["OUT"])
    return write_onnx(
        path,
        [node],
        [("IN", TensorProto.FLOAT, ("batch", 3))],
        [("OUT", TensorProto.FLOAT, ("any", 7))],
        [numpy_helper.from_array(np.array([-1, 7]), "SHAPE")],
    )


def test_one_that_cannot_be_compared_is_refused(folder: Path, tmp_path: Path) -> None:
    path = write_never_fit(tmp_path / "model" / "given.onnx")
    session = open_shared(path, folder, options, Opener())
    assert session is not None
    seven = np.ones((7, 3), np.float32)
    assert session.run(None, {"IN": seven})[0].shape == (3, 7)
    assert refusal(folder).startswith("the saved model cannot be compared")


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.STRING, TensorProto.BOOL])
def test_any_type_opens(folder: Path, tmp_path: Path, kind: int) -> None:
    path = write_identity(tmp_path / "model" / "given.onnx", kind)
    assert open_shared(path, folder, options, Opener()) is not None
    refused = [name for name in names(folder) if name.endswith(".refused")]
    assert bool(refused) == (kind == TensorProto.BFLOAT16), "numpy has no such type"


def spoil(folder: Path) -> None:
    (made_in(folder) / "model.onnx").write_bytes(b"not a model")


def fill_up(folder: Path) -> None:
    folder.write_bytes(b"a file in place of the folder")


@pytest.mark.parametrize("harm", [spoil, fill_up])
def test_what_is_wrong_with_the_folder_costs_the_sharing_only(
    folder: Path,
    tmp_path: Path,
    harm: Callable[[Path], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    if harm is spoil:
        open_shared(path, folder, options, Opener())
    harm(folder)
    with caplog.at_level("INFO"):
        assert open_shared(path, folder, options, Opener()) is None
    assert "this replica has its weights for itself" in caplog.text


def test_a_disk_without_room_is_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    room = shutil.disk_usage(tmp_path)._replace(free=path.stat().st_size)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    assert open_shared(path, folder, options, Opener()) is None
    assert names(folder) == ["lock"]


def test_what_was_left_half_made_is_made_anew(folder: Path, tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    opener = Opener()
    open_shared(path, folder, options, opener)
    made = made_in(folder)
    made.rename(made.with_suffix(".draft"))
    assert open_shared(path, folder, options, opener) is not None
    assert opener.made == 2
    assert names(folder) == sorted([made.name, "lock"])


def test_what_dies_twice_as_it_makes_them_is_refused(folder: Path, tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    opener = Opener()

    def die(given: Path, options: ort.SessionOptions) -> ort.InferenceSession:
        raise SystemExit  # what was made so far stays, as with one that is killed

    for _ in range(2):
        with pytest.raises(SystemExit):
            open_shared(path, folder, options, die)
    assert open_shared(path, folder, options, opener) is None
    assert open_shared(path, folder, options, opener) is None
    assert opener.made == 0
    assert refusal(folder).startswith("two replicas died")
    assert not list(entry(folder).glob("*.draft"))


def test_what_the_runtime_does_not_save_is_opened_as_it_is(folder: Path, tmp_path: Path) -> None:
    path, weights = write_model(tmp_path / "model" / "given.onnx")
    opener = Opener()

    def full(given: Path, options: ort.SessionOptions) -> ort.InferenceSession:
        if options.optimized_model_filepath:
            (Path(options.optimized_model_filepath).parent / "weights.bin").write_bytes(b"1")
            raise RuntimeError("no space left")
        return opener(given, options)

    session = open_shared(path, folder, options, full)
    assert session is not None
    np.testing.assert_allclose(session.run(None, {"IN": ROWS})[0], ROWS @ weights, rtol=1e-5)
    assert "no space left" in refusal(folder)
    assert len(names(folder)) == 2, "nothing else is left"


def test_sparse_weights_which_the_runtime_does_not_save(folder: Path, tmp_path: Path) -> None:
    values = numpy_helper.from_array(np.ones(2, np.float32), "W")
    places = numpy_helper.from_array(np.array([0, 5]), "W_places")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["IN", "W"], ["OUT"])],
        "sparse",
        [helper.make_tensor_value_info("IN", TensorProto.FLOAT, ("batch", 16))],
        [helper.make_tensor_value_info("OUT", TensorProto.FLOAT, ("batch", 2))],
        sparse_initializer=[helper.make_sparse_tensor(values, places, [16, 2])],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model" / "given.onnx"
    path.parent.mkdir()
    path.write_bytes(made.SerializeToString())
    session = open_shared(path, folder, options, Opener())
    assert session is not None
    np.testing.assert_array_equal(session.run(None, {"IN": ROWS})[0], ROWS[:, [0, 2]])


def test_one_that_hangs_as_it_makes_them_does_not_keep_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    monkeypatch.setattr(shared_weights, "WAIT_S", 0.0)
    others: list[ort.InferenceSession | None] = []

    def hang(given: Path, options: ort.SessionOptions) -> ort.InferenceSession:
        if given == path:
            others.append(open_shared(path, folder, lambda: options, Opener()))
        return Opener()(given, options)

    assert open_shared(path, folder, options, hang) is not None
    assert others == [None]


def test_a_lock_that_was_removed_with_its_folder_locks_nobody_out(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    locked = fcntl.flock

    def remove_once(file: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", locked)
        (entry(folder) / "lock").unlink()
        locked(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_once)
    assert open_shared(path, folder, options, Opener()) is not None
    assert (entry(folder) / "lock").exists()


def test_a_model_that_does_not_load_is_left_to_who_asked(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model" / "given.onnx"
    path.parent.mkdir()
    path.write_bytes(b"not a model")
    assert open_shared(path, folder, options, Opener()) is None
    assert names(folder) == ["lock"]


def test_a_file_that_cannot_be_looked_at_costs_the_sharing_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")

    def fail(_: Path) -> bool:
        raise PermissionError("a link into another's folder")

    monkeypatch.setattr(Path, "is_file", fail)
    assert open_shared(path, folder, options, Opener()) is None


NAN = float("nan")


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (np.array([1.0, NAN], np.float32), np.array([1.0, NAN], np.float32), True),
        (
            np.array([1.0], np.float32),
            np.nextafter(np.array([1.0], np.float32), np.float32(2.0)),
            False,
        ),
        (np.array([1.0], np.float32), np.array([1.0], np.float64), False),
        (np.array([1.0], np.float32), np.array([[1.0]], np.float32), False),
        (np.array([1, 2], np.int64), np.array([1, 2], np.int64), True),
        (np.array([1, 2], np.int64), np.array([1, 3], np.int64), False),
        (np.array(["a"], object), np.array(["a"], object), True),
        (np.array(["a"], object), np.array(["b"], object), False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
    ],
)
def test_r4_answers_are_alike_to_the_bit(one: object, other: object, equal: bool) -> None:
    assert shared_weights._is_equal(one, other) is equal
