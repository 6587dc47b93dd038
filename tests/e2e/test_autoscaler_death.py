"""The autoscaler and its forkserver may die under load: nothing that serves notices (15.7)."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator

import pytest

from tests.e2e.load import Load
from tests.e2e.model_folder import link_example
from tests.e2e.processes import autoscaler_of, forkserver_of
from tests.e2e.running import running
from tests.e2e.server import Server, wait_until

pytestmark = pytest.mark.e2e

REPLICAS = 2
# Backoff of a restart doubles with each death: at most 2 s in this file.
RESTART_TIMEOUT_S = 10.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "repository").mkdir()
    link_example(folder / "repository", "accelerator_standin")
    with running(folder / "repository", folder / "state", f"--replicas={REPLICAS}") as server:
        yield server


@pytest.fixture(autouse=True)
def settled(server: Server) -> None:
    """Each test begins with as many replicas as are wanted."""
    wait_until(lambda: len(_pids(server)) == REPLICAS, 20, lambda: server.log)


def test_a_new_autoscaler_adopts_every_replica_and_replaces_one_that_dies(server: Server) -> None:
    pids = _pids(server)
    adopted = server.log.count("adopted replica")

    async def kill_it_then_a_replica() -> None:
        await asyncio.to_thread(_kill_autoscaler, server)
        await _until(lambda: server.log.count("adopted replica") == adopted + REPLICAS)
        assert await asyncio.to_thread(_pids, server) == pids
        os.kill(min(pids), signal.SIGKILL)
        await _until(lambda: _is_replaced(server, pids))

    _under_load(server, kill_it_then_a_replica)
    now = _pids(server)
    assert max(pids) in now
    assert min(pids) not in now
    # No duplicates, here or in the process table.
    assert sorted(_all_pids(server)) == sorted(now)


def test_a_replica_that_dies_while_there_is_no_autoscaler_is_replaced_by_the_next(
    server: Server,
) -> None:
    pids = _pids(server)

    async def kill_both() -> None:
        autoscaler_of(server).kill()
        os.kill(max(pids), signal.SIGKILL)
        await _until(lambda: _is_replaced(server, pids))

    _under_load(server, kill_both)
    assert min(pids) in _pids(server)
    assert sorted(_all_pids(server)) == sorted(_pids(server))


def test_replicas_outlive_the_forkserver_and_are_replaced_after_it(server: Server) -> None:
    pids = _pids(server)

    async def kill_forkserver_then_a_replica() -> None:
        forkserver_of(server).kill()
        os.kill(min(pids), signal.SIGKILL)
        await _until(lambda: _is_replaced(server, pids))

    _under_load(server, kill_forkserver_then_a_replica)
    assert max(pids) in _pids(server)
    assert sorted(_all_pids(server)) == sorted(_pids(server))


def test_a_frozen_autoscaler_holds_nobody_up(server: Server) -> None:
    autoscaler = autoscaler_of(server)
    pids = _pids(server)

    async def freeze_and_wake() -> None:
        autoscaler.suspend()
        os.kill(min(pids), signal.SIGKILL)
        await _until(lambda: len(_pids(server)) == REPLICAS - 1)
        autoscaler.resume()
        await _until(lambda: len(_pids(server)) == REPLICAS)

    _under_load(server, freeze_and_wake)
    assert autoscaler_of(server).pid == autoscaler.pid
    assert sorted(_all_pids(server)) == sorted(_pids(server))


# --- inside ------------------------------------------------------------------------------------


def _under_load(server: Server, during: Callable[[], Awaitable[None]]) -> None:
    load = Load(server.address, "accelerator_standin", 32, "IN")
    asyncio.run(load.run(during()))
    assert not load.wrong
    assert load.right > 32


def _kill_autoscaler(server: Server) -> None:
    before = autoscaler_of(server)
    before.kill()

    def is_back() -> bool:
        running = [it for it in server.processes() if it.pid == before.pid]
        return not running and _autoscalers(server) == 1

    wait_until(is_back, RESTART_TIMEOUT_S, lambda: server.log)


def _autoscalers(server: Server) -> int:
    try:
        return int(autoscaler_of(server).is_running())
    except ValueError:
        return 0


async def _until(is_true: Callable[[], bool]) -> None:
    await asyncio.to_thread(wait_until, is_true, 20)


def _is_replaced(server: Server, pids: set[int]) -> bool:
    now = _pids(server)
    return len(now) == REPLICAS and now != pids


def _pids(server: Server) -> set[int]:
    """Of READY replicas."""
    pids = server.ready_pids("accelerator_standin")
    assert len(pids) == len(set(pids))
    return set(pids)


def _all_pids(server: Server) -> list[int]:
    """Of all replicas, whatever their state, by their processes' names."""
    return [it.pid for it in server.processes() if it.name().startswith("accelerator_st")]
