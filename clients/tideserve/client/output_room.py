"""How much room outputs are given in shared memory: what the last answer of the kind took.

Sizes are not known before a model answers. One that is larger than its room travels in the answer,
which costs nothing but speed, and has its room from the next request on.
"""

from collections import OrderedDict
from threading import Lock
from typing import Final

from tideserve.v1.inference_pb2 import ModelInferResponse
from tideserve.v1.segments import MIN_OUTPUT_BYTES, aligned

# Kinds of requests that are remembered, the last ones used.
MAX_KINDS: Final = 256
# Answers with more travel as messages: two of them would take all that a client may have.
MAX_ROOM_BYTES: Final = 64 * 1024 * 1024

# Model, version, the outputs asked for, and the inputs' names and shapes.
Kind = tuple[str, str, tuple[str, ...] | None, tuple[tuple[str, tuple[int, ...]], ...]]


class OutputRoom:
    """Owns what is remembered, by kind. Any thread."""

    def __init__(self) -> None:
        self._bytes: OrderedDict[Kind, int] = OrderedDict()
        self._lock = Lock()

    def of(self, kind: Kind) -> int:
        """Bytes that its large outputs are expected to take; 0: it has none, or too large ones."""
        if kind not in self._bytes:
            return 0
        with self._lock:
            room_bytes = self._bytes.get(kind, 0)
            if room_bytes:
                self._bytes.move_to_end(kind)
            return room_bytes

    def on_answer(self, kind: Kind, response: ModelInferResponse) -> None:
        """Remembers what this one took, wherever its outputs lie."""
        room_bytes = _room_bytes(response)
        if not 0 < room_bytes <= MAX_ROOM_BYTES:
            room_bytes = 0
        if not room_bytes and kind not in self._bytes:
            return
        with self._lock:
            if not room_bytes:
                self._bytes.pop(kind, None)
                return
            self._bytes[kind] = room_bytes
            self._bytes.move_to_end(kind)
            while len(self._bytes) > MAX_KINDS:
                self._bytes.popitem(last=False)


def _room_bytes(response: ModelInferResponse) -> int:
    """Of its large outputs; none of them is typed contents."""
    room_bytes = 0
    for at, raw in enumerate(response.raw_output_contents):
        size = len(raw)
        # One that is elsewhere has an empty entry.
        if not size and at < len(response.outputs):
            parameters = response.outputs[at].parameters
            if "shared_memory_byte_size" in parameters:
                size = parameters["shared_memory_byte_size"].int64_param
        if size >= MIN_OUTPUT_BYTES:
            room_bytes += aligned(size)
    return room_bytes
