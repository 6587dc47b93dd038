"""Mutated requests among good ones, on the running server: no crash, no hang, no leak."""

import asyncio
import logging
import os
import random
import secrets
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import grpc
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.caller import INFER_PATH, STREAM_PATH, connect
from tests.e2e.model_folder import link_example, write_model
from tests.e2e.mutation import REGION, Mutator
from tests.e2e.running import running
from tests.e2e.server import Server, wait_until
from tests.e2e.server_log import mistakes
from tideserve.v1.control_pb2 import READY
from tideserve.v1.inference_pb2 import (
    ModelInferRequest,
    ModelInferResponse,
    ModelStreamInferResponse,
    SystemSharedMemoryRegisterRequest,
)
from tideserve.v1.methods import INFERENCE_SERVICE

logger = logging.getLogger(__name__)

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

# Of both fronts together.
FUZZ_S: Final = 60.0 if os.environ.get("CI") else 5.0
REGION_BYTES: Final = 4096
REGISTER_PATH: Final = f"/{INFERENCE_SERVICE}/SystemSharedMemoryRegister"
UNARY_CALLERS: Final = 160
STREAM_CALLERS: Final = 40
CHANNELS: Final = 4
STREAM_REQUESTS: Final = 20
PATIENT_S: Final = 20.0
GRACE_S: Final = 5.0
# What a server may have open more than at the start, however long the fuzzing lasts.
SPARE_FILES: Final = 16

PAIR_CONFIG: Final = """
backend: "python"
max_batch_size: 8
input [
  { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "BYTE" data_type: TYPE_INT8 dims: [ -1 ] optional: true }
]
output [
  { name: "TEXT" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "ROWS" data_type: TYPE_INT32 dims: [ 1 ] }
]
dynamic_batching { priority_levels: 3 default_priority_level: 2 }
"""
PAIR_SOURCE: Final = """
import numpy as np
class Model:
    def load(self, context): pass
    def infer(self, inputs):
        return {"TEXT": inputs["TEXT"], "ROWS": np.ones((len(inputs["TEXT"]), 1), np.int32)}
    def unload(self): pass
"""
# What a caller may be told of a request that is not in order.
TOLD: Final = frozenset(
    {
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        # Of inputs in shared memory that are larger than a message.
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
GONE: Final = frozenset({grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED})
# grpc.aio's own words where it writes to a stream that is past its deadline.
WRITES_TOO_LATE: Final = "Internal error from Core"


@pytest.fixture(params=["native", "grpcio"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    repository = tmp_path_factory.mktemp("repository")
    link_example(repository, "identity")
    write_model(repository, "pair", PAIR_CONFIG, PAIR_SOURCE)
    state = tmp_path_factory.mktemp("state")
    segment = Path("/dev/shm") / f"tideserve-test-{secrets.token_hex(8)}"
    segment.write_bytes(bytes(REGION_BYTES))
    register = SystemSharedMemoryRegisterRequest(
        name=REGION, key=segment.name, byte_size=REGION_BYTES
    )
    try:
        with running(repository, state, f"--front={request.param}") as server:
            with connect(server.address) as caller:
                caller.call(REGISTER_PATH, register.SerializeToString())
            yield server
    finally:
        segment.unlink()


class Good(NamedTuple):
    """A request that is in order, and its outputs."""

    payload: bytes
    outputs: tuple[bytes, ...]

    def is_answered_by(self, answer: ModelInferResponse) -> bool:
        return tuple(answer.raw_output_contents) == self.outputs


def _good(source: random.Random) -> Good:
    rows = source.randint(1, 8)
    if source.random() < 0.5:
        message = ModelInferRequest(model_name="identity", id=source.choice(("", "an id")))
        message.inputs.add(name="IN", datatype="FP32", shape=[rows, 16])
        data = source.randbytes(rows * 64)
        message.raw_input_contents.append(data)
        return Good(message.SerializeToString(), (data,))
    size = source.randint(0, 3)
    message = ModelInferRequest(model_name="pair", model_version=source.choice(("", "1")))
    message.inputs.add(name="TEXT", datatype="BYTES", shape=[rows, size])
    texts = [source.randbytes(source.randint(0, 40)) for _ in range(rows * size)]
    text = b"".join(len(text).to_bytes(4, "little") + text for text in texts)
    message.raw_input_contents.append(text)
    if source.random() < 0.5:
        message.inputs.add(name="BYTE", datatype="INT8", shape=[rows, 2])
        message.raw_input_contents.append(source.randbytes(rows * 2))
    message.parameters["priority"].uint64_param = source.randint(0, 3)
    return Good(message.SerializeToString(), (text, b"\1\0\0\0" * rows))


class Fuzz:
    """Owns the callers of one run and the count of what they were told."""

    def __init__(self, address: str, seed: int) -> None:
        self._address = address
        self._seed = seed
        self._ends_s = 0.0
        self.told: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()

    async def run(self, seconds: float) -> None:
        """Keeps all callers busy for so long; the last of them end by their deadlines."""
        self._ends_s = asyncio.get_running_loop().time() + seconds
        channels = [
            grpc.aio.insecure_channel(self._address, [("grpc.use_local_subchannel_pool", 1)])
            for _ in range(CHANNELS)
        ]
        numbers = iter(range(UNARY_CALLERS + STREAM_CALLERS + 1))
        unary = [
            self._ask(channels[number % CHANNELS].unary_unary(INFER_PATH), number)
            for number in (next(numbers) for _ in range(UNARY_CALLERS))
        ]
        streams = [
            self._converse(channels[number % CHANNELS].stream_stream(STREAM_PATH), number)
            for number in (next(numbers) for _ in range(STREAM_CALLERS))
        ]
        await asyncio.gather(*unary, *streams, self._knock(next(numbers)))
        for channel in channels:
            await channel.close()

    def _goes_on(self) -> bool:
        return asyncio.get_running_loop().time() < self._ends_s

    # --- unary ----------------------------------------------------------------------------

    async def _ask(self, infer: Any, number: int) -> None:
        source = random.Random(self._seed + number)
        mutator = Mutator(self._seed + number)
        while self._goes_on():
            good = _good(source)
            is_mutant = source.random() < 0.5
            payload = mutator.mutate(good.payload) if is_mutant else good.payload
            timeout_s = source.choice((0.001, 0.05, *[PATIENT_S] * 6))
            call = infer(payload, timeout=timeout_s, metadata=_metadata(source))
            gives_up = source.random() < 0.1
            if gives_up:
                asyncio.get_running_loop().call_later(source.random() / 50, call.cancel)
            code = await self._code_of(call, timeout_s, payload)
            self.told[code.name] += 1
            if code in GONE and (gives_up or timeout_s < PATIENT_S):
                continue
            if is_mutant:
                if code not in TOLD:
                    self._is_wrong(f"{code.name} {await call.details()}", payload)
            elif code is not grpc.StatusCode.OK:
                self._is_wrong(f"good, but {code.name} {await call.details()}", payload)
            elif not good.is_answered_by(ModelInferResponse.FromString(await call)):
                self._is_wrong("good, but answered with something else", payload)

    async def _code_of(self, call: Any, timeout_s: float, payload: bytes) -> grpc.StatusCode:
        try:
            code = await asyncio.wait_for(call.code(), timeout_s + GRACE_S)
        except TimeoutError:
            self._is_wrong("no answer", payload)
            call.cancel()
            return grpc.StatusCode.CANCELLED
        assert isinstance(code, grpc.StatusCode)
        return code

    # --- streams --------------------------------------------------------------------------

    async def _converse(self, start: Any, number: int) -> None:
        source = random.Random(self._seed + number)
        mutator = Mutator(self._seed + number)
        while self._goes_on():
            requests = []
            for _ in range(source.randint(0, STREAM_REQUESTS)):
                good = _good(source)
                is_mutant = source.random() < 0.5
                requests.append((mutator.mutate(good.payload) if is_mutant else None, good))
            timeout_s = source.choice((0.05, *[PATIENT_S] * 5))
            gives_up = source.random() < 0.2
            payloads = [good.payload if mutant is None else mutant for mutant, good in requests]
            call = start(iter(payloads), timeout=timeout_s, metadata=_metadata(source))
            if gives_up:
                asyncio.get_running_loop().call_later(source.random() / 20, call.cancel)
            answers = await self._answers(call, timeout_s)
            if answers is not None and len(answers) == len(requests):
                for payload, request, answer in zip(payloads, requests, answers, strict=True):
                    self._check_answer(payload, *request, answer, hurried=timeout_s < PATIENT_S)
                continue
            code, details = await call.code(), await call.details()
            self.told[f"stream {code.name}"] += 1
            excused = code in GONE or details == WRITES_TOO_LATE
            if not (excused and (gives_up or timeout_s < PATIENT_S)):
                self._is_wrong(f"stream ended with {code.name} {details}", b"")

    async def _answers(self, call: Any, timeout_s: float) -> list[ModelStreamInferResponse] | None:
        """None for a stream that failed."""

        async def read() -> list[ModelStreamInferResponse]:
            return [ModelStreamInferResponse.FromString(payload) async for payload in call]

        try:
            return await asyncio.wait_for(read(), timeout_s + GRACE_S)
        except TimeoutError:
            self._is_wrong("no end of a stream", b"")
            call.cancel()
        except grpc.aio.AioRpcError:
            pass
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
        return None

    def _check_answer(
        self,
        payload: bytes,
        mutant: bytes | None,
        good: Good,
        answer: ModelStreamInferResponse,
        *,
        hurried: bool,
    ) -> None:
        self.told["stream error" if answer.error_message else "stream answer"] += 1
        if hurried and "deadline" in answer.error_message:
            return
        if mutant is not None:
            if "server failed" in answer.error_message:
                self._is_wrong(answer.error_message, payload)
        elif answer.error_message:
            self._is_wrong(f"good, but {answer.error_message}", payload)
        elif not good.is_answered_by(answer.infer_response):
            self._is_wrong("good, but answered with something else in a stream", payload)

    # --- connections ----------------------------------------------------------------------

    async def _knock(self, number: int) -> None:
        """Connections that speak no HTTP/2, or break off in the middle of it."""
        source = random.Random(self._seed + number)
        host, port = self._address.split(":")
        while self._goes_on():
            reader, writer = await asyncio.open_connection(host, int(port))
            preface = source.choice((b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"))
            try:
                writer.write(preface + source.randbytes(source.randint(0, 99)))
                await writer.drain()
                if source.random() < 0.5:
                    await asyncio.wait_for(reader.read(100), 0.05)
            except (TimeoutError, ConnectionError):
                pass
            writer.transport.abort()
            self.told["knocks"] += 1

    def _is_wrong(self, what: str, payload: bytes) -> None:
        self.wrong[f"{what[:200]}: {payload[:400].hex()}"] += 1


def _metadata(source: random.Random) -> tuple[tuple[str, str | bytes], ...]:
    pairs: list[tuple[str, str | bytes]] = []
    for _ in range(source.choice((0, 0, 0, 1, 5))):
        key = "".join(source.choices("abcxyz0189-_.", k=source.randint(1, 12)))
        if source.random() < 0.5:
            pairs.append((f"x{key}-bin", source.randbytes(source.randint(0, 50))))
        else:
            text = "".join(chr(source.randint(0x20, 0x7E)) for _ in range(source.randint(0, 50)))
            pairs.append((f"x{key}" if not key.endswith("-bin") else "x", text.strip()))
    return tuple(pairs)


@pytest.mark.timeout(240)
def test_mutated_requests_crash_hang_and_leak_nothing(server: Server) -> None:
    seed = int(os.environ.get("FUZZ_SEED", secrets.randbits(32)))
    logger.warning("FUZZ_SEED=%d", seed)
    process = psutil.Process(server.pid)
    asyncio.run(_check_good(server.address))
    pids = {name: server.ready_pids(name) for name in ("identity", "pair")}
    files = process.num_fds()

    fuzz = Fuzz(server.address, seed)
    asyncio.run(fuzz.run(FUZZ_S / 2))
    logger.warning("told: %s", dict(fuzz.told))
    assert not fuzz.wrong
    assert fuzz.told["OK"] > UNARY_CALLERS
    assert fuzz.told["INVALID_ARGUMENT"] > UNARY_CALLERS
    assert fuzz.told["stream answer"] > STREAM_CALLERS

    wait_until(lambda: _waiting_requests(server) == 0, GRACE_S, lambda: server.log)
    wait_until(lambda: _held_requests(server) == 0, GRACE_S, lambda: server.log)
    wait_until(
        lambda: process.num_fds() <= files + SPARE_FILES,
        GRACE_S,
        lambda: f"{process.num_fds()} files, {files} before",
    )
    assert {name: server.ready_pids(name) for name in pids} == pids
    asyncio.run(_check_good(server.address))
    assert not mistakes(server.log)
    assert "is LOST" not in server.log
    assert server.stop() == 0
    assert "finishing 0 calls" in server.log


async def _check_good(address: str) -> None:
    async with grpc.aio.insecure_channel(address) as channel:
        infer: Any = channel.unary_unary(INFER_PATH)
        source = random.Random(1)
        for _ in range(10):
            good = _good(source)
            answer = ModelInferResponse.FromString(await infer(good.payload, timeout=PATIENT_S))
            assert good.is_answered_by(answer)


def _waiting_requests(server: Server) -> float:
    url = f"http://127.0.0.1:{server.http_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENT_S) as answer:
        text = answer.read().decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        if family.name == "tideserve_queue_requests"
        for sample in family.samples
    )


def _held_requests(server: Server) -> int:
    snapshot = server.snapshot()
    assert all(replica.state == READY for replica in snapshot.replicas)
    return sum(model.queued_requests + model.leased_requests for model in snapshot.models)
