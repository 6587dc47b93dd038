"""A standby joins without a model, waits, is given one in milliseconds, and leaves when told."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.e2e.load import Load
from tests.e2e.model_folder import link_example
from tests.e2e.running import running
from tests.e2e.server import Server, wait_until
from tideserve.v1.control_pb2 import (
    READY,
    STANDBY,
    ReplicaSnapshot,
    ReplicaState,
    ScaleModelRequest,
    ScaleModelResponse,
)
from tideserve.v1.metadata import TOKEN_METADATA_KEY
from tideserve.v1.methods import CONTROL_SERVICE

pytestmark = pytest.mark.e2e

MODEL = "accelerator_standin"
CONFIG = """\
devices: [{{name: cpu, slots: 4}}]
standby: {standby}
models: {{{model}: {{min: 1, max: 3}}}}
"""
# Beats stop counting after 1 s (design 15.2): a standby that did not beat would be LOST.
QUIET_S = 2.0


class Standing:
    """A server with one replica of the model and one standby."""

    def __init__(self, server: Server, file: Path) -> None:
        self.server = server
        self.file = file

    def replicas(self, state: ReplicaState) -> dict[str, ReplicaSnapshot]:
        found = self.server.snapshot().replicas
        return {replica.id: replica for replica in found if replica.state == state}

    def scale(self, count: int) -> None:
        with grpc.insecure_channel(self.server.address) as channel:
            channel.unary_unary(
                f"/{CONTROL_SERVICE}/ScaleModel",
                request_serializer=ScaleModelRequest.SerializeToString,
                response_deserializer=ScaleModelResponse.FromString,
            )(
                ScaleModelRequest(model_name=MODEL, replicas=count, duration_s=60.0),
                metadata=((TOKEN_METADATA_KEY, self.server.token),),
                timeout=10,
            )


@pytest.fixture
def standing(tmp_path: Path) -> Iterator[Standing]:
    (tmp_path / "repository").mkdir()
    link_example(tmp_path / "repository", MODEL)
    file = tmp_path / "autoscaler.yaml"
    file.write_text(CONFIG.format(standby=1, model=MODEL))
    with running(tmp_path / "repository", tmp_path / "state", f"--autoscaler={file}") as server:
        standing = Standing(server, file)
        wait_until(lambda: len(standing.replicas(STANDBY)) == 1, 20, lambda: server.log)
        yield standing


def test_a_standby_waits_and_serves_once_it_is_assigned(standing: Standing) -> None:
    ((name, spare),) = standing.replicas(STANDBY).items()
    assert (spare.model, spare.pid > 0) == ("", True)
    time.sleep(QUIET_S)
    assert standing.replicas(STANDBY)[name].pid == spare.pid

    began_s = time.monotonic()
    standing.scale(2)
    wait_until(lambda: name in standing.replicas(READY), 5, lambda: standing.server.log)
    took_s = time.monotonic() - began_s
    assert took_s < 2.0
    assert standing.replicas(READY)[name].pid == spare.pid
    assert standing.replicas(READY)[name].model == MODEL
    wait_until(lambda: len(standing.replicas(STANDBY)) == 1, 5, lambda: standing.server.log)
    # 64 callers are more than one batch of 32 rows: both replicas have work.
    before_s = standing.replicas(READY)[name].busy_s
    load = Load(standing.server.address, MODEL, 64, "IN")
    asyncio.run(load.run(asyncio.sleep(1.0)))
    assert not load.wrong
    assert load.right > 64
    wait_until(lambda: standing.replicas(READY)[name].busy_s > before_s, 5)


def test_a_standby_that_is_not_wanted_any_more_leaves_by_itself(standing: Standing) -> None:
    (spare,) = standing.replicas(STANDBY)
    standing.file.write_text(CONFIG.format(standby=0, model=MODEL))
    log = standing.server
    wait_until(lambda: f"{spare} ended: exit code 0" in log.log, 10, lambda: log.log)
    assert standing.replicas(STANDBY) == {}
    assert len(standing.replicas(READY)) == 1
