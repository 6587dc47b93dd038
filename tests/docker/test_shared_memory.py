"""Containers on the frontend's machine read and write large tensors in memory shared with it."""

import asyncio
import contextlib
import random
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import large_model
from tests.e2e.large_model import ELEMENTS, arena_bytes, arenas_open
from tests.e2e.load import Load
from tests.e2e.server import Server, wait_until

pytestmark = [pytest.mark.docker, pytest.mark.e2e, pytest.mark.timeout(180)]

CALLERS = 4
KILLS = 5
Serve = Callable[[bool], Server]


def containers(owner: str, *options: str) -> list[str]:
    command = ["docker", "ps", "--quiet", f"--filter=label=tideserve.owner={owner}", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


@pytest.fixture
def serve(image: str, bridge_address: str, tmp_path: Path) -> Iterator[Serve]:
    """Two containers of the large model, which may or may not enter the socket's folder."""
    # Containers run as another user, who has to get at the models.
    folder = Path(tempfile.mkdtemp(prefix="tideserve-docker-"))
    folder.chmod(0o755)
    large_model.write(folder / "models")
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    link, file = folder / "link", folder / "autoscaler.yaml"
    file.write_text(f"""\
launcher:
  docker:
    image: '{image}'
    frontend_address: {bridge_address}:{port}
    models_source: {folder}/models
    link_source: {link}
    owner: {folder.name}
models:
  {large_model.NAME}: {{min: 2, max: 2}}
""")
    options = (f"--autoscaler={file}", "--host=0.0.0.0", f"--link-folder={link}")
    server = Server(folder / "models", tmp_path / "state", options)
    server.grpc_port = port

    def start(may_enter: bool) -> Server:
        if not may_enter:
            link.mkdir()
            link.chmod(0o700)
        server.start()
        server.wait_ready()
        wait_until(lambda: len(server.ready_pids(large_model.NAME)) == 2, 30, lambda: server.log)
        return server

    try:
        yield start
    finally:
        server.close()
        left = containers(folder.name, "--all")
        if left:
            subprocess.run(["docker", "rm", "--force", *left], check=True, capture_output=True)
        shutil.rmtree(folder)
    assert left == [], "a stopped server leaves no container"


def owner_of(server: Server) -> str:
    return server.repository.parent.name


def test_killed_containers_leave_nothing_and_fail_nobody(serve: Serve) -> None:
    server = serve(True)
    load = Load(server.address, large_model.NAME, CALLERS, "IN", elements=ELEMENTS)
    source = random.Random(1)

    async def kill() -> None:
        await load.all_answered()
        assert arena_bytes(server)[0] == 2
        for _ in range(KILLS):
            # Who rides on two deaths in a row fails, rightly (R6): each death meets new calls.
            await load.all_answered()
            await asyncio.sleep(source.uniform(0.0, 0.1))
            running = await asyncio.to_thread(containers, owner_of(server))
            # It may have ended since, as the one killed before.
            with contextlib.suppress(subprocess.CalledProcessError):
                command = ["docker", "kill", source.choice(running)]
                await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True)

    asyncio.run(load.run(kill()))
    assert not load.wrong
    assert load.right > 100
    wait_until(lambda: arena_bytes(server) == (2, 0), 30, lambda: server.log)
    wait_until(lambda: arenas_open(server) == 2, 10, lambda: server.log)
    assert server.stop() == 0
    assert list((server.repository.parent / "link").iterdir()) == []


def test_a_container_that_may_not_enter_the_folder_comes_in_by_the_port(serve: Serve) -> None:
    server = serve(False)
    load = Load(server.address, large_model.NAME, CALLERS, "IN", elements=ELEMENTS)
    asyncio.run(load.run(load.all_answered()))
    assert load.right
    assert not load.wrong
    assert arena_bytes(server) == (0, 0)
    for container in containers(owner_of(server)):
        command = ["docker", "logs", container]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        assert "is dialled, for unix:/run/tideserve/front.sock cannot be" in said
