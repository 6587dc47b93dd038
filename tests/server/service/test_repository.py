"""RepositoryIndex, Load and Unload over real folders, and the polls."""

import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server.fake_front import World
from tests.server.samples import make_config
from tideserve.server.errors import Code, RepositoryError
from tideserve.server.models import ModelKey, ModelState
from tideserve.server.repository.scan import RepositoryScan, scan
from tideserve.server.service.repository import ModelControl
from tideserve.v1 import methods
from tideserve.v1.inference_pb2 import (
    RepositoryIndexRequest,
    RepositoryIndexResponse,
    RepositoryModelLoadRequest,
    RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest,
    RepositoryModelUnloadResponse,
)

CONFIG = """
backend: "onnxruntime"
max_batch_size: 8
input { name: "IN" data_type: TYPE_FP32 dims: 2 }
output { name: "OUT" data_type: TYPE_FP32 dims: 2 }
"""
INDEX = f"/{methods.INFERENCE_SERVICE}/RepositoryIndex"
LOAD = f"/{methods.INFERENCE_SERVICE}/RepositoryModelLoad"
UNLOAD = f"/{methods.INFERENCE_SERVICE}/RepositoryModelUnload"
Make = Callable[[ModelControl], World]


def write_model(
    root: Path, name: str, config: str = CONFIG, versions: tuple[int, ...] = (1,)
) -> Path:
    folder = root / name
    for version in versions:
        (folder / str(version)).mkdir(parents=True, exist_ok=True)
        (folder / str(version) / "model.onnx").write_bytes(b"onnx")
    (folder / "config.pbtxt").write_text(config)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_model(tmp_path, "a")
    write_model(tmp_path, "b", versions=(1, 3))
    return tmp_path


@pytest.fixture
def make(root: Path) -> Iterator[Make]:
    worlds = []

    def make_world(control: ModelControl) -> World:
        world = World(root=root, control=control)
        world.models.unload("m")
        world.turn()
        worlds.append(world)
        return world

    yield make_world
    for world in worlds:
        world.services.repository.close()


def settle(world: World, is_done: Callable[[], bool]) -> None:
    """Turns until the worker's findings are in."""
    deadline_s = time.monotonic() + 10
    while not is_done():
        assert time.monotonic() < deadline_s, "the worker is not done after 10 s"
        world.turn(after_s=0.1)
        os.sched_yield()


def index(world: World, *, ready: bool = False) -> list[tuple[str, str, str]]:
    call_id = world.call(INDEX, RepositoryIndexRequest(ready=ready))
    settle(world, lambda: not world.is_open(call_id))
    response = world.answer(call_id, RepositoryIndexResponse)
    return sorted((it.name, it.version, it.state) for it in response.models)


def load(world: World, name: str) -> int:
    call_id = world.call(LOAD, RepositoryModelLoadRequest(model_name=name))
    settle(world, lambda: not world.is_open(call_id) or bool(waiting(world)))
    return call_id


def waiting(world: World) -> list[int]:
    return list(world.services.repository._waiting)


def make_ready(world: World, name: str) -> None:
    for entry in world.models.of_model(name):
        world.models.ready(entry.key, make_config(name))
    world.turn()


# --- at the start ------------------------------------------------------------------------------


@pytest.mark.parametrize("control", [ModelControl.NONE, ModelControl.POLL])
def test_all_models_are_loaded_at_the_start(make: Make, control: ModelControl) -> None:
    world = make(control)
    world.services.repository.load_at_start(())

    # Without a policy the newest version is served.
    assert index(world) == [("a", "1", "LOADING"), ("b", "3", "LOADING")]


def test_with_explicit_control_only_the_named_are(make: Make) -> None:
    world = make(ModelControl.EXPLICIT)
    world.services.repository.load_at_start(("b",))

    assert index(world) == [("a", "", "UNAVAILABLE"), ("b", "3", "LOADING")]


def test_a_named_model_that_is_not_there_stops_the_start(make: Make, root: Path) -> None:
    world = make(ModelControl.EXPLICIT)

    with pytest.raises(RepositoryError, match=f"--load-model x: not in {root}, which has: a, b"):
        world.services.repository.load_at_start(("x",))


def test_a_repository_that_is_not_there_stops_the_start(make: Make, root: Path) -> None:
    shutil.rmtree(root)

    with pytest.raises(RepositoryError, match="expected a folder of models"):
        make(ModelControl.NONE).services.repository.load_at_start(())


def test_a_broken_model_disturbs_no_other_and_is_listed_with_its_reason(
    make: Make, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_model(root, "bad", "max_batch_sise: 3")
    world = make(ModelControl.NONE)
    world.services.repository.load_at_start(())

    assert ("bad", "", "UNAVAILABLE") in index(world)
    assert world.models.entries[next(iter(world.models.entries))].state is ModelState.LOADING
    assert "max_batch_sise" in caplog.text
    call_id = world.call(INDEX, RepositoryIndexRequest())
    settle(world, lambda: not world.is_open(call_id))
    (bad,) = [
        it for it in world.answer(call_id, RepositoryIndexResponse).models if it.name == "bad"
    ]
    assert "config.pbtxt" in bad.reason


# --- index -------------------------------------------------------------------------------------


def test_the_index_can_be_of_the_ready_ones_alone(make: Make) -> None:
    world = make(ModelControl.NONE)
    world.services.repository.load_at_start(())
    make_ready(world, "a")

    assert index(world, ready=True) == [("a", "1", "READY")]
    assert index(world) == [("a", "1", "READY"), ("b", "3", "LOADING")]


def test_an_index_of_a_repository_that_went_away_fails_alone(make: Make, root: Path) -> None:
    world = make(ModelControl.NONE)
    world.services.repository.load_at_start(())
    shutil.rmtree(root)
    call_id = world.call(INDEX, RepositoryIndexRequest())
    settle(world, lambda: not world.is_open(call_id))

    assert "expected a folder of models" in world.failed(call_id).message


def test_calls_that_come_during_a_scan_share_the_next_one(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(ModelControl.NONE)
    go_on, scans = threading.Event(), []

    def slow(path: Path) -> RepositoryScan:
        scans.append(path)
        assert go_on.wait(20)
        return scan(path)

    monkeypatch.setattr("tideserve.server.service.repository.scan", slow)
    calls = [world.call(INDEX, RepositoryIndexRequest()) for _ in range(50)]
    go_on.set()
    settle(world, lambda: not any(map(world.is_open, calls)))

    assert len(scans) == 2
    calls.append(world.call(INDEX, RepositoryIndexRequest()))
    settle(world, lambda: not world.is_open(calls[-1]))
    assert len(scans) == 3


def test_a_mistake_on_the_worker_is_the_calls_answer(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = make(ModelControl.NONE)

    def break_down(_: Path) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr("tideserve.server.service.repository.scan", break_down)
    call_id = world.call(INDEX, RepositoryIndexRequest())
    settle(world, lambda: not world.is_open(call_id))

    status = world.failed(call_id)
    assert (status.code, "secret" in status.message) == (Code.INTERNAL, False)
    assert "ZeroDivisionError" in caplog.text


# --- load and unload ---------------------------------------------------------------------------


def test_a_load_is_answered_when_the_model_is_ready(make: Make) -> None:
    world = make(ModelControl.EXPLICIT)
    call_id = load(world, "a")
    assert world.is_open(call_id)
    make_ready(world, "a")

    world.answer(call_id, RepositoryModelLoadResponse)
    again = world.call(LOAD, RepositoryModelLoadRequest(model_name="a"))
    settle(world, lambda: not world.is_open(again))
    world.answer(again, RepositoryModelLoadResponse)


def test_a_load_that_fails_says_why(make: Make) -> None:
    world = make(ModelControl.EXPLICIT)
    call_id = load(world, "a")
    world.models.fail(next(iter(world.models.entries)), "model.onnx is no model")
    world.turn()

    status = world.failed(call_id)
    assert status.code == Code.INVALID_ARGUMENT
    assert "'a' could not be loaded" in status.message
    assert "model.onnx is no model" in status.message


def test_a_failed_load_can_be_tried_again(make: Make) -> None:
    world = make(ModelControl.EXPLICIT)
    load(world, "a")
    world.models.fail(next(iter(world.models.entries)), "boom")
    world.turn()
    call_id = load(world, "a")
    assert world.is_open(call_id)
    make_ready(world, "a")

    world.answer(call_id, RepositoryModelLoadResponse)


@pytest.mark.parametrize("name", ["x", "..", "a/../b", "a/1", ".hidden", "/etc"])
def test_a_model_that_is_not_in_the_repository_is_not_found(make: Make, name: str) -> None:
    world = make(ModelControl.EXPLICIT)
    call_id = load(world, name)

    assert world.failed(call_id).code == Code.NOT_FOUND


def test_a_broken_model_is_refused_with_file_and_line_and_serves_what_it_had(
    make: Make, root: Path
) -> None:
    world = make(ModelControl.EXPLICIT)
    load(world, "a")
    make_ready(world, "a")
    (root / "a" / "config.pbtxt").write_text("\nmax_batch_size: many")
    call_id = load(world, "a")

    status = world.failed(call_id)
    assert status.code == Code.INVALID_ARGUMENT
    assert "config.pbtxt:2" in status.message
    assert world.models.bind("a", "").key.name == "a"


@pytest.mark.parametrize("path", [LOAD, UNLOAD])
def test_a_model_without_a_name_is_refused(make: Make, path: str) -> None:
    world = make(ModelControl.EXPLICIT)

    assert world.failed(world.call(path, b"")).code == Code.INVALID_ARGUMENT


@pytest.mark.parametrize("control", [ModelControl.NONE, ModelControl.POLL])
def test_without_explicit_control_loading_is_refused_with_the_way_out(
    make: Make, control: ModelControl
) -> None:
    world = make(control)
    for path, request in (
        (LOAD, RepositoryModelLoadRequest(model_name="a")),
        (UNLOAD, RepositoryModelUnloadRequest(model_name="a")),
    ):
        status = world.failed(world.call(path, request))
        assert status.code == Code.UNAVAILABLE
        assert (
            f"'{control.value}'; start the server with --model-control explicit" in status.message
        )


def test_loading_with_parameters_is_refused_by_name(make: Make) -> None:
    request = RepositoryModelLoadRequest(model_name="a")
    request.parameters["config"].string_param = "{}"
    world = make(ModelControl.EXPLICIT)

    status = world.failed(world.call(LOAD, request))
    assert (status.code, "(config)" in status.message) == (Code.UNIMPLEMENTED, True)


def test_unload_takes_a_model_away(make: Make) -> None:
    world = make(ModelControl.EXPLICIT)
    load(world, "a")
    make_ready(world, "a")
    request = RepositoryModelUnloadRequest(model_name="a")
    world.answer(world.call(UNLOAD, request), RepositoryModelUnloadResponse)
    world.turn(after_s=0.1)

    assert index(world) == [("a", "", "UNAVAILABLE"), ("b", "", "UNAVAILABLE")]
    assert world.failed(world.call(UNLOAD, request)).code == Code.NOT_FOUND


def test_a_load_whose_model_is_unloaded_meanwhile_does_not_succeed(make: Make) -> None:
    world = make(ModelControl.EXPLICIT)
    call_id = load(world, "a")
    world.call(UNLOAD, RepositoryModelUnloadRequest(model_name="a"))
    world.turn(after_s=0.1)

    status = world.failed(call_id)
    assert (status.code, "unloaded" in status.message) == (Code.UNAVAILABLE, True)


def test_a_load_whose_caller_left_goes_on(make: Make) -> None:
    world = make(ModelControl.EXPLICIT)
    call_id = load(world, "a")
    world.cancel(call_id)
    make_ready(world, "a")

    assert call_id not in world.front.answers
    assert world.models.is_bindable("a", "")


# --- polls -------------------------------------------------------------------------------------


def poll(world: World) -> None:
    repository = world.services.repository
    repository.poll()
    settle(world, lambda: not repository._polling)


def test_a_poll_sees_new_changed_and_gone_models(make: Make, root: Path) -> None:
    world = make(ModelControl.POLL)
    world.services.repository.load_at_start(())
    make_ready(world, "a")
    make_ready(world, "b")
    (old,) = [key for key in world.models.entries if key.name == "a"]
    write_model(root, "c")
    shutil.rmtree(root / "b")
    (root / "a" / "1" / "model.onnx").write_bytes(b"another")
    poll(world)

    states = {(key.name, entry.state) for key, entry in world.models.entries.items()}
    assert ("c", ModelState.LOADING) in states
    assert ("b", ModelState.READY) not in states
    assert world.models.bind("a", "").key == old
    assert {key.generation for key in world.models.entries if key.name == "a"} > {old.generation}


def test_a_poll_without_changes_changes_nothing(make: Make) -> None:
    world = make(ModelControl.POLL)
    world.services.repository.load_at_start(())
    changes = world.models.changes
    poll(world)
    poll(world)

    assert world.models.changes == changes


def test_a_poll_that_cannot_read_keeps_what_is_served_and_the_next_one_reads(
    make: Make, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = make(ModelControl.POLL)
    world.services.repository.load_at_start(())
    make_ready(world, "a")
    hidden = root.with_name("hidden")
    root.rename(hidden)
    poll(world)
    assert world.models.is_bindable("a", "")
    assert "could not be read" in caplog.text
    hidden.rename(root)
    write_model(root, "c")
    poll(world)

    assert any(key.name == "c" for key in world.models.entries)


def test_a_mistake_in_a_poll_is_logged_and_the_next_one_runs(
    make: Make, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = make(ModelControl.POLL)
    world.services.repository.load_at_start(())

    def break_down(_: Path) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("tideserve.server.service.repository.scan", break_down)
        poll(world)
    assert "ZeroDivisionError" in caplog.text
    write_model(root, "c")
    poll(world)

    assert any(key.name == "c" for key in world.models.entries)


@pytest.mark.parametrize("control", [ModelControl.NONE, ModelControl.EXPLICIT])
def test_other_modes_never_poll(make: Make, root: Path, control: ModelControl) -> None:
    world = make(control)
    world.services.repository.load_at_start(())
    known = set(world.models.entries)
    write_model(root, "c")
    world.services.repository.poll()
    assert not world.services.repository._polling
    world.turn(after_s=1.0)

    assert set(world.models.entries) == known


def test_what_is_ignored_is_said_once(
    make: Make, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    write_model(root, "w", CONFIG + "\noptimization { priority: PRIORITY_MAX }")
    world = make(ModelControl.POLL)
    world.services.repository.load_at_start(())
    for at in range(3):
        (root / "w" / "1" / "model.onnx").write_bytes(b"x" * at)
        poll(world)

    said = [it.getMessage() for it in caplog.records if "'w'" in it.getMessage()]
    assert len(said) == 1
    assert "optimization" in said[0]
    assert "not supported" in said[0]


def test_keys_name_their_generation(make: Make) -> None:
    world = make(ModelControl.NONE)
    world.services.repository.load_at_start(())

    assert all(isinstance(key, ModelKey) and key.generation for key in world.models.entries)
