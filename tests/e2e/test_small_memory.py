"""A /dev/shm of 3 MiB, as Docker may give one: it runs full, and no request fails or is wrong for it
but one whose own segment has no memory."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.e2e.caller import connect
from tests.e2e.model_folder import write_model
from tests.e2e.mortal_callers import MEMORY
from tests.e2e.running import running
from tests.e2e.test_shared_memory import segments_open
from tests.e2e.test_shared_regions import ROWS_CONFIG, ROWS_SOURCE, memory_path
from tideserve.client import Client
from tideserve.v1.inference_pb2 import ModelInferRequest, SystemSharedMemoryRegisterRequest

pytestmark = pytest.mark.e2e

MOUNT = "mount -t tmpfs -o size=3m none /dev/shm"
INSIDE = "TIDESERVE_TEST_SMALL_MEMORY"
# More than there is, and less than a gRPC client takes in a message.
FULL = 4_000_000


def own_mounts(command: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    """Runs it where a small tmpfs is all there is of shared memory."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", f"{MOUNT} && {command}"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.skipif(INSIDE in os.environ, reason="this one starts the other")
def test_a_small_dev_shm_costs_speed_and_nothing_else() -> None:
    if own_mounts("true").returncode:
        pytest.skip("this user may not mount")
    test = f"{Path(__file__)}::test_tensors_where_memory_is_small"
    run = own_mounts(f"{sys.executable} -m pytest -q -p no:cacheprovider {test}", **{INSIDE: "1"})
    assert run.returncode == 0, run.stdout
    assert "1 passed" in run.stdout


@pytest.mark.skipif(INSIDE not in os.environ, reason="runs inside the test above")
def test_tensors_where_memory_is_small(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    write_model(repository, "rows", ROWS_CONFIG, ROWS_SOURCE)
    with running(repository, tmp_path / "state", "--replicas=1") as server:
        with Client(server.address) as client, Client(server.address) as other:
            for each, count in ((client, 100_000), (other, 100_000), (client, 800_000)):
                values = np.random.default_rng(count).random((1, count), dtype=np.float32)
                np.testing.assert_array_equal(each.infer("rows", {"ROWS": values})["ROWS"], values)
            # A segment takes at most half of what is left: 1 of 3 MiB, 1 of 2, and no more.
            assert len(segments_open(server)) == 2
        with connect(server.address) as caller, (MEMORY / "sparse").open("wb") as sparse:
            sparse.truncate(FULL)
            register = SystemSharedMemoryRegisterRequest(name="s", key="sparse", byte_size=FULL)
            caller.call(memory_path("Register"), register.SerializeToString())
            request = ModelInferRequest(model_name="rows", raw_input_contents=[bytes(FULL)])
            request.inputs.add(name="ROWS", datatype="FP32", shape=[1, FULL // 4])
            wanted = request.outputs.add(name="ROWS")
            wanted.parameters["shared_memory_region"].string_param = "s"
            wanted.parameters["shared_memory_byte_size"].int64_param = FULL
            code, sentence = caller.refusal("/inference.GRPCInferenceService/ModelInfer", request)
            assert code.name == "INVALID_ARGUMENT"
            assert "is the segment's memory used up?" in sentence
            del request.outputs[:]
            assert caller.infer(request).raw_output_contents[0] == bytes(FULL)
        assert server.stop() == 0
