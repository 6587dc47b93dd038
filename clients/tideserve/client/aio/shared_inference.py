"""The asyncio client's unary inference whose large tensors go through shared memory."""

from typing import TYPE_CHECKING

from tideserve.client.aio.shared_segments import SharedSegments
from tideserve.client.aio.transport import Transport
from tideserve.client.errors import TideserveClientError
from tideserve.client.inference import InferOptions
from tideserve.client.shared_call import SharedCall, is_answer, is_unknown
from tideserve.client.shared_inference import ATTEMPTS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tideserve.client.tensors import Array, WireTensor


class SharedInference:
    """One unary inference at a time, of any task."""

    def __init__(self, transport: Transport, segments: SharedSegments) -> None:
        self._transport = transport
        self._segments = segments

    async def infer(
        self,
        model: str,
        tensors: "Mapping[str, WireTensor]",
        options: InferOptions,
        timeout_s: float,
    ) -> "dict[str, Array]":
        """The outputs by name, within `timeout_s` in all."""
        now_s = self._transport.waits.now_s
        deadline_s = now_s() + timeout_s
        call = SharedCall(model, tensors, options, self._segments.room)
        pool = self._segments.pool
        for _ in range(ATTEMPTS):
            segment = await self._segments.take(call.byte_size, deadline_s - now_s())
            if segment is None:
                break
            is_over = False
            try:
                operation = call.operation(segment)
                outputs = await self._transport.call(operation, deadline_s - now_s())
            except TideserveClientError as error:
                is_over = is_answer(error)
                if not is_unknown(error, segment):
                    raise
                pool.forget(segment)
            else:
                is_over = True
                return outputs
            finally:
                if is_over:
                    pool.give_back(segment)
                else:
                    pool.abandon(segment)
        return await self._transport.call(call.operation(), deadline_s - now_s())
