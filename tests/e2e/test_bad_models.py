"""Models that fail, hang, kill their process or cannot be loaded: the others keep serving."""

import asyncio
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from tests.e2e.caller import INFER_PATH, Caller, Refusal, connect, refusal_of
from tests.e2e.model_folder import link_example, write_model
from tests.e2e.running import running
from tests.e2e.server import EXAMPLES, Server, wait_until
from tideserve.client import Client, ModelIndexEntry
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse

pytestmark = pytest.mark.e2e

CONFIG: Final = """
backend: "python"
max_batch_size: 8
input [ { name: "WHAT" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
parameters { key: "tideserve.max_batch_time" value { string_value: "1" } }
"""
# Answers what it is sent, but for the rows that say what goes wrong.
MOODY_SOURCE: Final = """
import ctypes, os, signal, time
import numpy as np

class Odd(Exception):
    def __str__(self): raise RuntimeError("no words for it")

def fail(what):
    match what:
        case -1: raise ValueError("the model's own words")
        case -2: return {"OUT": np.zeros((9, 1), np.int32)}
        case -3: return {"OUT": np.zeros((1, 1), np.float64)}
        case -4: return {}
        case -5: time.sleep(3600)
        case -6: os._exit(3)
        case -7: os.kill(os.getpid(), signal.SIGKILL)
        case -8: return {"OUT": np.zeros((1, 1), np.int32), "MORE": np.zeros((1, 1), np.int32)}
        case -9: return [np.zeros((1, 1), np.int32)]
        case -10: raise SystemExit(4)
        case -11: return {"OUT": np.zeros((1, 2), np.int32)}
        case -12: raise ValueError("\\u7a0b\\n\\0" * 5000)
        case -13: raise Odd
        case -14: return {"OUT": np.zeros(1, np.int32)}
        case -15: return {"OUT": [[1]]}
        case -16: raise MemoryError("no room")
        case -17: return None
        case -18: ctypes.string_at(0)
        case -19: raise KeyboardInterrupt
        case -20: return {"OUT": np.array([["text"]])}
        case -21: raise ValueError("\\ud800")
        case -22: return {"OUT": np.zeros((1, 1), np.int32).astype(">i2")}
        case -23: return {1: np.zeros((1, 1), np.int32)}

class Model:
    def load(self, context): pass
    def infer(self, inputs):
        what = inputs["WHAT"]
        if what.min() < 0:
            return fail(what.min())
        time.sleep(0.001)
        return {"OUT": what}
    def unload(self): pass
"""
INTERNAL: Final = grpc.StatusCode.INTERNAL
UNAVAILABLE: Final = grpc.StatusCode.UNAVAILABLE
# A model for each way to lose a process: backoff counts by model version.
DEADLY: Final = {"hangs": -5, "exits": -6, "killed": -7, "segfaults": -18, "interrupted": -19}
REPLICAS: Final = 2
NEIGHBOURS: Final = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Good models among bad ones, two replicas each."""
    repository = tmp_path_factory.mktemp("repository")
    link_example(repository, "identity")
    for name in ("moody", "beside_killed", "beside_hangs", *DEADLY):
        write_model(repository, name, CONFIG, MOODY_SOURCE)
    write_model(repository, "corrupt", "", b"\x08\x07garbage" * 100, "model.onnx")
    write_model(repository, "empty", "", b"", "model.onnx")
    write_model(repository, "misspelt", 'backend: "python"\n\nmax_batch_sice: 4\n', MOODY_SOURCE)
    write_model(repository, "no_weights", CONFIG, _loading('raise OSError("no weights")'))
    write_model(repository, "no_python", CONFIG, "class Model(:\n")
    write_model(repository, "no_class", CONFIG, "def infer(inputs): return inputs\n")
    write_model(repository, "no_package", CONFIG, "import no_such_package\n")
    write_model(repository, "dies", CONFIG, _loading("os._exit(7)"))
    (repository / "bare").mkdir()
    options = (f"--replicas={REPLICAS}", "--threads=1")
    with running(repository, tmp_path_factory.mktemp("state"), *options) as server:
        yield server
        _check_identity(server)
        assert "failed inside the server" not in server.log
        assert server.stop() == 0
        assert "finishing 0 calls" in server.log


@pytest.fixture(scope="module")
def caller(server: Server) -> Iterator[Caller]:
    with connect(server.address) as caller:
        yield caller


def _loading(statement: str) -> str:
    return f"""
import os
class Model:
    def load(self, context): {statement}
    def infer(self, inputs): return inputs
    def unload(self): pass
"""


def _request(model: str, *what: int) -> ModelInferRequest:
    message = ModelInferRequest(model_name=model)
    message.inputs.add(name="WHAT", datatype="INT32", shape=[len(what), 1])
    message.raw_input_contents.append(np.array(what, np.int32).tobytes())
    return message


def _check_right(caller: Caller, model: str) -> None:
    message = _request(model, 1, 2, 3)
    answer = caller.infer(message)
    assert answer.raw_output_contents[0] == message.raw_input_contents[0]


def _check_identity(server: Server) -> None:
    values = np.arange(16, dtype=np.float32).reshape(1, 16)
    with Client(server.address) as client:
        np.testing.assert_array_equal(client.infer("identity", {"IN": values})["OUT"], values)


def _wait_for_replicas(server: Server, model: str) -> None:
    wait_until(lambda: len(server.ready_pids(model)) == REPLICAS, 20, lambda: server.log)


def _losses(server: Server, model: str) -> int:
    return len(re.findall(rf"replica {model}-\S+ is LOST", server.log))


# --- what a model does wrong with a batch ------------------------------------------------------

FAILURES: Final = {
    -1: ("'moody' raised: ValueError: the model's own words",),
    -2: ("outputs that do not fit: output 'OUT': expected 1 rows", "got shape [9, 1]"),
    -3: ("output 'OUT': expected INT32, got FP64",),
    -4: ("expected output 'OUT', the model returned none",),
    -8: ("expected outputs of OUT, the model returned 'MORE'",),
    -9: ("expected infer to return a dict of arrays, got list",),
    -10: ("raised: SystemExit: 4",),
    -11: ("output 'OUT': expected shape [1, 1], got [1, 2]",),
    -12: ("raised: ValueError: \u7a0b\n\0\u7a0b", "..."),
    -13: ("raised:", "no words for it"),
    -14: ("output 'OUT': expected shape [1, 1], got [1]",),
    -15: ("output 'OUT': expected a numpy array, got list",),
    -16: ("MemoryError: no room", "even alone"),
    -17: ("expected infer to return a dict of arrays, got NoneType",),
    -20: ("output 'OUT': expected INT32, got BYTES",),
    -21: ("raised: ValueError: ?",),
    -22: ("output 'OUT': expected INT32, got INT16",),
    -23: ("expected outputs of OUT, the model returned 1",),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_batch_that_the_model_fails_gets_its_words_and_costs_no_replica(
    server: Server, caller: Caller, what: int
) -> None:
    pids = server.ready_pids("moody")
    code, sentence = caller.refusal(INFER_PATH, _request("moody", what))
    assert code is INTERNAL
    for words in ("model 'moody'", *FAILURES[what]):
        assert words in sentence
    _check_right(caller, "moody")
    assert server.ready_pids("moody") == pids
    _check_identity(server)


def test_a_failed_batch_is_told_in_its_place_of_a_stream(caller: Caller) -> None:
    # Of two models, or the good ones might share the bad one's batch.
    good = _request("beside_killed", 1)
    first, failed, last = caller.stream([good, _request("moody", -1), good])
    assert "the model's own words" in failed.error_message
    for answer in (first, last):
        assert answer.infer_response.raw_output_contents[0] == good.raw_input_contents[0]


# --- what kills or freezes its process ---------------------------------------------------------


@pytest.mark.parametrize("model", DEADLY)
def test_a_request_that_takes_its_process_along_fails_and_the_replicas_are_replaced(
    server: Server, caller: Caller, model: str
) -> None:
    _wait_for_replicas(server, model)
    pids = set(server.ready_pids(model))
    code, sentence = caller.refusal(INFER_PATH, _request(model, DEADLY[model]))
    assert code is INTERNAL
    assert f"model '{model}': two replicas died while this request was all they ran" in sentence
    _check_identity(server)
    _check_right(caller, model)
    _wait_for_replicas(server, model)
    assert 2 <= _losses(server, model) <= 3
    assert set(server.ready_pids(model)) != pids


@pytest.mark.parametrize("kind", ["killed", "hangs"])
def test_a_request_that_takes_its_process_along_fails_alone_among_its_neighbours(
    server: Server, kind: str
) -> None:
    model = f"beside_{kind}"
    _wait_for_replicas(server, model)
    wrong: list[str] = []
    done = asyncio.Event()

    async def neighbour(infer: Any, number: int) -> None:
        """Asks until the poisoned request is through, and then once more."""
        rows = [number + 1] * (1 + number % 3)
        message = _request(model, *rows)
        ends = False
        while not ends:
            ends = done.is_set()
            try:
                answer = ModelInferResponse.FromString(await infer(message.SerializeToString()))
            except grpc.aio.AioRpcError as error:
                wrong.append(f"{error.code().name}: {error.details()}")
                return
            if answer.raw_output_contents[0] != message.raw_input_contents[0]:
                wrong.append("another answer than was expected")

    async def poison(infer: Any) -> Refusal:
        try:
            await asyncio.sleep(0.1)
            await infer(_request(model, DEADLY[kind]).SerializeToString())
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        finally:
            done.set()
        raise AssertionError("expected the poisoned request to fail")

    async def run() -> Refusal:
        async with grpc.aio.insecure_channel(server.address) as channel:
            infer: Any = channel.unary_unary(INFER_PATH)
            neighbours = [neighbour(infer, number) for number in range(NEIGHBOURS)]
            poisoned = asyncio.create_task(poison(infer))
            await asyncio.gather(*neighbours)
            return await poisoned

    code, sentence = asyncio.run(run())
    assert code is INTERNAL
    assert "two replicas died" in sentence
    assert not wrong
    # R6 gives three; a replica that died of a prefetched batch, before the frontend had the
    # outcome of the one ahead, looks as if that one had killed it, and costs one more.
    _wait_for_replicas(server, model)
    assert 2 <= _losses(server, model) <= 4
    _check_identity(server)


# --- what cannot be loaded ---------------------------------------------------------------------

UNLOADABLE: Final = {
    "corrupt": ("model.onnx",),
    "empty": ("model.onnx",),
    "misspelt": ("misspelt/config.pbtxt:3:", "max_batch_sice", "did you mean 'max_batch_size'?"),
    "no_weights": ("model.py: load raised OSError: no weights",),
    "no_python": ("model.py: importing it raised SyntaxError",),
    "no_package": ("needs the module no_such_package, which is neither beside it nor installed",),
    "no_class": ("expected a class named Model, found none",),
    "dies": ("failed 5 times in a row", "exit code 7"),
    "bare": ("a version folder", "found neither"),
}


@pytest.mark.parametrize("model", UNLOADABLE)
def test_a_model_that_cannot_be_loaded_is_not_ready_and_says_why_everywhere(
    server: Server, caller: Caller, model: str
) -> None:
    words = UNLOADABLE[model]
    code, sentence = caller.refusal(INFER_PATH, _request(model, 1))
    assert code is UNAVAILABLE
    with Client(server.address) as client:
        assert not client.is_model_ready(model)
        entry = _entry(client, model)
    assert entry.state == "UNAVAILABLE"
    for word in words:
        assert word in sentence
        assert word in entry.reason
        assert word in server.log
    health = caller.call(
        "/grpc.health.v1.Health/Check", HealthCheckRequest(service=model).SerializeToString()
    )
    assert HealthCheckResponse.FromString(health).status == HealthCheckResponse.NOT_SERVING
    _check_identity(server)


def _entry(client: Client, model: str) -> ModelIndexEntry:
    (entry,) = [entry for entry in client.models() if entry.name == model]
    return entry


def test_a_server_with_a_model_that_cannot_be_loaded_is_live_and_not_ready(server: Server) -> None:
    with Client(server.address) as client:
        assert client.is_live()
        assert not client.is_ready()
        assert client.is_model_ready("identity")


def test_a_package_that_is_not_installed_is_one_sentence_and_no_second_try(server: Server) -> None:
    # Those that die at start have been given up by now: five tries.
    assert "dies version 1 is given up" in server.log
    starts = re.findall(r"start no_package-\S+", server.log)
    assert len(starts) == REPLICAS
    told = re.findall(r"ERROR .* cannot be loaded: .*no_such_package", server.log)
    assert len(told) == 1
    assert re.search(r"no_package version 1 is UNAVAILABLE, .*for the reason above", server.log)
    assert not re.search(r"replica no_package-\S+ (is LOST|did not start)", server.log)


def test_the_last_lines_of_a_replica_that_cannot_start_are_in_the_log(server: Server) -> None:
    assert re.search(r"replica dies-\S+ did not start \(exit code 7.*\n(  .*\n)+", server.log)


# --- what keeps the server from starting -------------------------------------------------------


def _error_line(server: Server) -> str:
    """The one sentence of a server that could not start."""
    assert server.wait_end() == 2
    assert "Traceback" not in server.log
    (line,) = [line for line in server.log.splitlines() if line.startswith("error: ")]
    assert not server.processes()
    return line


def test_a_repository_that_does_not_exist_ends_the_server_with_one_line(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    line = _error_line(start_server(tmp_path / "nothing", ready=False))
    assert str(tmp_path / "nothing") in line
    assert "No such file" in line


def test_a_repository_that_is_a_file_ends_the_server_with_one_line(
    start_server: Callable[..., Server], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    line = _error_line(start_server(tmp_path / "file", ready=False))
    assert "Not a directory" in line


def test_a_port_in_use_ends_the_server_with_one_line(
    start_server: Callable[..., Server], front: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option in (f"--grpc-port={port}", f"--http-port={port}"):
            server = start_server(EXAMPLES, f"--front={front}", option, ready=False)
            line = _error_line(server)
            assert f":{port}" in line
            assert "in use" in line


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--grpc-port=70000", "got 70000"),
        ("--replicas=-1", "got -1"),
        ("--front=quic", "got 'quic'"),
        ("--max-message-bytes=1", "got 1"),
        ("--busy-poll-us=20000", "got 20000"),
        ("--load-model=identity", "--model-control explicit"),
        ("--token-file=/nowhere/token", "/nowhere/token"),
    ],
)
def test_an_option_out_of_range_ends_the_server_with_one_line(
    start_server: Callable[..., Server], option: str, says: str
) -> None:
    line = _error_line(start_server(EXAMPLES, option, ready=False))
    assert option.partition("=")[0] in line
    assert says in line


def test_a_front_that_cannot_be_busy_says_so(start_server: Callable[..., Server]) -> None:
    line = _error_line(start_server(EXAMPLES, "--front=grpcio", "--busy-poll-us=100", ready=False))
    assert "--busy-poll-us: expected the native front" in line
