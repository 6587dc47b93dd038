"""Replicas follow the load, as the autoscaler file says; no call fails meanwhile."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import pytest

from examples.demo import repository
from examples.demo.load import Load
from examples.demo.scenario import Phase, arrivals, duration_s
from tests.e2e.model_folder import write_model
from tests.e2e.processes import autoscaler_of
from tests.e2e.running import running
from tests.e2e.server import Server, wait_until
from tideserve.v1.control_pb2 import READY, STARTING, ReplicaState

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

MODEL = repository.MODEL
# A file edit is looked for four times a second, and a new count is desired at the next look.
EDIT_S = 2.0
# From the fork to the model's file, which takes as long as it takes (design section 11).
FORKED_MS = 300
# Long enough that its autoscaler is killed and started again meanwhile.
SLOW_CONFIG = """
backend: "python"
max_batch_size: 4
input [ { name: "IN" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_FP32 dims: [ 1 ] } ]
"""
SLOW_MODEL = """
import time


class Model:
    def load(self, context):
        time.sleep(4.0)

    def infer(self, inputs):
        return {"OUT": inputs["IN"]}

    def unload(self):
        pass
"""


@dataclass(frozen=True, slots=True)
class Elastic:
    """A server, its autoscaler file, and what was in it at the start."""

    server: Server
    file: Path
    text: str

    def ready(self) -> int:
        replicas = self.server.snapshot().replicas
        return sum(replica.model == MODEL and replica.state == READY for replica in replicas)

    def edit(self, old: str, new: str) -> None:
        assert old in self.text
        self.file.write_text(self.text.replace(old, new), encoding="utf-8")


@pytest.fixture
def elastic(tmp_path: Path) -> Iterator[Elastic]:
    models, file = repository.write(tmp_path)
    with running(models, tmp_path / "state", f"--autoscaler={file}") as server:
        yield Elastic(server, file, file.read_text(encoding="utf-8"))


def drive(elastic: Elastic, phases: tuple[Phase, ...], during: Awaitable[None]) -> Load:
    """The phases' load beside `during`; every call has to be answered, and right."""
    load = Load(elastic.server.address)

    async def both() -> None:
        began_s = time.monotonic() + 0.2
        await asyncio.gather(load.run(arrivals(phases, 5), began_s), during)

    asyncio.run(both())
    assert load.answers.failures == {}
    expected = sum(phase.duration_s * phase.rate for phase in phases)
    assert len(load.answers.latencies) > expected / 2
    return load


def test_from_zero_to_many_and_back_to_zero_without_a_failed_call(elastic: Elastic) -> None:
    phases = (Phase("wake", 2.0, 20.0), Phase("step", 6.0, 200.0))
    most = 0

    async def look() -> None:
        nonlocal most
        ends_s = time.monotonic() + duration_s(phases)
        while time.monotonic() < ends_s:
            most = max(most, await asyncio.to_thread(elastic.ready))
            await asyncio.sleep(0.1)

    # idle: 4 s. The model stays READY to clients: its first request starts a replica.
    wait_until(lambda: elastic.ready() == 0, 20, lambda: elastic.server.log)
    drive(elastic, phases, look())
    assert most >= 3
    log = elastic.server.log
    forked_ms = [int(a) + int(b) for a, b in re.findall(r"launch (\d+) ms, import (\d+) ms", log)]
    assert len(forked_ms) >= 3
    assert median(forked_ms) < FORKED_MS, log
    wait_until(lambda: elastic.ready() == 0, 40, lambda: elastic.server.log)


def test_the_autoscaler_dies_under_load_and_while_it_starts_replicas(elastic: Elastic) -> None:
    server = elastic.server

    async def kill_twice() -> None:
        # The step comes after a second: the first kill meets an autoscaler that has just
        # begun to start replicas, the second one that has them all.
        for pause_s in (1.6, 3.0):
            await asyncio.sleep(pause_s)
            await asyncio.to_thread(kill_autoscaler, server)
        await until(lambda: server.log.count("adopted replica") >= 2)

    drive(elastic, (Phase("quiet", 1.0, 20.0), Phase("step", 11.0, 200.0)), kill_twice())
    # Two looks, one after the other: a replica that leaves between them is on one of them.
    wait_until(lambda: replica_pids(server) == known_pids(server), 20, lambda: census(server))


def test_a_bad_edit_changes_nothing_and_is_told_a_good_one_takes_effect(elastic: Elastic) -> None:
    server = elastic.server

    async def edit() -> None:
        elastic.edit("min: 0", "mni: 2")
        await until(lambda: "did you mean min?" in server.log)
        assert f"models.{MODEL}.mni: unknown key" in server.log
        before = [r.id for r in server.snapshot().replicas if r.model == MODEL]
        await asyncio.sleep(0.5)
        assert [r.id for r in server.snapshot().replicas if r.model == MODEL] == before
        elastic.edit("min: 0", "min: 2")
        edited_s = time.monotonic()
        await until(lambda: desired(server) == 2)
        assert time.monotonic() - edited_s < EDIT_S
        await until(lambda: elastic.ready() == 2)

    drive(elastic, (Phase("load", 6.0, 20.0),), edit())
    assert desired(server) == 2


def test_the_autoscaler_dies_while_replicas_load_their_model(tmp_path: Path) -> None:
    models = tmp_path / "models"
    write_model(models, MODEL, SLOW_CONFIG, SLOW_MODEL)
    file = tmp_path / "autoscaler.yaml"
    file.write_text(f"models: {{{MODEL}: {{min: 1}}}}\n", encoding="utf-8")
    with running(models, tmp_path / "state", f"--autoscaler={file}") as server:
        first = joined(server, READY)
        file.write_text(f"models: {{{MODEL}: {{min: 4}}}}\n", encoding="utf-8")
        wait_until(lambda: len(joined(server, STARTING)) == 3, 20, lambda: server.log)
        every = first | joined(server, STARTING)
        kill_autoscaler(server)
        assert joined(server, READY) == first, "it was to meet replicas that have not started"
        wait_until(lambda: joined(server, READY) == every, 20, lambda: census(server))
        wait_until(lambda: replica_pids(server) == sorted(every), 5, lambda: census(server))


def desired(server: Server) -> int:
    """As the autoscaler said last."""
    (model,) = server.snapshot().models
    return model.decision.desired


def joined(server: Server, state: ReplicaState) -> set[int]:
    """Pids of the replicas in that state that have joined."""
    return {r.pid for r in server.snapshot().replicas if r.state == state and r.pid}


def kill_autoscaler(server: Server) -> None:
    """SIGKILL; the server starts another one."""
    before = autoscaler_of(server)
    before.kill()

    def is_back() -> bool:
        try:
            return autoscaler_of(server).pid != before.pid
        except ValueError:  # none, or the dead one is not reaped yet
            return False

    wait_until(is_back, 10.0, lambda: server.log)


def replica_pids(server: Server) -> list[int]:
    """Of all replica processes, by their names: the model's and the standby's."""
    names = (MODEL[:10], "standby-")
    return sorted(it.pid for it in server.processes() if it.name().startswith(names))


def known_pids(server: Server) -> list[int]:
    """Of all replicas, by the frontend."""
    return sorted(replica.pid for replica in server.snapshot().replicas)


def census(server: Server) -> str:
    """What there is on both sides, for a failure's text."""
    replicas = [(r.id, r.pid, r.state) for r in server.snapshot().replicas]
    processes = [(it.pid, it.name(), it.status()) for it in server.processes()]
    return f"replicas {replicas}\nprocesses {processes}\n{server.log}"


async def until(is_true: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, is_true, 20)
