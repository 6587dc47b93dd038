"""The asyncio client: the same calls, options and errors as `tideserve.client`."""

from tideserve.client.aio.client import Client
from tideserve.client.aio.stream import InferStream

__all__ = ["Client", "InferStream"]
