"""A frontend that was killed and started again finds its replicas (design 15.8)."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.model_folder import link_example
from tests.e2e.server import Server, wait_until
from tideserve.client import Client

pytestmark = pytest.mark.e2e

REPLICAS = 2
# The design's, from when the frontend listens: what comes before depends on what else runs.
REJOIN_S = 2.0
MODELS = ("identity", "text_python")


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    repository = tmp_path / "repository"
    repository.mkdir()
    for model in MODELS:
        link_example(repository, model)
    return repository


def test_replicas_of_a_killed_frontend_rejoin_the_next_one(
    start_server: Callable[..., Server], repository: Path, front: str
) -> None:
    server = start_server(repository, f"--front={front}", f"--replicas={REPLICAS}")
    wait_until(lambda: len(_pids(server)) == REPLICAS * len(MODELS), 20)
    before = _pids(server)
    token = server.token

    server.send(signal.SIGKILL)
    server.wait_end()
    server.start()
    server.wait_ready()
    ready_s = time.monotonic()
    wait_until(lambda: _pids(server) == before, 10, lambda: f"{before}\n{server.log}")
    assert time.monotonic() - ready_s < REJOIN_S

    assert server.token == token
    with Client(server.address) as client:
        rows = np.ones((3, 16), np.float32)
        np.testing.assert_array_equal(client.infer("identity", {"IN": rows})["OUT"], rows)
    # The new autoscaler has looked, and found that there are as many as are wanted.
    wait_until(lambda: server.log.count("ended: orphaned") == 1, 10, lambda: server.log)
    assert _replica_processes(server) == before
    assert server.stop() == 0
    wait_until(lambda: not server.processes(), 3)


def test_s1_an_own_autoscaler_keeps_what_it_holds_when_both_restart(
    start_server: Callable[..., Server], repository: Path, tmp_path: Path
) -> None:
    file = tmp_path / "autoscaler.yaml"
    models = "models: {{identity: {{min: {}, max: 4, hold: 300s, idle: 300s}}}}\n"
    file.write_text(models.format(3), encoding="utf-8")
    server = start_server(repository, f"--autoscaler={file}")
    wait_until(lambda: len(server.ready_pids("identity")) == 3, 20, lambda: server.log)
    before = set(server.ready_pids("identity"))

    server.send(signal.SIGKILL)
    server.wait_end()
    # From now on it is the hold alone that keeps three of them.
    file.write_text(models.format(1), encoding="utf-8")
    server.start()
    server.wait_ready()
    wait_until(lambda: set(server.ready_pids("identity")) == before, 10, lambda: server.log)
    time.sleep(3.0)  # as long as a drain of an idle one takes, several times over
    assert set(server.ready_pids("identity")) == before, server.log


# --- inside ------------------------------------------------------------------------------------


def _pids(server: Server) -> set[int]:
    return {pid for model in MODELS for pid in server.ready_pids(model)}


def _replica_processes(server: Server) -> set[int]:
    return {
        it.pid for it in server.processes() if it.name().startswith(tuple(f"{m}-1" for m in MODELS))
    }
