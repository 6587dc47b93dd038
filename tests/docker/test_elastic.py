"""Containers follow the load of a server on this machine; no call fails meanwhile."""

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo import repository
from examples.demo.load import Load
from examples.demo.scenario import Phase, arrivals, duration_s
from tests.e2e.processes import autoscaler_of
from tests.e2e.server import Server, wait_until
from tideserve.v1.control_pb2 import READY

pytestmark = [pytest.mark.docker, pytest.mark.e2e, pytest.mark.timeout(240)]

MODEL = repository.MODEL


@dataclass(frozen=True, slots=True)
class Elastic:
    """A server and the mark of its containers."""

    server: Server
    owner: str

    def ready(self) -> int:
        replicas = self.server.snapshot().replicas
        return sum(replica.model == MODEL and replica.state == READY for replica in replicas)

    def known(self) -> set[str]:
        return {replica.id for replica in self.server.snapshot().replicas}

    def containers(self, *options: str) -> list[str]:
        listed = subprocess.run(
            [
                *("docker", "ps", "--all", f"--filter=label=tideserve.owner={self.owner}"),
                *("--format={{.Names}}", *options),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
        return listed.stdout.split()


@pytest.fixture
def elastic(image: str, bridge_address: str, tmp_path: Path) -> Iterator[Elastic]:
    """With one standby container and one prepared one."""
    # Containers run as another user, who has to get at the models.
    folder = Path(tempfile.mkdtemp(prefix="tideserve-docker-"))
    folder.chmod(0o755)
    models, _ = repository.write(folder)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    owner = f"{tmp_path.name}-{port}"
    file = tmp_path / "autoscaler.yaml"
    file.write_text(
        repository.AUTOSCALER
        + f"""
launcher:
  docker:
    image: {image}
    frontend_address: {bridge_address}:{port}
    models_source: {models}
    owner: {owner}
prepared: 1
""",
        encoding="utf-8",
    )
    server = Server(models, tmp_path / "state", (f"--autoscaler={file}", "--host=0.0.0.0"))
    server.grpc_port = port
    elastic = Elastic(server, owner)
    try:
        server.start()
        server.wait_ready()
        yield elastic
    finally:
        server.close()
        shutil.rmtree(folder)
        left = elastic.containers()
        if left:
            subprocess.run(["docker", "rm", "--force", *left], check=True, capture_output=True)
    assert left == [], "a stopped server leaves no container"


def test_containers_follow_the_load_through_deaths_of_the_autoscaler(elastic: Elastic) -> None:
    """0 -> N -> 0; the autoscaler is killed while it starts containers and while they serve."""
    server = elastic.server
    phases = (Phase("wake", 3.0, 20.0), Phase("step", 14.0, 200.0))
    wait_until(lambda: elastic.ready() == 0, 30, lambda: server.log)
    load = Load(server.address)
    most = 0

    async def disturb() -> None:
        nonlocal most
        began_s = time.monotonic()
        kills = [4.0, 9.0]
        while time.monotonic() - began_s < duration_s(phases):
            if kills and time.monotonic() - began_s > kills[0]:
                kills.pop(0)
                autoscaler_of(server).kill()
            most = max(most, await asyncio.to_thread(elastic.ready))
            await asyncio.sleep(0.2)

    asyncio.run(both(load, phases, disturb()))
    assert load.answers.failures == {}
    assert len(load.answers.latencies) > 2000
    assert most >= 3
    wait_until(lambda: elastic.ready() == 0, 60, lambda: server.log)
    # What runs is what the frontend knows: no orphans, no duplicates.
    running = "--filter=status=running"
    wait_until(lambda: set(elastic.containers(running)) == elastic.known(), 30, lambda: server.log)


async def both(load: Load, phases: tuple[Phase, ...], during: Awaitable[None]) -> None:
    await asyncio.gather(load.run(arrivals(phases, 5), time.monotonic() + 0.2), during)
