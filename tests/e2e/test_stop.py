"""SIGTERM and SIGINT: what was admitted is answered, nothing is left behind."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import h2.connection
import h2.events
import numpy as np
import psutil
import pytest
from h2.settings import SettingCodes

from tests.e2e.adder import CONFIG
from tests.e2e.model_folder import link_example, write_model
from tests.e2e.processes import autoscaler_of, command_of
from tests.e2e.server import READY_TIMEOUT_S, Server, wait_until
from tideserve.client import Client, TideserveClientError, Unavailable
from tideserve.client.retry import NO_RETRY
from tideserve.server.front.refusal import LAST_ANSWERS_S
from tideserve.v1.http2 import DEFAULT_WINDOW, MAX_WINDOW, MESSAGE_PREFIX
from tideserve.v1.inference_pb2 import ModelInferRequest
from tideserve.v1.methods import INFERENCE_SERVICE

pytestmark = pytest.mark.e2e

IN_FLIGHT = 24
ONE_BY_ONE = CONFIG.replace("max_batch_size: 16", "max_batch_size: 1")
SLOW = """
import time

class Model:
    def load(self, context):
        pass

    def infer(self, inputs):
        time.sleep({infer_s})
        return {{"OUT": inputs["IN"]}}

    def unload(self):
        pass
"""
HANGING_LOAD = """
import time

class Model:
    def load(self, context):
        time.sleep(3600)

    def infer(self, inputs):
        return {"OUT": inputs["IN"]}

    def unload(self):
        pass
"""
# More than sockets hold.
LARGE_BYTES = 20_000_000
# Longer than a front waits for whoever reads its last words.
LATE_S = 3 * LAST_ANSWERS_S
# The forkserver and the resource tracker notice the end of their parent a moment later.
EMPTY_TIMEOUT_S = 3.0


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A model that takes 50 ms a request, one at a time."""
    repository = tmp_path / "repository"
    write_model(repository, "slow", ONE_BY_ONE, SLOW.format(infer_s=0.05))
    return repository


@pytest.mark.parametrize(
    ("front", "number"), [("native", signal.SIGTERM), ("grpcio", signal.SIGINT)]
)
def test_what_was_admitted_is_answered_and_later_calls_are_turned_away(
    start_server: Callable[..., Server], slow: Path, front: str, number: signal.Signals
) -> None:
    server = start_server(slow, f"--front={front}")
    with _calls(server, "slow") as (calls, client):
        # As a terminal does it: to all processes of the group.
        if number is signal.SIGINT:
            os.killpg(server.pid, number)
        else:
            server.send(number)
        wait_until(lambda: "stopping: finishing" in server.log, 5)
        assert not client.is_model_ready("slow")
        with pytest.raises(Unavailable, match="stopping"):
            client.infer("slow", {"IN": np.zeros((1, 1), np.float32)})
        _check_answers(calls)
    assert server.wait_end(10) == 0
    _check_nothing_is_left(server)


def test_a_stream_is_answered_to_its_end(
    start_server: Callable[..., Server], slow: Path, front: str
) -> None:
    server = start_server(slow, f"--front={front}")
    with Client(server.address, retry=NO_RETRY) as client, client.stream() as stream:
        for number in range(10):
            stream.send("slow", {"IN": np.full((1, 1), number, np.float32)})
        first = stream.receive(timeout_s=10)
        server.send(signal.SIGTERM)
        answers = [first, *(stream.receive(timeout_s=10) for _ in range(9))]
        assert [int(it.outputs["OUT"][0, 0]) for it in answers] == list(range(10))
    assert server.wait_end(10) == 0
    _check_nothing_is_left(server)


def test_a_caller_who_reads_late_gets_all_of_its_answer(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    """On the native front: grpc-core keeps to itself what it has not sent."""
    repository = tmp_path / "repository"
    config = ONE_BY_ONE.replace("TYPE_FP32 dims: 1", "TYPE_UINT8 dims: -1")
    write_model(repository, "large", config, SLOW.format(infer_s=0))
    server = start_server(repository, "--front=native")
    request = ModelInferRequest(model_name="large", raw_input_contents=[bytes(LARGE_BYTES)])
    request.inputs.add(name="IN", datatype="UINT8", shape=(1, LARGE_BYTES))
    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port)), 10) as raw:
        caller = _call_and_do_not_read(raw, request.SerializeToString())
        with Client(server.address) as client:
            wait_until(lambda: client.statistics("large")[0].success.count == 1, 20)
        server.send(signal.SIGTERM)
        wait_until(lambda: "stopping: finishing" in server.log, 5)
        time.sleep(LATE_S)
        got_bytes, status = 0, ""
        # The server closes after its last word.
        while data := raw.recv(1 << 20):
            for event in caller.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    got_bytes += len(event.data or b"")
                elif isinstance(event, h2.events.TrailersReceived):
                    status = dict(event.headers or [])[b"grpc-status"].decode()
    assert (got_bytes > LARGE_BYTES, status) == (True, "0")
    assert server.wait_end(10) == 0
    _check_nothing_is_left(server)


def test_an_open_connection_does_not_hold_the_server_up(
    start_server: Callable[..., Server], slow: Path, front: str
) -> None:
    server = start_server(slow, f"--front={front}")
    with Client(server.address) as client, client.stream() as stream:
        stream.send("slow", {"IN": np.zeros((1, 1), np.float32)})
        stream.receive(timeout_s=10)
        # The stream stays open: nothing of it is unanswered.
        began_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began_s < 3
    _check_nothing_is_left(server)


@pytest.mark.parametrize("when", ["the ports are bound", "replicas load"])
def test_a_stop_before_it_is_ready(
    start_server: Callable[..., Server], tmp_path: Path, when: str
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    link_example(repository, "identity")
    write_model(repository, "never", CONFIG, HANGING_LOAD)
    server = start_server(repository, ready=False)
    line = "front listens on port" if when == "the ports are bound" else "is READY for identity"
    wait_until(lambda: line in server.log, READY_TIMEOUT_S, lambda: server.log)
    began_s = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - began_s < 10
    _check_nothing_is_left(server)


def test_a_hanging_model_holds_a_stop_up_no_longer_than_it_may(
    start_server: Callable[..., Server], tmp_path: Path, front: str
) -> None:
    repository = tmp_path / "repository"
    write_model(repository, "hanging", ONE_BY_ONE, SLOW.format(infer_s=3600))
    server = start_server(repository, f"--front={front}", "--shutdown-timeout-s=1")
    with _calls(server, "hanging") as (calls, _):
        began_s = time.monotonic()
        server.send(signal.SIGTERM)
        assert server.wait_end(20) == 0
        assert time.monotonic() - began_s < 4
        for _, call in calls:
            with pytest.raises(Unavailable):
                call.result(5)
        _check_nothing_is_left(server)


def test_a_second_signal_ends_the_wait(start_server: Callable[..., Server], tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    write_model(repository, "hanging", ONE_BY_ONE, SLOW.format(infer_s=3600))
    server = start_server(repository)
    with _calls(server, "hanging"):
        server.send(signal.SIGINT)
        wait_until(lambda: "stopping: finishing" in server.log, 5)
        began_s = time.monotonic()
        server.send(signal.SIGINT)
        assert server.wait_end(10) == 0
        assert time.monotonic() - began_s < 3
        _check_nothing_is_left(server)


def test_a_stop_without_an_autoscaler_leaves_no_replica(
    start_server: Callable[..., Server], slow: Path
) -> None:
    server = start_server(slow, "--replicas=2")
    autoscaler_of(server).kill()
    wait_until(lambda: "the autoscaler ended" in server.log, 5)
    assert server.stop() == 0
    _check_nothing_is_left(server)


@pytest.mark.slow
def test_replicas_of_a_killed_server_leave_by_themselves(
    start_server: Callable[..., Server], slow: Path
) -> None:
    server = start_server(slow, "--replicas=2")
    # Ready is the server with the first of them.
    wait_until(lambda: len(server.ready_pids("slow")) == 2, 20, lambda: server.log)
    pids = server.ready_pids("slow")
    server.send(signal.SIGKILL)
    server.wait_end()
    assert all(psutil.pid_exists(pid) for pid in pids)
    wait_until(lambda: not server.processes(), 30, lambda: _describe(server))


# --- inside ------------------------------------------------------------------------------------

Calls = list[tuple[int, "Future[float]"]]


@contextmanager
def _calls(server: Server, model: str) -> Iterator[tuple[Calls, Client]]:
    """Calls that the server has admitted and not answered."""
    with (
        Client(server.address, retry=NO_RETRY, timeout_s=60) as client,
        ThreadPoolExecutor(IN_FLIGHT) as pool,
    ):

        def call(number: int) -> float:
            answer = client.infer(model, {"IN": np.full((1, 1), number, np.float32)})
            return float(answer["OUT"][0, 0])

        calls = [(number, pool.submit(call, number)) for number in range(IN_FLIGHT)]
        wait_until(lambda: _admitted(server, model) == IN_FLIGHT, 10)
        try:
            yield calls, client
        finally:
            server.close()


def _call_and_do_not_read(raw: socket.socket, message: bytes) -> h2.connection.H2Connection:
    """A client that has sent a ModelInfer, with windows that let all of its answer come."""
    caller = h2.connection.H2Connection()
    caller.initiate_connection()
    caller.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: MAX_WINDOW})
    caller.increment_flow_control_window(MAX_WINDOW - DEFAULT_WINDOW)
    raw.sendall(caller.data_to_send())
    while caller.remote_settings.initial_window_size != MAX_WINDOW:
        caller.receive_data(raw.recv(4096))
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": f"/{INFERENCE_SERVICE}/ModelInfer",
        ":authority": "test",
        "content-type": "application/grpc",
    }
    caller.send_headers(1, headers.items())
    body = MESSAGE_PREFIX.pack(0, len(message)) + message
    step = caller.max_outbound_frame_size
    for at in range(0, len(body), step):
        while caller.local_flow_control_window(1) < step:
            caller.receive_data(raw.recv(4096))
        caller.send_data(1, body[at : at + step], end_stream=at + step >= len(body))
        raw.sendall(caller.data_to_send())
    return caller


def _check_answers(calls: Calls) -> None:
    wrong = []
    for number, call in calls:
        try:
            if call.result(20) != number:
                wrong.append("another answer")
        except TideserveClientError as error:
            wrong.append(str(error))
    assert not wrong


def _admitted(server: Server, name: str) -> int:
    (model,) = server.snapshot().models
    assert model.name == name
    return int(model.admitted)


def _check_nothing_is_left(server: Server) -> None:
    wait_until(lambda: not server.processes(), EMPTY_TIMEOUT_S, lambda: _describe(server))


def _describe(server: Server) -> str:
    return f"{[command_of(it) for it in server.processes()]}\n{server.log}"
