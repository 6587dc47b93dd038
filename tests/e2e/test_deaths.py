"""Replicas that die, freeze or are poisoned under load: no call is lost (R1, R5, R6)."""

import asyncio
import contextlib
import os
import random
import signal
from collections.abc import Callable

import pytest

from tests.e2e.load import Load
from tests.e2e.server import EXAMPLES, Server

pytestmark = pytest.mark.e2e

CALLERS = 1000
DEATHS = 30


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["SIGKILL", "SIGSTOP"])
def test_a_replica_that_dies_every_second_fails_no_call(
    start_server: Callable[..., Server], number: signal.Signals
) -> None:
    server = start_server(EXAMPLES, "--replicas=2")
    load = Load(server.address, "accelerator_standin", CALLERS, "IN")
    source = random.Random(1)
    killed: list[int] = []

    async def kill() -> None:
        for _ in range(DEATHS):
            await asyncio.sleep(1)
            # Who rides on two deaths in a row fails, rightly (R6). A frozen replica is LOST after a
            # second, just as the next one freezes with what the first one ran.
            await load.all_answered()
            pids = await asyncio.to_thread(server.ready_pids, "accelerator_standin")
            if pids:
                pid = source.choice(pids)
                # The snapshot may be older than the autoscaler's own kill of it.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    killed.append(pid)

    asyncio.run(load.run(kill()))
    assert not load.wrong
    assert load.right > CALLERS
    # Some seconds may find no READY replica, as the machine is busy starting one.
    assert len(set(killed)) > DEATHS // 2
