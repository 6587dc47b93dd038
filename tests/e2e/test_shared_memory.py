"""Large tensors through shared memory while replicas and callers are killed: R1 and R4 hold,
and nothing of the memory is left."""

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e import large_model
from tests.e2e.large_model import ELEMENTS, arena_bytes, arenas_open
from tests.e2e.load import Load
from tests.e2e.model_folder import write_model
from tests.e2e.server import Server, wait_until
from tideserve.client import Client, ModelError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

CALLERS = 8
KILLS = 20
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
# A process of its own, which is killed in the middle of its calls.
CALLER = """
import sys, threading
import numpy as np
from tideserve.client import Client

def call():
    while True:
        client.infer("large", {"IN": np.ones((1, int(sys.argv[2])), np.float32)})

with Client(sys.argv[1]) as client:
    threads = [threading.Thread(target=call, daemon=True) for _ in range(4)]
    [thread.start() for thread in threads]
    print("calling", flush=True)
    threads[0].join()
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    large_model.write(tmp_path / "repository")
    return tmp_path / "repository"


@pytest.mark.parametrize("front", ["native", "grpcio"])
def test_killed_replicas_and_callers_leave_nothing_and_fail_nobody(
    start_server: Callable[..., Server], repository: Path, front: str
) -> None:
    server = start_server(repository, "--replicas=2", f"--front={front}")
    load = Load(server.address, large_model.NAME, CALLERS, "IN", elements=ELEMENTS)
    source = random.Random(1)

    async def kill() -> None:
        killed = 0
        while killed < KILLS:
            # Who rides on two deaths in a row fails, rightly (R6): each death meets new calls.
            await load.all_answered()
            pids = await asyncio.to_thread(server.ready_pids, large_model.NAME)
            await asyncio.sleep(source.uniform(0.0, 0.1))
            # The snapshot may be older than the autoscaler's own kill of it.
            with contextlib.suppress(ProcessLookupError, IndexError):
                os.kill(source.choice(pids), signal.SIGKILL)
                killed += 1
            if killed % 4 == 3:
                await kill_a_caller(server, source.uniform(0.0, 0.3))

    asyncio.run(load.run(kill()))
    assert not load.wrong
    assert load.right > CALLERS
    wait_until(lambda: arena_bytes(server) == (2, 0), 20, lambda: server.log)
    # Python's mmap keeps one of each.
    wait_until(lambda: arenas_open(server) == 2, 10, lambda: server.log)
    assert server.stop() == 0
    # Where memory that has a name would be.
    assert not list(Path("/dev/shm").glob("*tideserve*"))


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


async def kill_a_caller(server: Server, after_s: float) -> None:
    command = [sys.executable, "-c", CALLER, server.address, str(ELEMENTS)]
    caller = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    assert caller.stdout is not None
    assert await caller.stdout.readline() == b"calling\n"
    await asyncio.sleep(after_s)
    caller.kill()
    await caller.wait()


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
