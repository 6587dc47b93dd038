"""Tests with a real engine: `.ci/engine` starts one and makes the image.

Without TIDESERVE_REQUIRE_DOCKER they are deselected, by name; with it a missing engine or
image fails them.
"""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from examples.demo import repository
from tests.docker.frontend import Frontend
from tests.docker.own_engine import OwnEngine
from tideserve.autoscaler.launchers.docker import DockerLauncher, DockerSettings

REQUIRED = "TIDESERVE_REQUIRE_DOCKER"
IMAGE = os.environ.get("TIDESERVE_IMAGE", "tideserve:cpu")
OpenLauncher = Callable[..., DockerLauncher]
_DESELECTED = pytest.StashKey[int]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.environ.get(REQUIRED):
        return
    docker = [item for item in items if item.get_closest_marker("docker")]
    if docker:
        items[:] = [item for item in items if item not in docker]
        config.hook.pytest_deselected(items=docker)
    config.stash[_DESELECTED] = len(docker)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if count := config.stash.get(_DESELECTED, 0):
        terminalreporter.write_line(
            f"{count} docker tests were deselected: run .ci/engine, then with {REQUIRED}=1"
        )


@pytest.fixture(scope="session")
def image() -> str:
    """The server's image, at the engine that the environment names."""
    command = ["docker", "image", "inspect", IMAGE]
    found = subprocess.run(command, check=False, capture_output=True, text=True)
    assert found.returncode == 0, f"{found.stderr}: run .ci/engine"
    return IMAGE


@pytest.fixture
def exits() -> threading.Event:
    """Set when a launcher says that something ended."""
    return threading.Event()


@pytest.fixture
def open_launcher(image: str, exits: threading.Event, tmp_path: Path) -> Iterator[OpenLauncher]:
    """Launchers of one owner, this test. What they leave is removed at the end."""
    settings = DockerSettings(
        image=image, frontend_address="127.0.0.1:1", network="host", owner=str(tmp_path)
    )
    opened: list[tuple[DockerSettings, DockerLauncher]] = []

    def open_one(**changes: object) -> DockerLauncher:
        own = replace(settings, **changes)  # type: ignore[arg-type]
        launcher = DockerLauncher(own, exits.set)
        launcher.open()
        opened.append((own, launcher))
        return launcher

    yield open_one
    for own, launcher in opened:
        launcher.close()
        url = [f"--host={own.engine_url}"] if own.engine_url else []
        listed = subprocess.run(
            ["docker", *url, "ps", "-aq", f"--filter=label={own.owner_label}"],
            check=False,
            capture_output=True,
            text=True,
        )
        if names := listed.stdout.split():
            subprocess.run(
                ["docker", *url, "rm", "--force", *names], check=True, capture_output=True
            )


@pytest.fixture
def frontend(tmp_path: Path) -> Iterator[Frontend]:
    """A real frontend on this machine."""
    frontend = Frontend(tmp_path / "frontend")
    try:
        frontend.start()
        yield frontend
    finally:
        frontend.close()


@pytest.fixture(scope="module")
def own_engine(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnEngine]:
    """An engine to stop and freeze, with the image."""
    engine = OwnEngine(tmp_path_factory.mktemp("engine"))
    try:
        engine.start()
        engine.copy_image(image)
        yield engine
    finally:
        engine.close()


@pytest.fixture(scope="session")
def bridge_address() -> str:
    """This machine, as containers of the default network reach it."""
    return repository.bridge_address()
