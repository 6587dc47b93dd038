"""Sends the scenario's requests when they are due, whether answers came or not (open loop),
and checks every answer."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from examples.demo.repository import MODEL, ONNX_MODEL
from examples.train.split import split
from tideserve.client import NO_RETRY, TideserveClientError
from tideserve.client.aio import Client

_TIMEOUT_S: Final = 20.0
# Of a batch against one row alone (design 15.10).
_TOLERANCE: Final = 1e-5


@dataclass(slots=True)
class Answers:
    """`latencies`: second at which a request was sent, and how long its answer took.
    `failures`: by sentence; a wrong answer is one."""

    latencies: list[tuple[float, float]] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    waiting: int = 0


class Load:
    """Owns the answers; `run` once."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._images = split().held_out.images
        self._scores = _expected(self._images)
        self.answers = Answers()

    async def run(self, arrivals: Iterable[float], began_s: float) -> None:
        """Until every request has its answer. `began_s`: second 0 on `time.monotonic`."""
        async with (
            Client(self._address, timeout_s=_TIMEOUT_S, retry=NO_RETRY) as client,
            asyncio.TaskGroup() as calls,
        ):
            for number, due_s in enumerate(arrivals):
                await asyncio.sleep(max(0.0, began_s + due_s - time.monotonic()))
                calls.create_task(self._call(client, number % len(self._images), due_s))

    async def _call(self, client: Client, index: int, due_s: float) -> None:
        answers = self.answers
        answers.waiting += 1
        sent_s = time.monotonic()
        try:
            found = await client.infer(MODEL, {"image": self._images[index : index + 1]})
        except TideserveClientError as error:
            answers.failures[f"{type(error).__name__}: {error}"] += 1
            return
        finally:
            answers.waiting -= 1
        answers.latencies.append((due_s, time.monotonic() - sent_s))
        if not np.allclose(found["scores"][0], self._scores[index], rtol=0, atol=_TOLERANCE):
            answers.failures["a wrong answer"] += 1


def _expected(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What ONNX Runtime gives for each image alone."""
    session = ort.InferenceSession(ONNX_MODEL, providers=["CPUExecutionProvider"])
    rows = [session.run(["scores"], {"image": image[None]})[0][0] for image in images]
    return np.asarray(rows, dtype=np.float32)
