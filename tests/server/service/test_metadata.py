"""The calls that are answered at once, and those that there are not."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.fake_front import World
from tests.server.samples import make_found
from tideserve.server.errors import Code
from tideserve.server.shared_regions import SharedRegions
from tideserve.v1 import inference_pb2 as wire
from tideserve.v1.methods import INFERENCE, INFERENCE_SERVICE


def path(name: str) -> str:
    return f"/{INFERENCE_SERVICE}/{name}"


@pytest.fixture
def world() -> World:
    world = World(make_found(versions=[(1, "a"), (3, "a")]))
    world.replica()
    world.models.ready(world.keys[1], world.models.entries[world.keys[1]].found.config)  # type: ignore[arg-type]
    world.turn()
    return world


def test_every_method_of_the_protocol_has_an_answer(world: World) -> None:
    for method in INFERENCE:
        call_id = world.call(method.path)
        status = world.front.failures.get(call_id)
        assert status is None or "there is no method" not in status.message, method.name
        assert status is None or status.code != Code.INTERNAL, method.name


def test_live_and_ready(world: World) -> None:
    assert world.answer(world.call(path("ServerLive")), wire.ServerLiveResponse).live
    assert world.answer(world.call(path("ServerReady")), wire.ServerReadyResponse).ready
    world.models.load(make_found("n"))
    assert not world.answer(world.call(path("ServerReady")), wire.ServerReadyResponse).ready


@pytest.mark.parametrize(
    ("name", "version", "ready"),
    [("m", "", True), ("m", "3", True), ("m", "2", False), ("x", "", False), ("n", "", False)],
)
def test_a_model_is_ready_if_a_request_would_be_served(
    world: World, name: str, version: str, ready: bool
) -> None:
    world.models.load(make_found("n"))
    request = wire.ModelReadyRequest(name=name, version=version)

    assert (
        world.answer(world.call(path("ModelReady"), request), wire.ModelReadyResponse).ready
        is ready
    )


def test_the_server_names_itself_and_its_extensions(world: World) -> None:
    answer = world.answer(world.call(path("ServerMetadata")), wire.ServerMetadataResponse)

    assert (answer.name, answer.version) == ("tideserve", "1.0")
    assert {"model_configuration", "model_repository", "statistics"} <= set(answer.extensions)
    assert not [it for it in answer.extensions if "shared_memory" in it]


def test_shared_memory_is_among_the_extensions_where_there_is_some(tmp_path: Path) -> None:
    world = World(regions=SharedRegions(1 << 20, tmp_path))
    answer = world.answer(world.call(path("ServerMetadata")), wire.ServerMetadataResponse)

    assert [it for it in answer.extensions if "shared_memory" in it] == ["system_shared_memory"]


def test_a_models_metadata_has_its_versions_and_its_batch_dimension(world: World) -> None:
    request = wire.ModelMetadataRequest(name="m")
    answer = world.answer(world.call(path("ModelMetadata"), request), wire.ModelMetadataResponse)

    assert (answer.name, list(answer.versions)) == ("m", ["1", "3"])
    assert answer.platform == "onnxruntime_onnx"
    (tensor,) = answer.inputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("IN", "FP32", [-1, 2])
    assert [it.name for it in answer.outputs] == ["OUT"]


def test_a_models_configuration_is_the_complete_one(world: World) -> None:
    request = wire.ModelConfigRequest(name="m", version="1")
    config = world.answer(world.call(path("ModelConfig"), request), wire.ModelConfigResponse).config

    assert (config.name, config.max_batch_size, config.input[0].name) == ("m", 8, "IN")


@pytest.mark.parametrize("name", ["ModelMetadata", "ModelConfig", "ModelStatistics"])
def test_an_unknown_model_is_not_found_and_the_known_ones_are_named(
    world: World, name: str
) -> None:
    (method,) = [it for it in INFERENCE if it.name == name]
    for request in (method.request(name="x"), method.request(name="m", version="9")):
        status = world.failed(world.call(method.path, request))
        assert status.code == Code.NOT_FOUND
        assert "there are: m 1, m 3" in status.message


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [("", "", ["1", "3"]), ("m", "", ["1", "3"]), ("m", "3", ["3"])],
)
def test_statistics_are_of_all_of_a_model_or_of_a_version(
    world: World, name: str, version: str, found: list[str]
) -> None:
    request = wire.ModelStatisticsRequest(name=name, version=version)
    answer = world.answer(
        world.call(path("ModelStatistics"), request), wire.ModelStatisticsResponse
    )

    assert sorted(it.version for it in answer.model_stats) == found


@pytest.mark.parametrize(
    "method",
    [it for it in INFERENCE if "Shared" in it.name or "Trace" in it.name],
    ids=lambda it: it.name,
)
def test_what_there_is_not_is_unimplemented_with_a_sentence(world: World, method) -> None:  # type: ignore[no-untyped-def]
    status = world.failed(world.call(method.path))

    assert status.code == Code.UNIMPLEMENTED
    assert "this server has no" in status.message


# --- the log's level ---------------------------------------------------------------------------


@pytest.fixture
def root_level() -> Iterator[logging.Logger]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    yield root
    root.setLevel(level)


def settings_of(world: World, request: wire.LogSettingsRequest) -> dict[str, object]:
    answer = world.answer(world.call(path("LogSettings"), request), wire.LogSettingsResponse)
    return {
        name: getattr(value, str(value.WhichOneof("parameter_choice")))
        for name, value in answer.settings.items()
    }


def test_log_settings_are_told(world: World, root_level: logging.Logger) -> None:
    assert settings_of(world, wire.LogSettingsRequest()) == {
        "log_error": True,
        "log_warning": True,
        "log_info": True,
        "log_verbose_level": 0,
    }
    assert root_level.level == logging.INFO


def test_log_settings_are_changed(world: World, root_level: logging.Logger) -> None:
    request = wire.LogSettingsRequest()
    request.settings["log_info"].bool_param = False
    assert settings_of(world, request)["log_info"] is False
    assert root_level.level == logging.WARNING
    request = wire.LogSettingsRequest()
    request.settings["log_verbose_level"].uint32_param = 2
    settings_of(world, request)
    assert root_level.level == logging.DEBUG


def test_an_unknown_log_setting_is_refused_and_changes_nothing(
    world: World, root_level: logging.Logger
) -> None:
    request = wire.LogSettingsRequest()
    request.settings["log_info"].bool_param = False
    request.settings["log_file"].string_param = "/tmp/x"
    status = world.failed(world.call(path("LogSettings"), request))

    assert status.code == Code.INVALID_ARGUMENT
    assert "log_file" in status.message
    assert root_level.level == logging.INFO
