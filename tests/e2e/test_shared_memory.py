"""Large tensors through shared memory while replicas and callers are killed: R1 and R4 hold,
and nothing of the memory is left."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e import large_model
from tests.e2e.caller import Caller, connect
from tests.e2e.large_model import ELEMENTS, arena_bytes, arenas_open
from tests.e2e.load import Load
from tests.e2e.model_folder import write_model
from tests.e2e.mortal_callers import MEMORY, Kind, MortalCallers, is_region_of
from tests.e2e.server import Server, wait_until
from tests.e2e.server_log import mistakes
from tideserve.client import Client, ModelError
from tideserve.v1.inference_pb2 import (
    SystemSharedMemoryStatusRequest,
    SystemSharedMemoryStatusResponse,
    SystemSharedMemoryUnregisterRequest,
)
from tideserve.v1.methods import INFERENCE_SERVICE
from tideserve.v1.segments import PREFIX

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

CALLERS = 4
# Of replicas and of callers, on each front. `make kills` asks for 500.
KILLS = int(os.environ.get("TIDESERVE_TEST_KILLS", "24"))
UNREGISTER = f"/{INFERENCE_SERVICE}/SystemSharedMemoryUnregister"
STATUS = f"/{INFERENCE_SERVICE}/SystemSharedMemoryStatus"
SIZED_CONFIG = """
backend: "python"
max_batch_size: 1
input { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "OUT" data_type: TYPE_UINT8 dims: [ -1 ] }
"""
SIZED = """
import numpy as np

class Model:
    def load(self, context):
        pass

    def infer(self, inputs):
        return {"OUT": np.ones((1, int(inputs["IN"][0, 0])), np.uint8)}

    def unload(self):
        pass
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    large_model.write(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.mark.parametrize("front", ["native", "grpcio"])
@pytest.mark.timeout(90 + KILLS)
def test_killed_replicas_and_callers_leave_nothing_and_fail_nobody(
    start_server: Callable[..., Server], repository: Path, tmp_path: Path, front: str
) -> None:
    server = start_server(
        repository, "--replicas=2", f"--front={front}", f"--arena-bytes={64 << 20}"
    )
    load = Load(server.address, large_model.NAME, CALLERS, "IN", elements=ELEMENTS)
    with MortalCallers(server.address, tmp_path) as callers:
        killed: Counter[str] = Counter()
        asyncio.run(load.run(kill_by_turns(server, load, callers, killed)))
        for last in list(callers.living):
            callers.kill(last)
    said = f"{front}: killed {dict(killed)}, right {load.right} + {callers.right}\n"
    sys.stdout.write(said)
    assert not load.wrong
    assert load.right > CALLERS
    assert (callers.wrong, callers.complaints) == (0, "")
    assert callers.right > len(Kind)
    wait_until(lambda: arena_bytes(server) == (2, 0), 20, lambda: server.log)
    # Python's mmap keeps one of each.
    wait_until(lambda: arenas_open(server) == 2, 10, lambda: server.log)
    with connect(server.address) as caller:
        # Nobody can tell that a client without a lock is gone.
        wait_until(lambda: not registered(caller, {Kind.CLIENT, Kind.STREAM, Kind.LOCKED}), 20)
        assert len(registered(caller, {Kind.PLAIN})) == killed[Kind.PLAIN.value] + 1
        caller.call(UNREGISTER, SystemSharedMemoryUnregisterRequest().SerializeToString())
    assert segments_open(server) == []
    # Other servers' clients may be at it.
    wait_until(lambda: not list(MEMORY.glob(f"{PREFIX}*")), 20)
    assert not list(MEMORY.glob("*mortal*"))
    assert not list(MEMORY.glob("*tideserve-arena*"))
    assert server.stop() == 0
    assert not mistakes(server.log)


async def kill_by_turns(
    server: Server, load: Load, callers: MortalCallers, killed: Counter[str]
) -> None:
    """Replicas and callers of all kinds, each in the middle of something."""
    source = random.Random(1)
    for kind in Kind:
        callers.start(kind)
    while killed.total() < KILLS:
        # Who rides on two deaths in a row fails, rightly (R6): each death meets new calls.
        await load.all_answered()
        await callers.all_answered()
        pids = await asyncio.to_thread(server.ready_pids, large_model.NAME)
        await asyncio.sleep(source.uniform(0.0, 0.1))
        if killed.total() % 2:
            chosen = source.choice(callers.living)
            callers.kill(chosen)
            killed[chosen.kind.value] += 1
            if chosen.kind in (Kind.CLIENT, Kind.STREAM):
                # This one as it connects, or as its segment is made and registered.
                young = callers.start(chosen.kind)
                await asyncio.sleep(source.uniform(0.0, 0.08))
                callers.kill(young)
            callers.start(chosen.kind)
            continue
        # The snapshot may be older than the autoscaler's own kill of it.
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(source.choice(pids), signal.SIGKILL)
            killed["replicas"] += 1
    await callers.all_answered()


def registered(caller: Caller, kinds: set[Kind]) -> list[str]:
    """Regions of callers of these kinds."""
    asked = SystemSharedMemoryStatusRequest().SerializeToString()
    told = SystemSharedMemoryStatusResponse.FromString(caller.call(STATUS, asked))
    return [name for name in told.regions if any(is_region_of(kind, name) for kind in kinds)]


def segments_open(server: Server) -> list[str]:
    """Files of clients' segments that the frontend has open."""
    held = []
    for file in Path(f"/proc/{server.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            held.append(os.readlink(file))  # noqa: PTH115 - it may name no file
    return [name for name in held if name.startswith(str(MEMORY))]


def test_without_an_arena_the_same_answers_come_in_messages(
    start_server: Callable[..., Server], repository: Path
) -> None:
    server = start_server(repository, "--arena-bytes=0")
    load = Load(server.address, large_model.NAME, 2, "IN", elements=ELEMENTS)
    asyncio.run(load.run(asyncio.sleep(0.5)))
    assert load.right
    assert not load.wrong
    assert arena_bytes(server) == (0, 0)
    assert arenas_open(server) == 0


def test_an_answer_that_is_too_large_to_send_fails_alone_wherever_it_lies(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """The memory has room for it, and a message has not."""
    write_model(tmp_path / "repository", "sized", SIZED_CONFIG, SIZED)
    server = start_server(tmp_path / "repository", f"--max-message-bytes={1 << 20}")
    with Client(server.address) as client, client.stream() as stream:
        for size in (100_000, 5_000_000, 200_000):
            stream.send("sized", {"IN": np.array([[size]], np.int32)})
        assert stream.receive(20).outputs["OUT"].size == 100_000
        with pytest.raises(ModelError, match="too large to send"):
            stream.receive(20)
        assert stream.receive(20).outputs["OUT"].size == 200_000
