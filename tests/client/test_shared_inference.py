"""Large tensors through shared memory: when, how often the server is asked, what is left."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from tests.client.fake_server import Failure, FakeServer
from tideserve.client import (
    Client,
    ClientClosed,
    DeadlineExceeded,
    InvalidArgument,
    InvalidResponse,
    segments,
)
from tideserve.client.aio import Client as AioClient
from tideserve.client.inference import SHARED_BYTES
from tideserve.client.retry import RetryPolicy
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse
from tideserve.v1.segments import MIN_OUTPUT_BYTES, OUTPUTS_REGION

LARGE = np.arange(SHARED_BYTES // 4, dtype=np.float32)
SMALL = LARGE[:-1]
RETRY = RetryPolicy(max_attempts=2, initial_backoff_s=0.01)


class Driver(Protocol):
    """A client of either kind."""

    def infer(self, inputs: dict[str, Any], **options: Any) -> dict[str, NDArray[Any]]: ...

    def close(self) -> None: ...


class SyncDriver:
    def __init__(self, address: str, *, shared_memory: bool) -> None:
        self._client = Client(address, retry=RETRY, shared_memory=shared_memory)

    def infer(self, inputs: dict[str, Any], **options: Any) -> dict[str, NDArray[Any]]:
        return self._client.infer(options.pop("model", "echo"), inputs, **options)

    def close(self) -> None:
        self._client.close()


class AioDriver:
    def __init__(self, address: str, *, shared_memory: bool) -> None:
        self._runner = asyncio.Runner()
        self._client = AioClient(address, retry=RETRY, shared_memory=shared_memory)

    def infer(self, inputs: dict[str, Any], **options: Any) -> dict[str, NDArray[Any]]:
        return self._runner.run(self._client.infer(options.pop("model", "echo"), inputs, **options))

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.close()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory of its own."""
    monkeypatch.setattr(segments, "FOLDER", tmp_path)


@pytest.fixture(params=[SyncDriver, AioDriver], ids=["sync", "aio"])
def kind(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def client(kind: Any, server: FakeServer) -> Iterator[Driver]:
    client = kind(server.address, shared_memory=True)
    yield client
    client.close()
    assert not files()


def files() -> list[str]:
    """Segments that have a name."""
    return [it.name for it in segments.FOLDER.iterdir()]


def calls(server: FakeServer) -> list[str]:
    return [name for name, _ in server.metadata]


def regions(request: ModelInferRequest) -> list[str]:
    return [it.parameters["shared_memory_region"].string_param for it in request.inputs]


def check(client: Driver, array: NDArray[Any] = LARGE, **options: Any) -> None:
    np.testing.assert_array_equal(client.infer({"x": array}, **options)["x"], array)


def test_a_large_input_is_in_a_segment_which_is_registered_once_and_has_no_name(
    client: Driver, server: FakeServer
) -> None:
    for at in range(4):
        check(client, LARGE + at)
        assert not files()

    assert calls(server) == ["SystemSharedMemoryRegister", *["ModelInfer"] * 4]
    assert len({regions(it)[0] for it in server.requests}) == 1
    assert not any(it.raw_input_contents for it in server.requests)


def test_a_small_input_is_in_the_request_and_nothing_is_registered(
    client: Driver, server: FakeServer
) -> None:
    check(client, SMALL)

    assert calls(server) == ["ModelInfer"]
    assert regions(server.requests[0]) == [""]


def test_inputs_are_mixed_and_each_keeps_its_bytes(client: Driver, server: FakeServer) -> None:
    texts = np.array([b"t" * 1000] * 1000, dtype=object)
    inputs = {
        "strided": (np.arange(SHARED_BYTES) % 999).astype(np.int16)[::2].repeat(2)[::-1],
        "small": SMALL,
        "big_endian": LARGE.astype(">f8"),
        "texts": texts,
        "tiny": np.array([7], np.uint8),
        "half": (LARGE % 99).astype(np.float16).repeat(2).reshape(2, -1),
        "odd": np.ones(SHARED_BYTES + 1, np.bool_),
    }
    for _ in range(2):
        outputs = client.infer(inputs)
        for name, array in inputs.items():
            np.testing.assert_array_equal(outputs[name], array, strict=name == "odd")
    assert [bool(it) for it in regions(server.requests[-1])] == [
        True, False, True, True, False, True, True,
    ]  # fmt: skip


def test_it_can_be_switched_off(kind: Any, server: FakeServer) -> None:
    client = kind(server.address, shared_memory=False)
    check(client)
    client.close()

    assert calls(server) == ["ModelInfer"]


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
def test_a_server_that_takes_no_segment_is_asked_once(
    client: Driver, server: FakeServer, code: grpc.StatusCode
) -> None:
    server.memory_failures.append(Failure(code, "no"))
    for _ in range(3):
        check(client)

    assert calls(server) == ["SystemSharedMemoryRegister", *["ModelInfer"] * 3]
    assert regions(server.requests[0]) == [""]


def test_a_server_that_cannot_answer_now_is_asked_again(client: Driver, server: FakeServer) -> None:
    server.memory_failures.append(Failure(grpc.StatusCode.UNAVAILABLE, "starting"))
    check(client)
    check(client)

    assert calls(server) == ["SystemSharedMemoryRegister", "ModelInfer"] * 2
    assert [bool(regions(it)[0]) for it in server.requests] == [False, True]


def test_a_server_that_was_started_again_gets_a_new_segment(
    client: Driver, server: FakeServer
) -> None:
    check(client)
    for _ in range(2):
        server.forget_segments()
        check(client, LARGE * 2)

    asked = ["SystemSharedMemoryRegister", "ModelInfer"]
    assert calls(server) == [*asked, *["ModelInfer", *asked] * 2]
    assert len(server.segments) == 1


def test_a_server_that_forgets_every_segment_is_left_in_peace(
    client: Driver, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two servers behind one address."""
    register = server.SystemSharedMemoryRegister

    def register_and_forget(request: Any, context: Any) -> Any:
        answer = register(request, context)
        server.forget_segments()
        return answer

    monkeypatch.setattr(server, "SystemSharedMemoryRegister", register_and_forget)
    check(client)
    check(client)

    asked = ["SystemSharedMemoryRegister", "ModelInfer"]
    assert calls(server) == [*asked * 2, "ModelInfer", "ModelInfer"]


def test_a_request_that_is_refused_for_itself_is_not_sent_again(
    client: Driver, server: FakeServer
) -> None:
    server.failures.append(Failure(grpc.StatusCode.INVALID_ARGUMENT, "expected FP64"))
    with pytest.raises(InvalidArgument, match="expected FP64"):
        client.infer({"x": LARGE})
    check(client)

    assert calls(server) == ["SystemSharedMemoryRegister", *["ModelInfer"] * 2]


def test_an_attempt_that_is_repeated_uses_its_segment(client: Driver, server: FakeServer) -> None:
    server.failures.append(Failure(grpc.StatusCode.UNAVAILABLE, "not now"))
    check(client)

    assert calls(server) == ["SystemSharedMemoryRegister", *["ModelInfer"] * 2]


def test_a_segment_whose_call_ran_out_of_time_is_nobody_elses(
    client: Driver, server: FakeServer
) -> None:
    """The server may still write outputs into it."""
    with pytest.raises(DeadlineExceeded):
        client.infer({"x": LARGE}, model="hangs", timeout_s=0.5)
    (abandoned,) = server.segments
    check(client)

    assert calls(server)[-3:] == [
        "SystemSharedMemoryUnregister",
        "SystemSharedMemoryRegister",
        "ModelInfer",
    ]
    assert regions(server.requests[-1]) != [abandoned]
    assert list(server.segments) == regions(server.requests[-1])


def answering(*sizes: int) -> ModelInferResponse:
    """Outputs of so many bytes, each of other ones."""
    response = ModelInferResponse()
    for at, size in enumerate(sizes):
        response.outputs.add(name=f"y{at}", datatype="UINT8", shape=[size])
        response.raw_output_contents.append(bytes([at + 1]) * size)
    return response


def check_answer(client: Driver, *sizes: int) -> None:
    outputs = client.infer({"x": SMALL})
    assert {name: (array.size, set(array.tolist())) for name, array in outputs.items()} == {
        f"y{at}": (size, {at + 1}) for at, size in enumerate(sizes)
    }


def test_a_large_output_comes_through_the_segment_of_its_input(
    client: Driver, server: FakeServer
) -> None:
    check(client)
    check(client, LARGE * 2)

    assert server.put_bytes == [LARGE.nbytes] * 2
    assert calls(server) == ["SystemSharedMemoryRegister", *["ModelInfer"] * 2]


def test_large_outputs_have_a_segment_once_their_size_is_known_and_small_ones_none(
    client: Driver, server: FakeServer
) -> None:
    sizes = (3 << 20, MIN_OUTPUT_BYTES - 1, MIN_OUTPUT_BYTES + 1)
    server.response = answering(*sizes)
    for _ in range(3):
        check_answer(client, *sizes)

    assert calls(server) == ["ModelInfer", "SystemSharedMemoryRegister", *["ModelInfer"] * 2]
    assert server.put_bytes == [sizes[0], sizes[2]] * 2
    assert not files()


def test_an_output_that_has_outgrown_its_room_comes_in_the_answer_and_then_has_room(
    client: Driver, server: FakeServer
) -> None:
    for size in (1 << 20, 5 << 20, 5 << 20, 1000, 1000):
        server.response = answering(size)
        check_answer(client, size)

    assert server.put_bytes == [5 << 20]
    # The last one was expected to be small.
    assert OUTPUTS_REGION in server.requests[-2].parameters
    assert OUTPUTS_REGION not in server.requests[-1].parameters


def test_a_server_that_forgot_the_segment_of_outputs_gets_a_new_one(
    client: Driver, server: FakeServer
) -> None:
    server.response = answering(1 << 20)
    check_answer(client, 1 << 20)
    check_answer(client, 1 << 20)
    server.forget_segments()
    check_answer(client, 1 << 20)
    assert len(server.put_bytes) == 2
    assert len(server.segments) == 1


def test_an_answer_from_elsewhere_than_the_segment_is_no_answer(
    client: Driver, server: FakeServer
) -> None:
    server.shift_bytes = 1 << 30
    with pytest.raises(InvalidResponse, match="'x': expected a place within the 1048576 bytes"):
        check(client)
    server.shift_bytes = 0
    check(client)


def test_closing_unregisters_and_a_closed_client_makes_nothing(server: FakeServer) -> None:
    client = Client(server.address)
    client.infer("echo", {"x": LARGE})
    assert len(server.segments) == 1
    client.close()
    client.close()
    assert not server.segments
    with pytest.raises(ClientClosed):
        client.infer("echo", {"x": LARGE})
    assert not files()


def test_threads_have_segments_of_their_own(server: FakeServer) -> None:
    wrong: list[int] = []
    before = psutil.Process().num_fds()
    with Client(server.address) as client:

        def call(number: int) -> None:
            for at in range(10):
                array = LARGE + number * 100 + at
                if not np.array_equal(client.infer("echo", {"x": array})["x"], array):
                    wrong.append(number)

        threads = [threading.Thread(target=call, args=(n,)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= len(server.segments) <= segments.MAX_SEGMENTS
    assert not wrong
    assert not server.segments
    assert not files()
    assert psutil.Process().num_fds() <= before + 4


def test_a_task_that_is_cancelled_while_it_registers_leaves_nothing(server: FakeServer) -> None:
    begun = threading.Event()

    def hang(request: Any, context: Any) -> Any:
        begun.set()
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait(20)
        raise RuntimeError("the caller is gone")

    server.SystemSharedMemoryRegister = hang  # type: ignore[method-assign]

    async def scenario() -> None:
        async with AioClient(server.address) as client:
            task = asyncio.create_task(client.infer("echo", {"x": LARGE}))
            await asyncio.to_thread(begun.wait, 20)
            assert len(files()) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not files()

    asyncio.run(scenario())
