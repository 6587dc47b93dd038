"""Weights that replicas share: made once, mapped by all, of the files that lie there now."""

import os
import platform
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from tests.replica.backends.shared_weights_files import (
    ROWS,
    Opener,
    entry,
    is_mapped,
    made_in,
    names,
    options,
    write_model,
)
from tests.replica.batches import Array
from tideserve.replica.backends import shared_weights, weights_key
from tideserve.replica.backends.shared_weights import open_shared


def test_the_first_makes_what_all_map(folder: Path, tmp_path: Path) -> None:
    path, weights = write_model(tmp_path / "model" / "given.onnx")
    opener = Opener()
    first = open_shared(path, folder, options, opener)
    assert opener.made == 1
    second = open_shared(path, folder, options, opener)
    assert opener.made == 1
    for session in (first, second):
        assert session is not None
        np.testing.assert_allclose(session.run(None, {"IN": ROWS})[0], ROWS @ weights, rtol=1e-5)
    made = made_in(folder)
    assert sorted(file.name for file in made.iterdir()) == ["model.onnx", "weights.bin"]
    assert is_mapped(made / "weights.bin")


def test_the_maker_maps_it_too(folder: Path, tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    session = open_shared(path, folder, options, Opener())
    assert session is not None
    assert is_mapped(made_in(folder) / "weights.bin")


def test_small_models_are_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    monkeypatch.setattr(shared_weights, "MIN_BYTES", path.stat().st_size + 1)
    assert open_shared(path, folder, options, Opener()) is None
    assert not folder.exists()


@pytest.mark.parametrize("what", ["file", "level"])
def test_other_files_and_settings_replace_what_was_made(
    folder: Path, tmp_path: Path, what: str
) -> None:
    path, weights = write_model(tmp_path / "model" / "given.onnx")
    opener = Opener()
    open_shared(path, folder, options, opener)
    before = names(folder)

    def basic() -> ort.SessionOptions:
        made = options()
        made.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        return made

    if what == "file":
        # As large, and of the same time: an archive that was unpacked, a copy that keeps times.
        times = path.stat()
        while path.stat().st_ctime_ns == times.st_ctime_ns:  # the kernel's clock ticks in ms
            path, weights = write_model(path, 2.0)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert path.stat().st_size == times.st_size
    session = open_shared(path, folder, options if what == "file" else basic, opener)
    assert session is not None
    np.testing.assert_allclose(session.run(None, {"IN": ROWS})[0], ROWS @ weights, rtol=1e-5)
    assert opener.made == 2
    assert len(names(folder)) == len(before) == 2
    assert names(folder) != before


@pytest.mark.parametrize("what", ["_boot", "_processor", "runtime"])
def test_another_boot_processor_or_runtime_makes_its_own(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    opener = Opener()
    open_shared(path, folder, options, opener)
    if what == "runtime":
        monkeypatch.setattr(ort, "__version__", "another")
    else:
        monkeypatch.setattr(weights_key, what, lambda: "another")
    open_shared(path, folder, options, opener)
    assert opener.made == 2


def test_models_of_the_same_name_do_not_replace_each_others(folder: Path, tmp_path: Path) -> None:
    opener = Opener()
    for parent in ("one", "two"):
        path, _ = write_model(tmp_path / parent / "model" / "1" / "given.onnx")
        open_shared(path, folder, options, opener)
    assert len(list(folder.iterdir())) == 2


def test_who_opens_them_keeps_them_from_being_removed(folder: Path, tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    open_shared(path, folder, options, Opener())
    os.utime(made_in(folder), (1.0, 1.0))
    open_shared(path, folder, options, Opener())
    assert made_in(folder).stat().st_mtime > 1.0


def test_nobody_else_reads_or_replaces_them(folder: Path, tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    open_shared(path, folder, options, Opener())
    for private in (entry(folder), made_in(folder)):
        assert private.stat().st_mode & 0o077 == 0


def test_what_another_machine_made_stays(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    opener = Opener()
    open_shared(path, folder, options, opener)
    theirs = made_in(folder)
    monkeypatch.setattr(platform, "node", lambda: "another")
    open_shared(path, folder, options, opener)
    assert opener.made == 2
    assert theirs.name in names(folder)
    assert len(names(folder)) == 3


def test_weights_in_a_folder_of_their_own_count(folder: Path, tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    beside = path.parent / "data" / "weights"
    beside.parent.mkdir()
    beside.write_bytes(b"1")
    opener = Opener()
    open_shared(path, folder, options, opener)
    beside.write_bytes(b"12")
    open_shared(path, folder, options, opener)
    assert opener.made == 2


def test_replicas_that_start_together_make_it_once(folder: Path, tmp_path: Path) -> None:
    path, weights = write_model(tmp_path / "model" / "given.onnx")
    opener = Opener()
    answers: list[Array] = []
    begin = threading.Barrier(4)

    def start() -> None:
        begin.wait()
        session = open_shared(path, folder, options, opener)
        assert session is not None
        answers.append(session.run(None, {"IN": ROWS})[0])

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert opener.made == 1
    for answer in answers:
        np.testing.assert_allclose(answer, ROWS @ weights, rtol=1e-5)
    assert len(answers) == 4


def link(path: Path, to: Path | str) -> None:
    """At once, as a release is turned over."""
    path.with_suffix(".next").symlink_to(to)
    path.with_suffix(".next").replace(path)


@pytest.mark.parametrize("what", ["file", "folder", "on the way"])
def test_r4_a_link_that_is_turned_there_and_back_while_it_is_read(
    folder: Path, tmp_path: Path, what: str
) -> None:
    path, weights = write_model(tmp_path / "first" / "given.onnx")
    other, _ = write_model(tmp_path / "second" / "given.onnx", 2.0)
    asked = tmp_path / "model" / "given.onnx"
    turned, one, two = asked, path, other
    if what == "folder":
        turned, one, two = asked.parent, path.parent, other.parent
    else:
        asked.parent.mkdir()
    if what == "on the way":
        turned, one, two = tmp_path / "current", path.parent, other.parent
        link(asked, turned / path.name)
    link(turned, one)

    def turn(given: Path, options: ort.SessionOptions) -> ort.InferenceSession:
        if not options.optimized_model_filepath:
            return Opener()(given, options)
        link(turned, two)
        session = Opener()(given, options)
        if what != "on the way":
            link(turned, one)
        return session

    open_shared(asked, folder, options, turn)
    link(turned, one)
    session = open_shared(asked, folder, options, Opener())
    assert session is not None
    np.testing.assert_allclose(session.run(None, {"IN": ROWS})[0], ROWS @ weights, rtol=1e-5)


def test_r4_a_link_to_a_folder_beside_the_model_counts(folder: Path, tmp_path: Path) -> None:
    path, _ = write_model(tmp_path / "model" / "given.onnx")
    for name in ("one", "two"):
        (path.parent / name).mkdir()
        (path.parent / name / "weights").write_bytes(b"1")
    opener = Opener()
    for made, name in enumerate(("one", "two"), 1):
        link(path.parent / "data", name)
        open_shared(path, folder, options, opener)
        assert opener.made == made
