"""Containers follow the load of a server on this machine; no call fails meanwhile."""

import asyncio
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from examples.demo import repository
from examples.demo.load import Load
from examples.demo.scenario import Phase, arrivals, duration_s
from tests.docker.own_engine import OwnEngine
from tests.e2e.processes import autoscaler_of
from tests.e2e.server import Server, wait_until
from tideserve.v1.control_pb2 import READY, STARTING, ReplicaState

pytestmark = [pytest.mark.docker, pytest.mark.e2e, pytest.mark.timeout(240)]

MODEL = repository.MODEL
OUTAGE_S = 9.0
# Long enough that an autoscaler is killed and started again meanwhile.
SLOW_LOAD = """

class Model(Model):
    def load(self, context):
        import time

        time.sleep(6.0)
        super().load(context)
"""
# What nobody wants, or one too many, is ended 5 s after it was found (`Rules.grace_s`).
SETTLED_S = 12.0


@dataclass(frozen=True, slots=True)
class Elastic:
    """A server, the mark of its containers, its autoscaler file, and the engine that runs them
    ("": the default)."""

    server: Server
    owner: str
    file: Path
    engine_url: str = ""

    def ready(self) -> int:
        replicas = self.server.snapshot().replicas
        return sum(replica.model == MODEL and replica.state == READY for replica in replicas)

    def known(self) -> set[str]:
        return {replica.id for replica in self.server.snapshot().replicas}

    def joined(self, state: ReplicaState) -> set[str]:
        """Replicas of the model in that state, whose containers have called."""
        return {
            replica.id
            for replica in self.server.snapshot().replicas
            if replica.model == MODEL and replica.state == state and replica.pid
        }

    def containers(self, *options: str) -> list[str]:
        label = f"--filter=label=tideserve.owner={self.owner}"
        return self.docker("ps", "--all", label, "--format={{.Names}}", *options).split()

    def docker(self, *arguments: str) -> str:
        host = [f"--host={self.engine_url}"] if self.engine_url else []
        command = ["docker", *host, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@contextmanager
def serving(
    state: Path,
    host: str,
    launcher: str,
    *,
    engine_url: str = "",
    least: int = 0,
    model_code: str = "",
) -> Iterator[Elastic]:
    """With one standby container and one prepared one; containers reach it at `host`.
    `model_code`: at the end of the model's."""
    # Containers run as another user, who has to get at the models.
    folder = Path(tempfile.mkdtemp(prefix="tideserve-docker-"))
    folder.chmod(0o755)
    models, _ = repository.write(folder)
    with (models / MODEL / "1" / "model.py").open("a", encoding="utf-8") as model:
        model.write(model_code)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    owner = f"{state.name}-{port}"
    file = folder / "autoscaler.yaml"
    text = repository.AUTOSCALER.replace("min: 0", f"min: {least}")
    section = f"frontend_address: {host}:{port}, models_source: {models}, owner: {owner}"
    file.write_text(
        f"{text}\nlauncher: {{docker: {{{section}, {launcher}}}}}\nprepared: 1\n", encoding="utf-8"
    )
    server = Server(models, state, (f"--autoscaler={file}", "--host=0.0.0.0"))
    server.grpc_port = port
    elastic = Elastic(server, owner, file, engine_url)
    try:
        server.start()
        server.wait_ready()
        yield elastic
    finally:
        server.close()
        shutil.rmtree(folder)
        left = elastic.containers()
        if left:
            elastic.docker("rm", "--force", *left)
    assert left == [], "a stopped server leaves no container"


@pytest.fixture
def elastic(image: str, bridge_address: str, tmp_path: Path) -> Iterator[Elastic]:
    """On the default engine."""
    with serving(tmp_path / "state", bridge_address, f"image: '{image}'") as elastic:
        yield elastic


@pytest.fixture
def restartable(image: str, own_engine: OwnEngine, tmp_path: Path) -> Iterator[Elastic]:
    """On an engine that may be stopped; at least two replicas."""
    launcher = f"image: '{image}', network: host, engine_url: '{own_engine.url}'"
    host = own_engine.reach_host()
    with serving(tmp_path / "state", host, launcher, engine_url=own_engine.url, least=2) as elastic:
        yield elastic


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
    wait_until(
        lambda: set(elastic.containers(running)) == elastic.known(),
        30,
        lambda: f"{elastic.containers(running)} run, {elastic.known()} are known: {server.log}",
    )


def test_an_autoscaler_that_dies_while_containers_load_their_model_leaves_none_too_many(
    image: str, bridge_address: str, tmp_path: Path
) -> None:
    launcher = f"image: '{image}'"
    with serving(
        tmp_path / "state", bridge_address, launcher, least=1, model_code=SLOW_LOAD
    ) as elastic:
        server = elastic.server
        first = elastic.joined(READY)
        text = elastic.file.read_text(encoding="utf-8")
        text = text.replace("min: 1", "min: 3").replace("max: 8", "max: 3")
        elastic.file.write_text(text, encoding="utf-8")
        wait_until(lambda: len(elastic.joined(STARTING)) == 2, 20, lambda: server.log)
        every = first | elastic.joined(STARTING)
        load = Load(server.address)

        async def kill() -> None:
            await asyncio.to_thread(autoscaler_of(server).kill)
            await asyncio.to_thread(wait_until, lambda: "adopted replica" in server.log, 10)
            assert elastic.joined(READY) == first, "it was to meet containers that do not serve"
            await asyncio.to_thread(wait_until, lambda: elastic.joined(READY) == every, 20)

        asyncio.run(both(load, (Phase("steady", 10.0, 20.0),), kill()))
        assert load.answers.failures == {}
        running = "--filter=status=running"
        ends_s = time.monotonic() + SETTLED_S
        while time.monotonic() < ends_s:
            others = set(elastic.containers(running)) - every
            assert len(others) <= 1, "beside them one stands by"
            assert all(name.startswith("standby-") for name in others)
            time.sleep(0.5)
        wait_until(
            lambda: set(elastic.containers(running)) == elastic.known(), 10, lambda: server.log
        )
        assert elastic.joined(READY) == every


def test_an_engine_that_stops_and_starts_under_load_costs_no_call(
    restartable: Elastic, own_engine: OwnEngine
) -> None:
    """A stopping engine ends its containers: calls wait, within their 20 s, for new ones."""
    server = restartable.server
    phases = (Phase("steady", 15.0 + OUTAGE_S, 30.0),)
    load = Load(server.address)

    async def restart() -> None:
        await asyncio.sleep(3.0)
        await asyncio.to_thread(own_engine.stop)
        await asyncio.to_thread(wait_until, lambda: restartable.ready() == 0, 10)
        # As long as a crash loop takes to be given up for a minute (S3).
        await asyncio.sleep(OUTAGE_S)
        await asyncio.to_thread(own_engine.start)
        own_engine.reach_host()
        await asyncio.to_thread(wait_until, lambda: restartable.ready() >= 2, 20)

    asyncio.run(both(load, phases, restart()))
    assert load.answers.failures == {}
    assert len(load.answers.latencies) > 350
    assert "what runs goes on, the engine is asked again" in server.log
    assert "given up" not in server.log
    running = "--filter=status=running"
    wait_until(
        lambda: set(restartable.containers(running)) == restartable.known(),
        30,
        lambda: server.log,
    )


async def both(load: Load, phases: tuple[Phase, ...], during: Awaitable[None]) -> None:
    await asyncio.gather(load.run(arrivals(phases, 5), time.monotonic() + 0.2), during)
