"""A replica's whole process against a small frontend, over gRPC."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format

from tests.replica.batches import decode
from tests.replica.fake_frontend import TOKEN, FakeFrontend, assignment
from tideserve.replica.settings import ExitCode
from tideserve.v1.model_config_pb2 import ModelConfig
from tideserve.v1.replica_pb2 import BatchFailure, Lease, Tensor

CONFIG = text_format.Parse(
    """
    backend: "python" max_batch_size: 8
    input { name: "IN" data_type: TYPE_FP32 dims: 2 }
    output { name: "OUT" data_type: TYPE_FP32 dims: 2 }
    """,
    ModelConfig(),
)
MODEL = """
import os, pathlib, signal, time

class Model:
    def load(self, context):
        self.path = context.path
        with (self.path / "loads").open("a") as loads:
            loads.write("x")

    def infer(self, inputs):
        first = float(inputs["IN"][0, 0])
        if first == -1:
            raise ValueError("no such thing as -1")
        if first == -2:
            (self.path / "slow").touch()
            while not (self.path / "go").exists():
                time.sleep(0.005)
        if first == -3:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return {"OUT": inputs["IN"] + 1}

    def unload(self):
        (self.path / "unloaded").touch()
"""

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m"
    (path / "1").mkdir(parents=True)
    (path / "1" / "model.py").write_text(MODEL)
    return path


@pytest.fixture
def frontend(model: Path) -> Iterator[FakeFrontend]:
    made = FakeFrontend(assign=assignment(str(model), CONFIG))
    yield made
    made.close()


@pytest.fixture
def start(frontend: FakeFrontend, tmp_path: Path) -> Iterator[Start]:
    """Starts replicas, which end with the test; their log is in `log`."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str, token: str = TOKEN) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", "tideserve.replica", "--replica-id", "r1"]
        command += ["--address", frontend.address, "--log-file", str(tmp_path / "log")]
        environment = os.environ | {"TIDESERVE_TOKEN": token}
        process = subprocess.Popen([*command, *options], env=environment)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def lease(number: int, first: float = 0.0) -> Lease:
    array = np.array([[first, 2.0]], np.float32)
    tensor = Tensor(name="IN", datatype="FP32", shape=[1, 2], data=array.tobytes())
    return Lease(lease_id=number, rows=1, inputs=[tensor])


def ready(frontend: FakeFrontend) -> None:
    frontend.wait_for(lambda: bool(frontend.news("ready")))


def test_it_joins_loads_serves_and_leaves_when_drained(
    frontend: FakeFrontend, start: Start, model: Path
) -> None:
    process = start("--launched-at", "1.0", "--threads", "1")
    ready(frontend)
    (join,) = frontend.joins
    assert (join.replica_id, join.pid, join.device) == ("r1", process.pid, "cpu")
    (news,) = frontend.news("ready")
    assert [phase.name for phase in news.phases] == ["launch", "import", "load", "warm-up"]
    assert news.phases[0].duration_s > 1000, "measured from the launcher's request"
    assert (news.config.name, news.config.platform) == ("m", "python")
    assert [told.phase for told in frontend.news("loading")] == ["import", "load", "warm-up"]
    for number in range(1, 21):
        frontend.give(lease(number, float(number)))
    frontend.wait_for(lambda: len(frontend.outcomes) == 20)
    assert [outcome.lease_id for outcome in frontend.outcomes] == list(range(1, 21))
    for outcome in frontend.outcomes:
        (tensor,) = outcome.result.outputs
        np.testing.assert_array_equal(decode(tensor), [[outcome.lease_id + 1.0, 3.0]])
    frontend.drain()
    assert process.wait(20) == ExitCode.CLEAN
    assert (model / "1" / "unloaded").exists()
    assert frontend.left.wait(5)


def test_it_runs_without_grpcio(frontend: FakeFrontend, start: Start, model: Path) -> None:
    told = "import sys\n" + MODEL.replace(
        "first = float",
        '(self.path / "modules").write_text(" ".join(sys.modules)); first = float',
    )
    (model / "1" / "model.py").write_text(told)
    start()
    ready(frontend)
    frontend.give(lease(1))
    frontend.wait_for(lambda: len(frontend.outcomes) == 1)
    modules = (model / "1" / "modules").read_text().split()
    assert "tideserve.replica.link" in modules
    assert [module for module in modules if module.startswith("grpc")] == []


def test_numbers_grow_by_one_and_beats_carry_time_and_memory(
    frontend: FakeFrontend, start: Start
) -> None:
    start()
    ready(frontend)
    frontend.give(lease(1))
    frontend.wait_for(lambda: len(frontend.outcomes) == 1)
    told = len(frontend.beats)
    frontend.wait_for(lambda: len(frontend.beats) > told + 2)
    numbers = [request.sequence for request in frontend.exchanges]
    assert numbers == list(range(1, len(numbers) + 1))
    assert frontend.beats[-1].busy_s > 0
    assert frontend.beats[-1].memory_bytes > 1 << 20


def test_a_broken_call_is_repeated_with_the_same_content(
    frontend: FakeFrontend, start: Start
) -> None:
    start()
    ready(frontend)
    frontend.wait_for(lambda: bool(frontend.exchanges))
    frontend.break_next = 2
    frontend.give(lease(1))
    frontend.wait_for(lambda: len(frontend.outcomes) == 1)
    frontend.wait_for(lambda: frontend.break_next == 0)
    frontend.give(lease(2))
    frontend.wait_for(lambda: len(frontend.outcomes) == 2)
    carried = [request for request in frontend.exchanges if request.outcomes]
    first = [request for request in carried if request.outcomes[0].lease_id == 1]
    assert len(first) == 3, "sent, and twice repeated"
    assert first[0] == first[1] == first[2]
    assert [outcome.lease_id for outcome in frontend.outcomes] == [1, 2]


def test_a_model_that_raises_fails_its_batch_only(frontend: FakeFrontend, start: Start) -> None:
    start()
    ready(frontend)
    frontend.give(lease(1, -1.0))
    frontend.give(lease(2))
    frontend.wait_for(lambda: len(frontend.outcomes) == 2)
    failure = frontend.outcomes[0].failure
    assert failure.kind == BatchFailure.MODEL_ERROR
    assert failure.message == "ValueError: no such thing as -1"
    assert frontend.outcomes[1].WhichOneof("outcome") == "result"


def test_a_lost_device_is_told_and_ends_the_process(frontend: FakeFrontend, start: Start) -> None:
    process = start()
    ready(frontend)
    frontend.give(lease(1, -3.0))
    assert process.wait(20) == ExitCode.DEVICE_LOST
    assert [outcome.failure.kind for outcome in frontend.outcomes] == [BatchFailure.DEVICE_LOST]


def test_sigterm_finishes_the_batch_in_hand_first(
    frontend: FakeFrontend, start: Start, model: Path
) -> None:
    process = start()
    ready(frontend)
    frontend.give(lease(1, -2.0))
    frontend.wait_for(lambda: (model / "1" / "slow").exists(), poll_s=0.02)
    process.send_signal(signal.SIGTERM)
    (model / "1" / "go").touch()
    assert process.wait(20) == ExitCode.CLEAN
    assert [outcome.lease_id for outcome in frontend.outcomes] == [1]
    assert not frontend.exchanges[-1].want


def test_a_launched_replica_leaves_ctrl_c_to_the_server(
    frontend: FakeFrontend, start: Start
) -> None:
    process = start("--launched-at", "1.0")
    ready(frontend)
    process.send_signal(signal.SIGINT)
    frontend.give(lease(1))
    frontend.wait_for(lambda: len(frontend.outcomes) == 1)
    assert process.poll() is None


def test_stop_does_not_wait_for_the_batch(
    frontend: FakeFrontend, start: Start, model: Path
) -> None:
    process = start()
    ready(frontend)
    frontend.give(lease(1, -2.0))
    frontend.wait_for(lambda: (model / "1" / "slow").exists(), poll_s=0.02)
    frontend.stop_replica()
    assert process.wait(20) == ExitCode.CLEAN
    assert frontend.outcomes == []


def test_a_restarted_frontend_gets_the_loaded_model_back(
    frontend: FakeFrontend, start: Start, model: Path
) -> None:
    process = start()
    ready(frontend)
    frontend.close()
    restarted = FakeFrontend(
        port=frontend.port, epoch=8, announced=False, assign=assignment(str(model), CONFIG)
    )
    try:
        restarted.wait_for(lambda: bool(restarted.joins))
        restarted.announced = True
        ready(restarted)
        restarted.give(lease(1))
        restarted.wait_for(lambda: len(restarted.outcomes) == 1)
        assert restarted.exchanges[0].sequence == 1
        assert (model / "1" / "loads").read_text() == "x", "loaded once"
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        restarted.close()


def test_another_generation_after_a_restart_ends_it(
    frontend: FakeFrontend, start: Start, model: Path, tmp_path: Path
) -> None:
    process = start()
    ready(frontend)
    frontend.assign = assignment(str(model), CONFIG, generation="g2")
    frontend.break_life_line()
    assert process.wait(20) == ExitCode.LIFE_OVER
    assert "generation g2" in (tmp_path / "log").read_text()


@pytest.mark.parametrize("refused", ["refuse_exchanges", "refuse_beats"])
def test_a_refused_call_ends_it(frontend: FakeFrontend, start: Start, refused: str) -> None:
    process = start()
    ready(frontend)
    setattr(frontend, refused, True)
    frontend.give(lease(1))
    assert process.wait(20) == ExitCode.LIFE_OVER


def test_it_gives_up_on_a_frontend_that_does_not_know_it(
    frontend: FakeFrontend, start: Start, tmp_path: Path
) -> None:
    frontend.announced = False
    process = start("--reconnect-s", "0.6")
    assert process.wait(20) == ExitCode.UNREACHABLE
    assert len(frontend.joins) >= 2, "it asked more than once"
    assert "no frontend" in (tmp_path / "log").read_text()


def test_a_wrong_token_is_not_tried_again(
    frontend: FakeFrontend, start: Start, tmp_path: Path
) -> None:
    process = start(token="wrong")
    assert process.wait(20) == ExitCode.UNREACHABLE
    assert "expected the token" in (tmp_path / "log").read_text()


def test_a_model_that_cannot_load_is_told_why_and_ends_it(
    frontend: FakeFrontend, start: Start, model: Path
) -> None:
    (model / "1" / "model.py").write_text("raise KeyError('weights')\n")
    process = start()
    assert process.wait(20) == ExitCode.LOAD_FAILED
    (failed,) = frontend.news("load_failed")
    assert "importing it raised KeyError: 'weights'" in failed.message
    assert [phase.name for phase in failed.phases] == ["launch", "import", "load"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--device", "tpu"), "device: expected cpu or gpu:INDEX (such as gpu:0), got 'tpu'"),
        (("--address", "nowhere"), "address: expected HOST:PORT or unix:/PATH, got 'nowhere'"),
        (("--replica-id", ""), "replica-id: expected a name, got an empty one"),
    ],
)
def test_settings_that_cannot_work_are_named(
    start: Start, tmp_path: Path, options: tuple[str, ...], sentence: str
) -> None:
    assert start(*options).wait(20) == ExitCode.BAD_SETTINGS
    assert sentence in (tmp_path / "log").read_text()
