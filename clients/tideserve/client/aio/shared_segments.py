"""The segments of an asyncio client, which the server opens before they are used."""

from contextlib import suppress

from tideserve.client import operations
from tideserve.client.aio.transport import Transport
from tideserve.client.errors import TideserveClientError
from tideserve.client.output_room import OutputRoom
from tideserve.client.retry import NO_RETRY
from tideserve.client.segments import Segment, SegmentPool, is_available
from tideserve.client.shared_call import is_refusal
from tideserve.client.shared_segments import REGISTER_TIMEOUT_S, UNREGISTER_TIMEOUT_S


class SharedSegments:
    """Owns the segments of one client, and what is known of the outputs that they are to hold. Any
    task may call."""

    def __init__(self, transport: Transport, *, enabled: bool) -> None:
        self._transport = transport
        self.pool = SegmentPool(enabled and is_available())
        self._room = OutputRoom()

    @property
    def room(self) -> OutputRoom | None:
        """None: the server takes no segments, and nobody need look at sizes."""
        return self._room if self.pool.is_on else None

    async def take(self, byte_size: int, timeout_s: float) -> Segment | None:
        """One that the server knows, within `timeout_s`; None: do without. Who has it gives it back
        to the pool, or abandons it there."""
        if not byte_size:
            return None
        segment = self.pool.take(byte_size)
        if segment is not None:
            return segment
        segment, dropped = self.pool.make(byte_size)
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
                self.pool.switch_off()
        finally:
            segment.unlink()
            if not is_known:
                self.pool.discard(segment)
        return segment if is_known else None

    async def close(self) -> None:
        """Unregisters what is registered, as far as the server answers. Idempotent."""
        await self._unregister(self.pool.close())

    async def _unregister(self, names: list[str]) -> None:
        """As far as the server answers: it notices by itself that their lock is gone."""
        with suppress(TideserveClientError):
            for name in names:
                await self._transport.call(
                    operations.unregister(name), UNREGISTER_TIMEOUT_S, NO_RETRY
                )
