"""A model with a latency target on a real server: batches wait, late requests are served or end."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from tests.e2e.model_folder import write_model
from tests.e2e.running import running
from tests.e2e.server import Server
from tideserve.client import NO_RETRY, TideserveClientError
from tideserve.client.aio import Client

pytestmark = pytest.mark.e2e

CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "IN" data_type: TYPE_FP32 dims: 1 }
output { name: "OUT" data_type: TYPE_FP32 dims: 1 }
parameters { key: "tideserve.latency_target" value { string_value: "%s" } }
parameters { key: "tideserve.on_late" value { string_value: "%s" } }
"""
# 20 ms a batch: 400 rows a second.
MODEL = """
import time

class Model:
    def load(self, context):
        pass

    def infer(self, inputs):
        time.sleep(0.02)
        return {"OUT": inputs["IN"] + 1.0}

    def unload(self):
        pass
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("latency-target")
    (folder / "repository").mkdir()
    for name, target, on_late in (
        ("patient", "0.3", "serve"),
        ("strict", "0.3", "drop"),
        ("hopeless", "0.001", "drop"),
    ):
        write_model(folder / "repository", name, CONFIG % (target, on_late), MODEL)
    with running(folder / "repository", folder / "state") as server:
        yield server


async def burst(server: Server, model: str, count: int) -> tuple[list[float], Counter[str]]:
    """Seconds that right answers took, and the errors by their code."""
    took_s: list[float] = []
    errors: Counter[str] = Counter()

    async def call(client: Client, number: int) -> None:
        sent_s = time.monotonic()
        try:
            found = await client.infer(model, {"IN": np.full((1, 1), number, np.float32)})
        except TideserveClientError as error:
            errors[type(error).__name__] += 1
            return
        assert found["OUT"].tolist() == [[number + 1.0]]
        took_s.append(time.monotonic() - sent_s)

    async with Client(server.address, timeout_s=20.0, retry=NO_RETRY) as client:
        # What a batch takes is known then.
        for number in range(4):
            await call(client, number)
        took_s.clear()
        async with asyncio.TaskGroup() as calls:
            for number in range(count):
                calls.create_task(call(client, number))
    return took_s, errors


def test_late_requests_are_served_where_they_may_be_late(server: Server) -> None:
    took_s, errors = asyncio.run(burst(server, "patient", 400))
    assert (len(took_s), errors) == (400, Counter())


def test_late_requests_end_where_they_may_not(server: Server) -> None:
    """400 at once are a second of work, and each has 0.3 s."""
    took_s, errors = asyncio.run(burst(server, "strict", 400))
    assert len(took_s) + errors.total() == 400
    assert set(errors) <= {"DeadlineExceeded", "ResourceExhausted"}
    assert errors.total() >= 100
    assert len(took_s) >= 20


def test_a_target_that_no_batch_can_meet_turns_nobody_away_for_ever(server: Server) -> None:
    async def one_by_one() -> list[int]:
        return [len((await burst(server, "hopeless", 1))[0]) for _ in range(3)]

    assert asyncio.run(one_by_one()) == [1, 1, 1]


def test_no_parameter_is_named_as_without_effect(server: Server) -> None:
    assert "on_late" not in server.log
