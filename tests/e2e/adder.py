"""A model whose answers tell which of its files computed them, and callers that check them."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from pathlib import Path

import grpc
import numpy as np

from tideserve.client import TideserveClientError
from tideserve.client.aio import Client
from tideserve.client.retry import NO_RETRY

CONFIG = """
backend: "python"
max_batch_size: 16
input { name: "IN" data_type: TYPE_FP32 dims: 1 }
output { name: "OUT" data_type: TYPE_FP32 dims: 1 }
"""
_SOURCE = """
import time

class Model:
    def load(self, context):
        pass

    def infer(self, inputs):
        time.sleep(0.01)
        return {{"OUT": inputs["IN"] + {number}}}

    def unload(self):
        pass
"""


def write_adder(
    repository: Path, number: int, *, version: int = 1, config: str = CONFIG, name: str = "adder"
) -> None:
    """The model adds `number` from now on. Files are replaced whole, as a careful user does."""
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    replace(repository / name / "config.pbtxt", config)
    replace(folder / "model.py", _SOURCE.format(number=number))


def replace(path: Path, text: str) -> None:
    """The new text at once, or the old."""
    draft = path.with_name(f".{path.name}")
    draft.write_text(text)
    draft.replace(path)


class Adding:
    """Callers in a closed loop. Owns the counts: answers by what was added, failures by code."""

    def __init__(self, address: str, *, callers: int = 8, model: str = "adder") -> None:
        self._address = address
        self._callers = callers
        self._model = model
        self._stopping = False
        self.added: Counter[int] = Counter()
        self.failed: Counter[str] = Counter()
        self.codes: Counter[grpc.StatusCode | None] = Counter()

    async def run(self, during: Awaitable[None]) -> None:
        """Keeps all callers busy until `during` is done and their last answers came."""
        async with Client(self._address, retry=NO_RETRY, timeout_s=20) as client:
            callers = [
                asyncio.create_task(self._call(client, number)) for number in range(self._callers)
            ]
            try:
                await during
            finally:
                self._stopping = True
                await asyncio.gather(*callers)

    async def _call(self, client: Client, number: int) -> None:
        values = np.array([[number * 1000.0]], dtype=np.float32)
        while not self._stopping:
            try:
                answer = await client.infer(self._model, {"IN": values})
            except TideserveClientError as error:
                self.failed[str(error)] += 1
                self.codes[error.code] += 1
                await asyncio.sleep(0.01)
                continue
            self.added[int(answer["OUT"][0, 0] - values[0, 0])] += 1


async def until(adding: Adding, number: int, timeout_s: float = 20.0) -> None:
    """Waits for an answer that added this number."""
    before = adding.added[number]
    async with asyncio.timeout(timeout_s):
        while adding.added[number] == before:
            await asyncio.sleep(0.01)
