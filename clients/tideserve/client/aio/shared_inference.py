"""The asyncio client's inference whose large tensors go through shared memory."""

from contextlib import suppress
from typing import TYPE_CHECKING

from tideserve.client import operations
from tideserve.client.aio.transport import Transport
from tideserve.client.errors import TideserveClientError
from tideserve.client.inference import InferOptions
from tideserve.client.output_room import OutputRoom
from tideserve.client.retry import NO_RETRY
from tideserve.client.segments import Segment, SegmentPool, is_available
from tideserve.client.shared_inference import (
    ATTEMPTS,
    REGISTER_TIMEOUT_S,
    UNREGISTER_TIMEOUT_S,
    SharedCall,
    is_answer,
    is_refusal,
    is_unknown,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tideserve.client.tensors import Array, WireTensor


class SharedInference:
    """Owns the segments of one client. Any task may call."""

    def __init__(self, transport: Transport, *, enabled: bool) -> None:
        self._transport = transport
        self._pool = SegmentPool(enabled and is_available())
        self._room = OutputRoom()

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
        call = SharedCall(model, tensors, options, self._room)
        byte_size = call.byte_size if self._pool.is_on else 0
        for _ in range(ATTEMPTS if byte_size else 0):
            segment = await self._segment(byte_size, deadline_s - now_s())
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
                self._pool.forget()
            else:
                is_over = True
                return outputs
            finally:
                self._leave(segment, is_over=is_over)
        else:
            if byte_size:
                self._pool.switch_off()
        return await self._transport.call(call.operation(), deadline_s - now_s())

    async def close(self) -> None:
        """Unregisters what is registered, as far as the server answers. Idempotent."""
        await self._unregister(self._pool.close())

    # --- inside ---------------------------------------------------------------------------

    async def _segment(self, byte_size: int, timeout_s: float) -> Segment | None:
        """One that the server knows; None: do without."""
        segment = self._pool.take(byte_size)
        if segment is not None:
            return segment
        segment, dropped = self._pool.make(byte_size)
        if segment is None:
            await self._unregister(dropped)
            return None
        is_known = False
        try:
            await self._unregister(dropped)
            timeout_s = min(timeout_s, REGISTER_TIMEOUT_S)
            await self._transport.call(operations.register(segment), timeout_s, NO_RETRY)
            is_known = True
        except TideserveClientError as error:
            if is_refusal(error):
                self._pool.switch_off()
        finally:
            segment.unlink()
            if not is_known:
                self._pool.discard(segment)
        return segment if is_known else None

    def _leave(self, segment: Segment, *, is_over: bool) -> None:
        if is_over:
            self._pool.give_back(segment)
        else:
            self._pool.abandon(segment)

    async def _unregister(self, names: list[str]) -> None:
        """As far as the server answers: it notices by itself that their lock is gone."""
        with suppress(TideserveClientError):
            for name in names:
                await self._transport.call(
                    operations.unregister(name), UNREGISTER_TIMEOUT_S, NO_RETRY
                )
