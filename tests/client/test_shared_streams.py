"""Large tensors of streams through shared memory: what has a segment, and who gives it back."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import grpc
import numpy as np
import pytest
from numpy.typing import NDArray

from tests.client.fake_server import Failure, FakeServer
from tideserve.client import (
    Client,
    ClientClosed,
    InvalidArgument,
    ModelError,
    ResourceExhausted,
    StreamResult,
    TideserveClientError,
    Unavailable,
    segments,
)
from tideserve.client.aio import Client as AioClient
from tideserve.client.inference import SHARED_BYTES
from tideserve.client.segments import MAX_SEGMENTS
from tideserve.client.tensors import WireTensor
from tideserve.v1.inference_pb2 import ModelInferRequest
from tideserve.v1.segments import OUTPUTS_REGION

LARGE = np.arange(SHARED_BYTES // 4, dtype=np.float32)
SMALL = LARGE[:-1]
REGISTER, UNREGISTER = "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister"


class Stream(Protocol):
    """Of a client of either kind."""

    def send(self, array: NDArray[Any], model: str = "echo", **options: Any) -> str: ...

    def receive(self) -> StreamResult: ...

    def close(self) -> None: ...


class SyncDriver:
    def __init__(self, address: str, *, shared_memory: bool = True) -> None:
        self.client = Client(address, shared_memory=shared_memory)
        self.pool = self.client._segments.pool

    def stream(self, **options: Any) -> Stream:
        stream = self.client.stream(**options).__enter__()

        class Driven:
            def send(self, array: NDArray[Any], model: str = "echo", **options: Any) -> str:
                return stream.send(model, {"x": array}, **options)

            def receive(self) -> StreamResult:
                return stream.receive(20)

            def close(self) -> None:
                stream.close()

        return Driven()

    def infer_stream(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        results = self.client.infer_stream("echo", ({"x": it} for it in arrays))
        return [result.outputs["x"] for result in results]

    def close(self) -> None:
        self.client.close()


class AioDriver:
    def __init__(self, address: str, *, shared_memory: bool = True) -> None:
        self._runner = asyncio.Runner()
        self.client = AioClient(address, shared_memory=shared_memory)
        self.pool = self.client._segments.pool

    def stream(self, **options: Any) -> Stream:
        run = self._runner.run
        stream = run(self.client.stream(**options).__aenter__())

        class Driven:
            def send(self, array: NDArray[Any], model: str = "echo", **options: Any) -> str:
                return run(stream.send(model, {"x": array}, **options))

            def receive(self) -> StreamResult:
                return run(stream.receive(20))

            def close(self) -> None:
                run(stream.close())

        return Driven()

    def infer_stream(self, arrays: list[NDArray[Any]]) -> list[NDArray[Any]]:
        async def play() -> list[NDArray[Any]]:
            results = self.client.infer_stream("echo", [{"x": it} for it in arrays])
            return [result.outputs["x"] async for result in results]

        return self._runner.run(play())

    def close(self) -> None:
        self._runner.run(self.client.close())
        self._runner.close()


Driver = SyncDriver | AioDriver


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory of its own."""
    monkeypatch.setattr(segments, "FOLDER", tmp_path)


@pytest.fixture(params=[SyncDriver, AioDriver], ids=["sync", "aio"])
def driver(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Driver]:
    driver: Driver = request.param(server.address)
    yield driver
    driver.close()
    assert not files()
    assert not server.segments
    # None is held any more, by whomever.
    assert not driver.pool._segments


@pytest.fixture
def stream(driver: Driver) -> Iterator[Stream]:
    stream = driver.stream()
    yield stream
    stream.close()


def files() -> list[str]:
    """Segments that have a name."""
    return [it.name for it in segments.FOLDER.iterdir()]


def calls(server: FakeServer) -> list[str]:
    return [name for name, _ in server.metadata if name != "ModelStreamInfer"]


def regions(requests: list[ModelInferRequest]) -> list[str]:
    return [it.inputs[0].parameters["shared_memory_region"].string_param for it in requests]


def check(stream: Stream, array: NDArray[Any]) -> None:
    np.testing.assert_array_equal(stream.receive().outputs["x"], array, strict=True)


# --- what has a segment -------------------------------------------------------------------------


def test_requests_in_turn_share_a_segment_which_their_outputs_use_too(
    stream: Stream, server: FakeServer
) -> None:
    for at in range(4):
        stream.send(LARGE + at)
        check(stream, LARGE + at)
        assert not files()

    assert calls(server) == [REGISTER]
    assert len(set(regions(server.requests))) == 1
    assert not any(it.raw_input_contents for it in server.requests)
    assert server.put_bytes == [LARGE.nbytes] * 4


def test_the_array_may_be_changed_once_it_is_sent(stream: Stream, server: FakeServer) -> None:
    server.stream_goes_on.clear()
    array = LARGE.copy()
    stream.send(array)
    array[:] = 0
    server.stream_goes_on.set()
    check(stream, LARGE)


def test_a_small_request_travels_as_ever(stream: Stream, server: FakeServer) -> None:
    stream.send(SMALL)
    check(stream, SMALL)

    assert calls(server) == []
    assert regions(server.requests) == [""]
    # Its answer was large enough for the next one's to have room.
    stream.send(SMALL)
    check(stream, SMALL)
    assert calls(server) == [REGISTER]
    assert OUTPUTS_REGION in server.requests[1].parameters
    assert server.put_bytes == [SMALL.nbytes]


def test_more_than_there_are_segments_travel_in_messages(
    stream: Stream, server: FakeServer
) -> None:
    server.stream_goes_on.clear()
    arrays = [LARGE + at for at in range(MAX_SEGMENTS + 3)]
    for array in arrays:
        stream.send(array)
    server.stream_goes_on.set()
    for array in arrays:
        check(stream, array)

    names = regions(server.requests)
    assert len(set(names[:MAX_SEGMENTS])) == MAX_SEGMENTS
    assert names[MAX_SEGMENTS:] == [""] * 3
    assert calls(server) == [REGISTER] * MAX_SEGMENTS


def test_infer_stream_does_as_streams_do(driver: Driver, server: FakeServer) -> None:
    arrays = [LARGE + at if at % 3 else SMALL[: at + 1] for at in range(40)]
    for array, output in zip(arrays, driver.infer_stream(arrays), strict=True):
        np.testing.assert_array_equal(output, array)

    shared = [bool(name) for name in regions(server.requests)]
    assert any(shared)
    assert not any(shared[::3])
    assert set(calls(server)) == {REGISTER}


@pytest.mark.parametrize("kind", [SyncDriver, AioDriver])
def test_it_can_be_switched_off(server: FakeServer, kind: type[Driver]) -> None:
    driver = kind(server.address, shared_memory=False)
    for _ in range(2):
        (output,) = driver.infer_stream([LARGE])
        np.testing.assert_array_equal(output, LARGE)
    driver.close()

    assert calls(server) == []
    assert regions(server.requests) == ["", ""]


def test_unary_calls_and_streams_of_a_client_share_its_segments(
    driver: Driver, stream: Stream, server: FakeServer
) -> None:
    stream.send(LARGE)
    check(stream, LARGE)
    assert driver.pool.take(1) is not None
    other = driver.stream()
    other.send(LARGE)
    check(other, LARGE)
    other.close()
    assert calls(server) == [REGISTER] * 2
    driver.pool.give_back(driver.pool._segments[0])


# --- who gives it back --------------------------------------------------------------------------


def test_an_answer_that_is_a_mistake_gives_it_back(stream: Stream, server: FakeServer) -> None:
    server.stream_code = 13
    for _ in range(MAX_SEGMENTS + 1):
        stream.send(LARGE, model="fails")
        with pytest.raises(ModelError):
            stream.receive()

    assert calls(server) == [REGISTER]
    assert all(regions(server.requests))


def test_it_is_given_back_by_the_answer_and_not_by_its_reader(
    stream: Stream, server: FakeServer
) -> None:
    """Results that nobody has read hold none."""
    server.swap_stream_answers = True
    for at in range(4 * MAX_SEGMENTS):
        stream.send(LARGE + at)
        if at % 2:
            # The answer to this one came first, and waits for that to the one before.
            check(stream, LARGE + at - 1)
            check(stream, LARGE + at)

    assert all(regions(server.requests))
    assert calls(server) == [REGISTER] * 2


@pytest.mark.parametrize(
    "options", [{"request_id": "taken"}, {"parameters": {"priority": 1}}, {"queue_timeout_s": -1}]
)
def test_what_is_not_sent_gives_it_back(
    stream: Stream, server: FakeServer, options: dict[str, Any]
) -> None:
    stream.send(LARGE, model="hangs", request_id="taken")
    for _ in range(MAX_SEGMENTS):
        with pytest.raises(InvalidArgument):
            stream.send(LARGE, **options)

    assert calls(server) == [REGISTER] * 2


def test_a_stream_that_takes_no_more_gives_it_back(driver: Driver, server: FakeServer) -> None:
    server.stream_goes_on.clear()
    stream = driver.stream(max_outstanding=1)
    stream.send(LARGE)
    for _ in range(MAX_SEGMENTS):
        with pytest.raises(ResourceExhausted):
            stream.send(LARGE)
    assert calls(server) == [REGISTER] * 2
    stream.close()
    with pytest.raises(ClientClosed):
        stream.send(LARGE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_send_gives_it_back(
    stream: Stream, server: FakeServer, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    def interrupted(tensor: WireTensor, memory: Any, offset: int) -> None:
        view = memoryview(memory)  # which the traceback refers to
        assert view
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(WireTensor, "write_to", interrupted)
        for _ in range(MAX_SEGMENTS + 1):
            with pytest.raises(error):
                stream.send(LARGE)
    stream.send(LARGE)
    check(stream, LARGE)
    assert calls(server) == [REGISTER]


def test_what_has_no_answer_when_a_stream_is_closed_is_used_no_more(
    driver: Driver, server: FakeServer
) -> None:
    """The server may still write outputs into it."""
    stream = driver.stream()
    for _ in range(3):
        stream.send(LARGE, model="hangs")
    abandoned = set(server.segments)
    assert len(abandoned) == 3
    stream.close()
    assert not driver.pool._segments

    stream = driver.stream()
    stream.send(LARGE)
    check(stream, LARGE)
    stream.close()
    assert calls(server) == [*[REGISTER] * 3, *[UNREGISTER] * 3, REGISTER]
    assert len(server.segments) == 1
    assert not abandoned & set(server.segments)


def test_so_is_what_has_none_when_a_stream_breaks(driver: Driver, server: FakeServer) -> None:
    stream = driver.stream()
    stream.send(LARGE)
    stream.send(LARGE, model="breaks")
    check(stream, LARGE)
    with pytest.raises(Unavailable, match="the stream breaks"):
        stream.receive()
    with pytest.raises(Unavailable, match="the stream breaks"):
        stream.send(LARGE)
    assert not [it for it in driver.pool._segments if it.is_taken]
    assert len(driver.pool._abandoned) == 1
    stream.close()


def test_a_client_that_is_closed_under_its_stream_has_none_left(
    driver: Driver, server: FakeServer
) -> None:
    stream = driver.stream()
    stream.send(LARGE, model="hangs")
    driver.client.close() if isinstance(driver, SyncDriver) else driver._runner.run(
        driver.client.close()
    )
    with pytest.raises(TideserveClientError):
        stream.receive()
    stream.close()
    assert calls(server) == [REGISTER, UNREGISTER]


# --- servers that do not know it ----------------------------------------------------------------


@pytest.mark.parametrize("code", [3, 5, None])
def test_a_server_that_forgot_them_gets_the_same_requests_again_and_then_new_segments(
    driver: Driver, server: FakeServer, code: int | None
) -> None:
    server.unknown_segment_code = code
    stream = driver.stream()
    server.stream_goes_on.clear()
    for at in range(3):
        stream.send(LARGE + at)
    server.stream_goes_on.set()
    for at in range(3):
        check(stream, LARGE + at)
    server.forget_segments()
    server.stream_goes_on.clear()
    arrays = [LARGE * 2, SMALL[:9], LARGE * 3, LARGE * 4]
    ids = [stream.send(array, request_id=f"r{at}") for at, array in enumerate(arrays)]
    server.stream_goes_on.set()
    for request_id, array in zip(ids, arrays, strict=True):
        result = stream.receive()
        assert result.request_id == request_id
        np.testing.assert_array_equal(result.outputs["x"], array)
    assert sorted(it.id for it in server.requests[3:]) == sorted([*ids, "r0", "r2", "r3"])
    stream.send(LARGE)
    check(stream, LARGE)

    # What it may have been told of after it was started again was unregistered before the next.
    assert calls(server) == [*[REGISTER] * 3, *[UNREGISTER] * 2, REGISTER]
    assert len(server.segments) == 1
    stream.close()


def test_a_request_is_sent_again_though_the_stream_was_finished(
    driver: Driver, server: FakeServer
) -> None:
    driver.infer_stream([LARGE])
    server.forget_segments()
    for array, output in zip(
        [LARGE, LARGE + 1], driver.infer_stream([LARGE, LARGE + 1]), strict=True
    ):
        np.testing.assert_array_equal(output, array)
    again = [it for it in server.requests[1:] if it.raw_input_contents]
    assert "stream-1" in [it.id for it in again]


def test_a_server_that_forgets_every_segment_is_left_in_peace(
    driver: Driver, server: FakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As two servers behind one address."""
    register = server.SystemSharedMemoryRegister

    def register_and_forget(request: Any, context: Any) -> Any:
        answer = register(request, context)
        server.forget_segments()
        return answer

    monkeypatch.setattr(server, "SystemSharedMemoryRegister", register_and_forget)
    stream = driver.stream()
    for at in range(5):
        stream.send(LARGE + at)
        check(stream, LARGE + at)
    stream.close()

    assert calls(server) == [REGISTER] * 2
    assert [bool(it) for it in regions(server.requests)] == [
        True, False, True, False, False, False, False,
    ]  # fmt: skip


def test_a_server_that_takes_none_is_asked_once(stream: Stream, server: FakeServer) -> None:
    server.memory_failures.append(Failure(grpc.StatusCode.UNIMPLEMENTED, "no"))
    for _ in range(3):
        stream.send(LARGE)
        check(stream, LARGE)

    assert calls(server) == [REGISTER]
    assert regions(server.requests) == [""] * 3


def test_a_server_that_cannot_answer_now_is_asked_again(stream: Stream, server: FakeServer) -> None:
    server.memory_failures.append(Failure(grpc.StatusCode.UNAVAILABLE, "starting"))
    for _ in range(2):
        stream.send(LARGE)
        check(stream, LARGE)

    assert calls(server) == [REGISTER] * 2
    assert [bool(it) for it in regions(server.requests)] == [False, True]


# --- threads and tasks --------------------------------------------------------------------------


def test_a_sending_thread_beside_a_receiving_one_mixes_nothing_up(server: FakeServer) -> None:
    count = 60
    with Client(server.address) as client, client.stream() as stream:

        def send() -> None:
            for at in range(count):
                stream.send("echo", {"x": LARGE + at})

        sender = threading.Thread(target=send)
        sender.start()
        for at in range(count):
            np.testing.assert_array_equal(stream.receive(20).outputs["x"], LARGE + at)
        sender.join()
    assert any(regions(server.requests))
    assert not server.segments
    assert not files()


def test_a_task_that_is_cancelled_while_it_registers_leaves_nothing(server: FakeServer) -> None:
    begun = threading.Event()
    register = server.SystemSharedMemoryRegister

    def hang(request: Any, context: Any) -> Any:
        begun.set()
        gone = threading.Event()
        if context.add_callback(gone.set):
            gone.wait(20)
        raise RuntimeError("the caller is gone")

    server.SystemSharedMemoryRegister = hang  # type: ignore[method-assign]

    async def scenario() -> None:
        async with AioClient(server.address) as client, client.stream() as stream:
            task = asyncio.create_task(stream.send("echo", {"x": LARGE}))
            await asyncio.to_thread(begun.wait, 20)
            assert len(files()) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not files()
            assert not client._segments.pool._segments
            # The stream goes on: nothing was sent.
            server.SystemSharedMemoryRegister = register  # type: ignore[method-assign]
            await stream.send("echo", {"x": LARGE})
            np.testing.assert_array_equal((await stream.receive(20)).outputs["x"], LARGE)

    asyncio.run(scenario())
    assert not server.segments


def test_a_task_that_is_cancelled_while_it_waits_for_its_turn_gives_it_back(
    server: FakeServer,
) -> None:
    async def scenario() -> None:
        async with AioClient(server.address) as client, client.stream() as stream:
            async with stream._writing:
                task = asyncio.create_task(stream.send("echo", {"x": LARGE}))
                while not [it for it in client._segments.pool._segments if it.memory[7]]:
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            assert [it.is_taken for it in client._segments.pool._segments] == [False]
            await stream.send("echo", {"x": LARGE})
            np.testing.assert_array_equal((await stream.receive(20)).outputs["x"], LARGE)

    asyncio.run(scenario())
    assert calls(server) == [REGISTER, UNREGISTER]
