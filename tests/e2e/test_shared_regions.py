"""Tensors in shared memory, between real processes: Triton's client, and clients that misbehave."""

import asyncio
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.utils.shared_memory as triton_memory
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from tests.e2e.caller import INFER_PATH, Refusal, connect, refusal_of
from tests.e2e.model_folder import link_example, write_model
from tests.e2e.running import running
from tests.e2e.server import Server, wait_until
from tests.e2e.server_log import mistakes
from tideserve.client import Client, InvalidArgument, TideserveClientError
from tideserve.client.aio import Client as AioClient
from tideserve.client.segments import MAX_SEGMENTS
from tideserve.v1.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    SystemSharedMemoryRegisterRequest,
    SystemSharedMemoryUnregisterRequest,
)
from tideserve.v1.methods import INFERENCE_SERVICE
from tideserve.v1.segments import PREFIX

pytestmark = pytest.mark.e2e

CALLERS: Final = 8
CALLS: Final = 25
MEMORY: Final = Path("/dev/shm")
# Rows of any width, and texts of any number: what comes goes back.
ROWS_CONFIG: Final = """
backend: "python"
max_batch_size: 8
input [
  { name: "ROWS" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "TEXTS" data_type: TYPE_STRING dims: [ -1 ] optional: true }
]
output [
  { name: "ROWS" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "SUM" data_type: TYPE_FP32 dims: [ 1 ] },
  { name: "TEXTS" data_type: TYPE_STRING dims: [ -1 ] }
]
dynamic_batching { }
"""
ROWS_SOURCE: Final = """
import numpy as np
class Model:
    def load(self, context): pass
    def infer(self, inputs):
        rows = inputs["ROWS"]
        texts = inputs.get("TEXTS", np.full((len(rows), 1), b"", object))
        return {"ROWS": rows, "SUM": rows.sum(axis=1, keepdims=True), "TEXTS": texts}
    def unload(self): pass
"""


@pytest.fixture(scope="module", params=["native", "grpcio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    link_example(repository, "identity")
    link_example(repository, "text_python")
    write_model(repository, "rows", ROWS_CONFIG, ROWS_SOURCE)
    with running(
        repository, tmp_path_factory.mktemp("state"), f"--front={request.param}"
    ) as server:
        yield server
        assert not segments_held_by(server)
        assert server.stop() == 0
        assert not mistakes(server.log)


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    client = triton.InferenceServerClient(server.address)
    yield client
    client.unregister_system_shared_memory()
    client.close()


def segments_held_by(server: Server) -> list[str]:
    """Segments of tests and clients that the frontend has open."""
    held = []
    for file in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(OSError):
            held.append(str(file.readlink()))
    return [name for name in held if name.startswith(f"{MEMORY}/tideserve-")]


@contextmanager
def region(client: Any, name: str, byte_size: int) -> Iterator[Any]:
    """A segment of Triton's client, registered."""
    key = f"/tideserve-test-{secrets.token_hex(8)}"
    handle = triton_memory.create_shared_memory_region(name, key, byte_size, create_only=True)
    try:
        client.register_system_shared_memory(name, key, byte_size)
        yield handle
    finally:
        client.unregister_system_shared_memory(name)
        triton_memory.destroy_shared_memory_region(handle)


def place(tensor: Any, name: str, byte_size: int, offset: int = 0) -> Any:
    tensor.set_shared_memory(name, byte_size, offset)
    return tensor


def identity(rows: int) -> tuple[Any, Any]:
    return triton.InferInput("IN", [rows, 16], "FP32"), triton.InferRequestedOutput("OUT")


def test_the_server_says_that_it_has_shared_memory(client: Any) -> None:
    assert "system_shared_memory" in client.get_server_metadata().extensions


def test_tritonclient_registers_asks_and_unregisters(client: Any) -> None:
    with region(client, "a", 4096):
        status = client.get_system_shared_memory_status().regions
        assert (status["a"].byte_size, status["a"].offset) == (4096, 0)
        with pytest.raises(InferenceServerException, match="'a' is registered already"):
            client.register_system_shared_memory("a", "/x", 1)
    assert not client.get_system_shared_memory_status().regions
    with pytest.raises(InferenceServerException, match="'a' is not registered"):
        client.get_system_shared_memory_status("a")


def test_tritonclient_sends_and_takes_an_array_in_shared_memory(client: Any) -> None:
    values = np.random.default_rng(1).random((64, 16), dtype=np.float32)
    size = values.nbytes
    with region(client, "both", 2 * size) as both:
        given, wanted = identity(64)
        place(given, "both", size)
        place(wanted, "both", size, size)
        for turn in range(3):
            triton_memory.set_shared_memory_region(both, [values + turn])
            answer = client.infer("identity", [given], outputs=[wanted])
            output = answer.get_output("OUT")
            assert output.parameters["shared_memory_byte_size"].int64_param == size
            got = triton_memory.get_contents_as_numpy(
                both, np.float32, list(output.shape), offset=size
            )
            np.testing.assert_array_equal(got, values + turn)
            del got
        # One way only, either way.
        inline = client.infer("identity", [given]).as_numpy("OUT")
        np.testing.assert_array_equal(inline, values + 2)
        given.set_data_from_numpy(values)
        client.infer("identity", [given], outputs=[wanted])
        got = triton_memory.get_contents_as_numpy(both, np.float32, [64, 16], offset=size)
        np.testing.assert_array_equal(got, values)
        del got


def test_tritonclient_sends_and_takes_texts_in_shared_memory(client: Any) -> None:
    texts = np.array([["ﬁne".encode()], [b""], ["Ⅳ".encode()]], dtype=object)
    serialized = serialize_byte_tensor(texts)
    size = len(serialized.item())
    with region(client, "texts", 4096) as handle:
        triton_memory.set_shared_memory_region(handle, [serialized])
        given = place(triton.InferInput("TEXT", [3, 1], "BYTES"), "texts", size)
        wanted = place(triton.InferRequestedOutput("NORMALIZED"), "texts", 1024, 1024)
        answer = client.infer("text_python", [given], outputs=[wanted])
        written = answer.get_output("NORMALIZED").parameters["shared_memory_byte_size"].int64_param
        got = triton_memory.get_contents_as_numpy(handle, np.object_, [3, 1], offset=1024)
        assert got.ravel().tolist() == [b"fine", b"", b"iv"]
        assert written == sum(4 + len(it) for it in got.ravel())
        place(wanted, "texts", written - 1, 1024)
        with pytest.raises(InferenceServerException, match=f"at least {written} bytes") as refused:
            client.infer("text_python", [given], outputs=[wanted])
        assert "INVALID_ARGUMENT" in str(refused.value.status())


def test_concurrent_callers_get_their_own_rows_in_their_own_regions(server: Server) -> None:
    def call(number: int) -> None:
        client = triton.InferenceServerClient(server.address)
        generator = np.random.default_rng(number)
        with region(client, f"region-{number}", 8192) as handle:
            for _ in range(CALLS):
                rows = int(generator.integers(1, 5))
                values = generator.random((rows, 16), dtype=np.float32)
                triton_memory.set_shared_memory_region(handle, [values])
                given, wanted = identity(rows)
                place(given, f"region-{number}", values.nbytes)
                place(wanted, f"region-{number}", 4096, 4096)
                client.infer("identity", [given], outputs=[wanted])
                got = triton_memory.get_contents_as_numpy(
                    handle, np.float32, [rows, 16], offset=4096
                )
                np.testing.assert_array_equal(got, values)
                del got
        client.close()

    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(call, range(CALLERS)))


# --- clients that misbehave ---------------------------------------------------------------------


@pytest.fixture
def segment() -> Iterator[Path]:
    path = MEMORY / f"tideserve-test-{secrets.token_hex(8)}"
    path.write_bytes(bytes(4096))
    yield path
    path.unlink(missing_ok=True)


def shared_request(name: str) -> ModelInferRequest:
    request = ModelInferRequest(model_name="identity")
    given = request.inputs.add(name="IN", datatype="FP32", shape=[1, 16])
    wanted = request.outputs.add(name="OUT")
    for tensor, offset in ((given, 0), (wanted, 64)):
        tensor.parameters["shared_memory_region"].string_param = name
        tensor.parameters["shared_memory_byte_size"].int64_param = 64
        tensor.parameters["shared_memory_offset"].int64_param = offset
    return request


def good_request() -> ModelInferRequest:
    request = ModelInferRequest(model_name="identity", raw_input_contents=[bytes(64)])
    request.inputs.add(name="IN", datatype="FP32", shape=[1, 16])
    return request


def memory_path(method: str) -> str:
    return f"/{INFERENCE_SERVICE}/SystemSharedMemory{method}"


def test_a_segment_cut_short_under_load_kills_nothing(server: Server, segment: Path) -> None:
    register = SystemSharedMemoryRegisterRequest(name="cut", key=segment.name, byte_size=4096)
    codes: set[grpc.StatusCode] = set()

    def call(_: int) -> None:
        try:
            caller.infer(shared_request("cut"))
        except grpc.RpcError as error:
            codes.add(refusal_of(error).code)

    with connect(server.address) as caller:
        caller.call(memory_path("Register"), register.SerializeToString())
        with ThreadPoolExecutor(CALLERS) as pool:
            calls = pool.map(call, range(400))
            for _ in range(40):
                os.truncate(segment, 0)
                os.truncate(segment, 4096)
            list(calls)
        os.truncate(segment, 0)
        code, sentence = caller.refusal(INFER_PATH, shared_request("cut"))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "it was cut short after it was registered" in sentence
        assert codes <= {grpc.StatusCode.INVALID_ARGUMENT}
        assert segment.stat().st_size == 0
        assert list(caller.infer(good_request()).raw_output_contents) == [bytes(64)]
        caller.call(
            memory_path("Unregister"),
            SystemSharedMemoryUnregisterRequest(name="cut").SerializeToString(),
        )


def test_unregistering_while_in_use_answers_or_refuses_each_request(
    server: Server, segment: Path
) -> None:
    register = SystemSharedMemoryRegisterRequest(name="busy", key=segment.name, byte_size=4096)
    unregister = SystemSharedMemoryUnregisterRequest(name="busy")

    def call(_: int) -> Refusal:
        try:
            caller.infer(shared_request("busy"))
        except grpc.RpcError as error:
            return refusal_of(error)
        return Refusal(grpc.StatusCode.OK, "")

    with connect(server.address) as caller, ThreadPoolExecutor(CALLERS) as pool:
        caller.call(memory_path("Register"), register.SerializeToString())
        calls = pool.map(call, range(300))
        for _ in range(30):
            caller.call(memory_path("Unregister"), unregister.SerializeToString())
            caller.call(memory_path("Register"), register.SerializeToString())
        for code, sentence in calls:
            assert code is grpc.StatusCode.OK or "'busy' is not registered" in sentence
        assert call(0).code is grpc.StatusCode.OK
        caller.call(memory_path("Unregister"), unregister.SerializeToString())
        assert call(0).code is grpc.StatusCode.INVALID_ARGUMENT


CLIENT_SOURCE: Final = """
import sys, time
from pathlib import Path
import grpc
from tideserve.v1.inference_pb2 import SystemSharedMemoryRegisterRequest as Register
address, key = sys.argv[1:]
path = Path("/dev/shm") / key
path.write_bytes(bytes(4096))
call = grpc.insecure_channel(address).unary_unary(
    "/inference.GRPCInferenceService/SystemSharedMemoryRegister"
)
call(Register(name="orphan", key=key, byte_size=4096).SerializeToString(), timeout=20)
path.unlink()
print("registered", flush=True)
time.sleep(60)
"""


def test_a_killed_clients_region_is_gone_once_it_is_unregistered(server: Server) -> None:
    key = f"tideserve-test-{secrets.token_hex(8)}"
    with subprocess.Popen(
        [sys.executable, "-c", CLIENT_SOURCE, server.address, key], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"registered\n"
        process.send_signal(signal.SIGKILL)
    with connect(server.address) as caller:
        answer: ModelInferResponse = caller.infer(shared_request("orphan"))
        assert answer.outputs[0].parameters["shared_memory_byte_size"].int64_param == 64
        assert [name.split()[0] for name in segments_held_by(server)] == [f"{MEMORY}/{key}"]
        caller.call(
            memory_path("Unregister"),
            SystemSharedMemoryUnregisterRequest(name="orphan").SerializeToString(),
        )
    assert not segments_held_by(server)


# --- Tideserve's own client ---------------------------------------------------------------------


def inputs_of(number: int) -> dict[str, Any]:
    """Of one to four rows, most of them large."""
    generator = np.random.default_rng(number)
    count = number % 4 + 1
    rows = generator.random((count, int(generator.integers(30_000, 200_000))), dtype=np.float32)
    texts = np.array([[b"text" * 3000] * 30] * count, dtype=object)
    return {"ROWS": rows, "TEXTS": texts} if number % 2 else {"ROWS": rows}


def check_same(inputs: dict[str, Any], *answers: dict[str, Any]) -> None:
    for answer in answers:
        assert answer.keys() == {"ROWS", "SUM", "TEXTS"}
        for name, array in inputs.items():
            np.testing.assert_array_equal(answer[name], array, strict=True)
        np.testing.assert_array_equal(answer["SUM"], answers[0]["SUM"])


def test_the_clients_results_are_the_same_with_shared_memory_and_without(server: Server) -> None:
    with Client(server.address) as shared, Client(server.address, shared_memory=False) as plain:

        def call(number: int) -> None:
            inputs = inputs_of(number)
            check_same(inputs, shared.infer("rows", inputs), plain.infer("rows", inputs))

        call(1)
        assert len(segments_held_by(server)) == 1
        with ThreadPoolExecutor(CALLERS) as pool:
            list(pool.map(call, range(24)))
        assert segments_held_by(server)
    assert not segments_held_by(server)


def test_the_asyncio_client_does_as_the_other(server: Server) -> None:
    async def scenario() -> None:
        async with AioClient(server.address) as client:
            inputs = [inputs_of(number) for number in range(12)]
            answers = await asyncio.gather(*(client.infer("rows", it) for it in inputs))
            for given, answer in zip(inputs, answers, strict=True):
                check_same(given, answer)
            assert segments_held_by(server)

    asyncio.run(scenario())
    assert not segments_held_by(server)


# Rows of so many numbers: some of them as messages, some large.
STREAM_ROWS: Final = [
    {"ROWS": np.random.default_rng(at).random((1, width), dtype=np.float32)}
    for at, width in enumerate([150_000, 10, 300_000, 150_000, 1, 70_000] * 4)
]


def registered(client: Any) -> list[str]:
    """Regions, in the server's words."""
    return sorted(client.get_system_shared_memory_status().regions)


def test_streams_give_the_same_with_shared_memory_and_without(server: Server, client: Any) -> None:
    inputs = [inputs_of(number) for number in range(24)] + STREAM_ROWS
    # The server ends a stream where answers of 16 MiB wait to be sent: 3 of these are less.
    with Client(server.address) as shared, Client(server.address, shared_memory=False) as plain:
        for _ in range(2):
            answers = [
                [it.outputs for it in one.infer_stream("rows", inputs, max_outstanding=3)]
                for one in (shared, plain)
            ]
            assert [len(it) for it in answers] == [len(inputs)] * 2
            for given, *both in zip(inputs, *answers, strict=True):
                check_same(given, *both)
        assert 1 <= len(registered(client)) <= MAX_SEGMENTS
    assert not registered(client)
    assert not segments_held_by(server)


def test_streams_of_the_asyncio_client_give_the_same_as_its_calls(
    server: Server, client: Any
) -> None:
    async def play(one: AioClient) -> None:
        results = [it async for it in one.infer_stream("rows", STREAM_ROWS)]
        for given, result in zip(STREAM_ROWS, results, strict=True):
            check_same(given, result.outputs, await one.infer("rows", given))

    async def scenario() -> None:
        async with AioClient(server.address) as one:
            await asyncio.gather(play(one), play(one), play(one))
            assert 1 <= len(registered(client)) <= MAX_SEGMENTS

    asyncio.run(scenario())
    assert not registered(client)
    assert not segments_held_by(server)


def test_more_requests_in_a_stream_than_there_are_segments(server: Server, client: Any) -> None:
    with Client(server.address) as one, one.stream() as stream:
        for _ in range(2):
            for given in STREAM_ROWS:
                stream.send("rows", given)
            for given, result in zip(STREAM_ROWS, stream, strict=True):
                check_same(given, result.outputs)
        assert 1 <= len(registered(client)) <= MAX_SEGMENTS
    assert not registered(client)


def test_a_request_of_a_stream_that_fails_gives_its_segment_back(
    server: Server, client: Any
) -> None:
    with Client(server.address) as one, one.stream() as stream:
        for _ in range(MAX_SEGMENTS + 1):
            stream.send("rows", {"WRONG": STREAM_ROWS[0]["ROWS"]})
            with pytest.raises(InvalidArgument, match="WRONG"):
                stream.receive(30)
        assert len(registered(client)) == 1


OWN_CLIENT_SOURCE: Final = """
import sys, time
import numpy as np
from tideserve.client import Client
client = Client(sys.argv[1])
client.infer("rows", {"ROWS": np.ones((1, 1_000_000), np.float32)})
print("answered", flush=True)
time.sleep(60)
"""


def test_the_segment_of_a_client_that_was_killed_goes_by_itself(server: Server) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWN_CLIENT_SOURCE, server.address], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"answered\n"
        (held,) = segments_held_by(server)
        assert held.endswith("(deleted)")
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not segments_held_by(server), 20.0, lambda: str(segments_held_by(server)))


def test_the_client_goes_on_with_a_server_that_was_started_again(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    write_model(repository, "rows", ROWS_CONFIG, ROWS_SOURCE)
    with (
        running(repository, tmp_path / "state") as server,
        Client(server.address) as client,
    ):
        check_same(inputs_of(3), client.infer("rows", inputs_of(3)))
        assert server.stop() == 0
        server.start()
        server.wait_ready()
        for _ in range(2):
            check_same(inputs_of(3), client.infer("rows", inputs_of(3)))
            assert len(segments_held_by(server)) == 1


@pytest.mark.parametrize("front", ["native", "grpcio"])
def test_streams_that_are_left_with_requests_open_leave_no_region(
    tmp_path: Path, front: str
) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    write_model(repository, "rows", ROWS_CONFIG, ROWS_SOURCE)

    async def leave(client: AioClient) -> None:
        async with client.stream() as stream:
            for given in STREAM_ROWS:
                await stream.send("rows", given)
            check_same(STREAM_ROWS[0], (await stream.receive(30)).outputs)

    async def scenario(address: str) -> None:
        async with AioClient(address) as client:
            for _ in range(3):
                await leave(client)
            check_same(STREAM_ROWS[2], await client.infer("rows", STREAM_ROWS[2]))

    with running(repository, tmp_path / "state", f"--front={front}") as server:
        with Client(server.address) as client:
            for _ in range(3):
                with client.stream() as stream:
                    for given in STREAM_ROWS:
                        stream.send("rows", given)
                    check_same(STREAM_ROWS[0], stream.receive(30).outputs)
            check_same(STREAM_ROWS[2], client.infer("rows", STREAM_ROWS[2]))
        asyncio.run(scenario(server.address))
        asker = triton.InferenceServerClient(server.address)
        assert not registered(asker)
        asker.close()
        # Other servers' clients may be at it.
        wait_until(lambda: not list(MEMORY.glob(f"{PREFIX}*")), 20.0)
        assert server.stop() == 0
        assert not mistakes(server.log)


def test_streams_go_on_with_a_server_that_was_started_again(tmp_path: Path) -> None:
    """What was registered before is unknown to it: those requests come again, in messages."""
    repository = tmp_path / "repository"
    repository.mkdir()
    write_model(repository, "rows", ROWS_CONFIG, ROWS_SOURCE)

    async def play(one: AioClient) -> None:
        results = [it.outputs async for it in one.infer_stream("rows", STREAM_ROWS)]
        for given, result in zip(STREAM_ROWS, results, strict=True):
            check_same(given, result)

    with (
        running(repository, tmp_path / "state") as server,
        Client(server.address) as client,
        asyncio.Runner() as runner,
    ):
        aio_client = AioClient(server.address)
        for turn in range(2):
            for given, result in zip(
                STREAM_ROWS, client.infer_stream("rows", STREAM_ROWS), strict=True
            ):
                check_same(given, result.outputs)
            runner.run(play(aio_client))
            assert len(segments_held_by(server)) >= 2
            # Open as it dies, in the middle of its requests.
            with client.stream() as stream:
                for given in STREAM_ROWS:
                    stream.send("rows", given)
                server.stop(signal.SIGKILL if turn else signal.SIGTERM)
                with suppress(TideserveClientError):
                    while True:
                        stream.receive(30)
            server.start()
            server.wait_ready()
        client.close()
        runner.run(aio_client.close())
        assert not segments_held_by(server)
        # Other servers' clients may be at it.
        wait_until(lambda: not list(MEMORY.glob(f"{PREFIX}*")), 20.0)


# --- without ------------------------------------------------------------------------------------


def test_a_server_started_without_shared_memory_refuses_it(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    repository.mkdir()
    link_example(repository, "identity")
    with (
        running(repository, tmp_path / "state", "--no-shared-memory") as server,
        connect(server.address) as caller,
    ):
        client = triton.InferenceServerClient(server.address)
        assert "system_shared_memory" not in client.get_server_metadata().extensions
        client.close()
        for path, message in (
            (memory_path("Register"), SystemSharedMemoryRegisterRequest(name="r", key="r")),
            (INFER_PATH, shared_request("r")),
        ):
            code, sentence = caller.refusal(path, message)
            assert code is grpc.StatusCode.UNIMPLEMENTED
            assert "shared memory" in sentence
