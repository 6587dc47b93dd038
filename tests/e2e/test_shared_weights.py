"""Replicas of a model have its weights in memory once, also those that take a dead one's place."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.e2e.model_folder import write_model
from tests.e2e.server import Server, wait_until
from tideserve.client import Client
from tideserve.v1.control_pb2 import READY

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

WIDTH = 1600  # 10 MB of weights
CONFIG = "max_batch_size: 4"
ALONE = """
max_batch_size: 4
parameters { key: "tideserve.share_weights" value { string_value: "false" } }
"""


def model() -> tuple[bytes, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """A file that multiplies with weights, and these."""
    weights = np.random.default_rng(1).standard_normal((WIDTH, WIDTH)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["IN", "W"], ["OUT"])],
        "weights",
        [helper.make_tensor_value_info("IN", TensorProto.FLOAT, ("batch", WIDTH))],
        [helper.make_tensor_value_info("OUT", TensorProto.FLOAT, ("batch", WIDTH))],
        [numpy_helper.from_array(weights, "W")],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(made)
    return made.SerializeToString(), weights


def ready(server: Server, name: str) -> dict[str, int]:
    """Process ids of its replicas that serve."""
    return {
        replica.id: replica.pid
        for replica in server.snapshot().replicas
        if replica.model == name and replica.state == READY
    }


def mapped(pid: int) -> set[str]:
    """Shared weights that a process has mapped, each as its file."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return {line.split()[4] for line in lines if line.endswith("/weights.bin")}


def test_replicas_map_the_same_weights_and_one_that_comes_later_too(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    file, weights = model()
    write_model(repository, "shared", CONFIG, file, "model.onnx")
    write_model(repository, "alone", ALONE, file, "model.onnx")
    server = start_server(repository, "--replicas=2")
    rows = np.random.default_rng(2).standard_normal((3, WIDTH)).astype(np.float32)

    def check() -> set[str]:
        files = [mapped(pid) for pid in ready(server, "shared").values()]
        assert len(files) == 2
        assert files[0] == files[1]
        assert len(files[0]) == 1
        with Client(server.address) as client:
            for name in ("shared", "alone"):
                answer = client.infer(name, {"IN": rows})["OUT"]
                np.testing.assert_allclose(answer, rows @ weights, rtol=1e-3, atol=1e-3)
        return files[0]

    before = check()
    assert [mapped(pid) for pid in ready(server, "alone").values()] == [set(), set()]
    dead, pid = next(iter(ready(server, "shared").items()))
    os.kill(pid, signal.SIGKILL)
    wait_until(
        lambda: dead not in (now := ready(server, "shared")) and len(now) == 2,
        20,
        lambda: server.log,
    )
    assert check() == before
