"""Many callers at a time, each answer checked."""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
import numpy as np
from numpy.typing import NDArray

from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse
from tideserve.v1.methods import INFERENCE_SERVICE

Infer = Callable[[ModelInferRequest], Awaitable[ModelInferResponse]]


class Load:
    """Callers in a closed loop on a model that answers what it is sent (FP32 [`elements`]).

    Owns the counts: `right`, and what went wrong by sentence.
    """

    def __init__(
        self, address: str, model: str, callers: int, input_name: str, *, elements: int = 16
    ) -> None:
        self._address = address
        self._model = model
        self._callers = callers
        self._input_name = input_name
        self._elements = elements
        self._stopping = False
        self._answers = [0] * callers
        self.right = 0
        self.wrong: Counter[str] = Counter()

    async def run(self, during: Awaitable[None]) -> None:
        """Keeps all callers busy until `during` is done and their last answers came."""
        async with grpc.aio.insecure_channel(self._address) as channel:
            infer: Infer = channel.unary_unary(
                f"/{INFERENCE_SERVICE}/ModelInfer",
                request_serializer=ModelInferRequest.SerializeToString,
                response_deserializer=ModelInferResponse.FromString,
            )
            callers = [
                asyncio.create_task(self._call(infer, caller)) for caller in range(self._callers)
            ]
            await during
            self._stopping = True
            await asyncio.gather(*callers)

    async def all_answered(self) -> None:
        """Waits until no call is open that was open when this was called."""
        before = list(self._answers)
        while any(map(int.__eq__, before, self._answers)):
            await asyncio.sleep(0.005)

    async def _call(self, infer: Infer, caller: int) -> None:
        source = random.Random(caller)
        while not self._stopping:
            random_bytes = source.randbytes(4 * self._elements)
            values = np.frombuffer(random_bytes, np.float32).reshape(1, -1)
            await self._check(infer, values)
            self._answers[caller] += 1

    async def _check(self, infer: Infer, values: NDArray[np.float32]) -> None:
        message = ModelInferRequest(model_name=self._model)
        message.inputs.add(name=self._input_name, datatype="FP32", shape=values.shape)
        message.raw_input_contents.append(values.tobytes())
        try:
            answer = await infer(message)
        except grpc.aio.AioRpcError as error:
            self.wrong[f"{error.code().name}: {error.details()}"] += 1
            return
        if answer.raw_output_contents[0] == values.tobytes():
            self.right += 1
        else:
            self.wrong["another answer than was expected"] += 1
