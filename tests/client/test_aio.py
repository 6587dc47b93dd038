import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

import grpc
import numpy as np
import pytest

from tests.client.certificates import Certificates
from tests.client.fake_server import TOKEN, Failure, FakeServer
from tideserve.client import (
    ClientClosed,
    DeadlineExceeded,
    Disconnected,
    InvalidArgument,
    InvalidResponse,
    ModelError,
    NotFound,
    ResourceExhausted,
    RetryPolicy,
    TideserveClientError,
    TlsOptions,
    Unauthenticated,
    Unavailable,
)
from tideserve.client.aio import Client

X = np.arange(6, dtype=np.float32).reshape(2, 3)
UNAVAILABLE = Failure(grpc.StatusCode.UNAVAILABLE, "nothing can serve")


class FakeWaits:
    """A clock that moves when it is slept on, and no chance."""

    def __init__(self) -> None:
        self.slept_s: list[float] = []

    def now_s(self) -> float:
        return sum(self.slept_s)

    def uniform(self) -> float:
        return 0.0

    async def sleep(self, wait_s: float) -> None:
        self.slept_s.append(wait_s)


@pytest.fixture
def waits() -> FakeWaits:
    return FakeWaits()


Scenario = Callable[[Client], Awaitable[None]]


@pytest.fixture
def play(server: FakeServer, waits: FakeWaits) -> Callable[[Scenario], None]:
    """Runs a scenario with a client of the server, in an event loop of its own."""

    async def with_client(scenario: Scenario) -> None:
        retry = RetryPolicy(max_attempts=3, initial_backoff_s=0.1, jitter=0.0)
        async with Client(server.address, waits=waits, retry=retry, timeout_s=20.0) as client:
            await scenario(client)

    return lambda scenario: asyncio.run(with_client(scenario))


Play = Callable[[Scenario], None]


def test_many_tasks_share_a_client(play: Play, server: FakeServer) -> None:
    async def scenario(client: Client) -> None:
        arrays = [np.full((1, 3), number, np.int64) for number in range(50)]
        results = await asyncio.gather(*(client.infer("echo", {"x": a}) for a in arrays))
        for array, result in zip(arrays, results, strict=True):
            np.testing.assert_array_equal(result["x"], array)

    play(scenario)
    assert len(server.requests) == 50


def test_retries_and_push_back(play: Play, server: FakeServer, waits: FakeWaits) -> None:
    async def scenario(client: Client) -> None:
        server.failures.append(UNAVAILABLE)
        server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=700))
        await client.infer("echo", {"x": X})
        assert waits.slept_s == [0.1, 0.7]
        server.failures.append(Failure(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", pushback_ms=-1))
        with pytest.raises(ResourceExhausted):
            await client.infer("echo", {"x": X})
        server.failures.extend([UNAVAILABLE] * 3)
        with pytest.raises(Unavailable, match="nothing can serve"):
            await client.infer("echo", {"x": X})
        assert not server.failures

    play(scenario)


def test_errors_are_typed(play: Play) -> None:
    async def scenario(client: Client) -> None:
        with pytest.raises(NotFound, match="there are") as caught:
            await client.infer("nobody", {"x": X})
        assert caught.value.model == "nobody"
        with pytest.raises(InvalidArgument):
            await client.infer("echo", {"x": np.array([None])})
        with pytest.raises(DeadlineExceeded):
            await client.infer("hangs", {"x": X}, timeout_s=0.3)

    play(scenario)


def test_cancelling_the_task_cancels_the_call(play: Play, server: FakeServer) -> None:
    async def scenario(client: Client) -> None:
        task = asyncio.create_task(client.infer("hangs", {"x": X}))
        assert await asyncio.to_thread(server.begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(server.cancelled.wait, 10)
        assert await client.is_live()

    play(scenario)


def test_closing_ends_the_calls_under_way(play: Play, server: FakeServer) -> None:
    async def scenario(client: Client) -> None:
        task = asyncio.create_task(client.infer("hangs", {"x": X}))
        assert await asyncio.to_thread(server.begun.wait, 10)
        await client.close()
        await client.close()
        with pytest.raises(ClientClosed):
            await task
        with pytest.raises(ClientClosed):
            await client.is_live()

    play(scenario)


def test_a_server_that_is_not_there_is_disconnected() -> None:
    async def scenario() -> None:
        async with Client("localhost:1", retry=RetryPolicy(max_attempts=1)) as client:
            with pytest.raises(Disconnected):
                await client.is_live(timeout_s=10)

    asyncio.run(scenario())


def test_health_metadata_and_control(play: Play, server: FakeServer, waits: FakeWaits) -> None:
    async def scenario(client: Client) -> None:
        server.not_ready_answers = 2
        await client.wait_ready(5.0)
        assert waits.slept_s == [0.05, 0.1]
        assert await client.is_live()
        assert await client.is_ready()
        assert await client.is_model_ready("echo")
        assert (await client.server_metadata()).name == "fake"
        assert (await client.model_metadata("echo")).inputs[0].shape == (-1, -1)
        assert (await client.model_config("single")).max_batch_size == 0
        assert (await client.statistics("echo"))[0].inference_count == 6
        await client.unload("echo")
        assert "echo" not in {entry.name for entry in await client.models()}
        await client.load("echo")
        assert await client.is_model_ready("echo")
        with pytest.raises(Unauthenticated):
            await client.replicas()
        server.ready = False
        with pytest.raises(DeadlineExceeded, match="the server was not ready"):
            await client.wait_ready(1.0)

    play(scenario)


def test_replicas_need_the_token(server: FakeServer) -> None:
    async def scenario() -> None:
        async with Client(server.address, token=TOKEN) as client:
            assert [r.id for r in await client.replicas()] == ["replica-1", "replica-2"]

    asyncio.run(scenario())


def test_mutual_tls_from_files(certificates: Certificates) -> None:
    server = FakeServer(credentials=certificates.server_credentials())
    server.start()

    async def scenario() -> None:
        tls = TlsOptions(certificates.ca, certificates.certificate, certificates.key)
        async with Client(server.address, tls=tls) as client:
            assert await client.is_live()

    try:
        asyncio.run(scenario())
    finally:
        server.stop()


def test_a_stream_gives_results_in_order_and_survives_a_failure(
    play: Play, server: FakeServer
) -> None:
    server.swap_stream_answers = True
    server.stream_code = 13

    async def scenario(client: Client) -> None:
        async with client.stream() as stream:
            for number in range(4):
                model = "fails" if number == 1 else "echo"
                await stream.send(model, {"x": X + number}, request_id=f"r{number}")
            assert (await stream.receive()).request_id == "r0"
            with pytest.raises(ModelError) as caught:
                await stream.receive()
            assert caught.value.request_id == "r1"
            assert [result.request_id async for result in stream] == ["r2", "r3"]

    play(scenario)


def test_a_broken_stream_raises_for_whoever_asks(play: Play) -> None:
    async def scenario(client: Client) -> None:
        async with client.stream() as stream:
            await stream.send("breaks", {"x": X})
            for _ in range(2):
                with pytest.raises(Unavailable, match="the stream breaks"):
                    await stream.receive(10)
            with pytest.raises(Unavailable, match="the stream breaks"):
                await stream.send("echo", {"x": X})

    play(scenario)


@pytest.mark.parametrize(
    ("model", "sentence"), [("ends", "1 requests unanswered"), ("stranger", "'stranger'")]
)
def test_a_stream_out_of_step_is_an_invalid_response(play: Play, model: str, sentence: str) -> None:
    async def scenario(client: Client) -> None:
        async with client.stream() as stream:
            await stream.send(model, {"x": X})
            with pytest.raises(InvalidResponse, match=sentence):
                await stream.receive(10)

    play(scenario)


def test_leaving_a_stream_cancels_what_is_left(play: Play, server: FakeServer) -> None:
    async def scenario(client: Client) -> None:
        async with client.stream() as stream:
            await stream.send("hangs", {"x": X})
            with pytest.raises(DeadlineExceeded):
                await stream.receive(0.01)
            assert await asyncio.to_thread(server.begun.wait, 10)
        assert await asyncio.to_thread(server.cancelled.wait, 10)
        with pytest.raises(ClientClosed):
            await stream.send("echo", {"x": X})
        assert [t.get_name() for t in asyncio.all_tasks() if "stream" in t.get_name()] == []

    play(scenario)


async def numbered(count: int) -> AsyncIterator[dict[str, Any]]:
    for number in range(count):
        yield {"x": X + number}


@pytest.mark.parametrize("asynchronous", [True, False])
def test_infer_stream_answers_all_in_order(play: Play, asynchronous: bool) -> None:
    async def scenario(client: Client) -> None:
        inputs = numbered(50) if asynchronous else [{"x": X + n} for n in range(50)]
        results = [r async for r in client.infer_stream("echo", inputs, max_outstanding=4)]
        assert len(results) == 50
        for number, result in enumerate(results):
            np.testing.assert_array_equal(result.outputs["x"], X + number)

    play(scenario)


def test_infer_stream_left_early_sends_no_more(play: Play, server: FakeServer) -> None:
    async def scenario(client: Client) -> None:
        async with aclosing(
            client.infer_stream("echo", numbered(1000), max_outstanding=4)
        ) as results:
            async for _ in results:
                break
        assert [t.get_name() for t in asyncio.all_tasks() if "stream" in t.get_name()] == []

    play(scenario)
    assert len(server.requests) < 20


@pytest.mark.parametrize(("model", "kind"), [("fails", ModelError), ("breaks", Unavailable)])
def test_infer_stream_ends_with_the_first_error(
    play: Play, server: FakeServer, model: str, kind: type[TideserveClientError]
) -> None:
    server.stream_code = 13

    async def scenario(client: Client) -> None:
        with pytest.raises(kind):
            await anext(client.infer_stream(model, [{"x": X}] * 3))

    play(scenario)


def test_an_error_of_the_inputs_comes_through(play: Play) -> None:
    async def broken() -> AsyncIterator[dict[str, Any]]:
        yield {"x": X}
        raise ZeroDivisionError

    async def scenario(client: Client) -> None:
        results = client.infer_stream("echo", broken())
        assert (await anext(results)).model == "echo"
        with pytest.raises(ZeroDivisionError):
            await anext(results)

    play(scenario)
