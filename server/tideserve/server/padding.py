"""Requests that differ in one dimension share a batch: padded to the next bucket's edge.

The inputs that leave that dimension open (-1 in config.pbtxt) are filled up as their batch is
joined; outputs that leave it open and come back as long as the bucket are cut to their caller's
own length. Longer requests than the last edge travel as they are.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tideserve.server.wire import Buffer

# numpy's type of each datatype that can be padded; BF16 has none, it is FP32's upper half.
_DTYPES: Final[dict[str, str]] = {
    "BOOL": "?",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
_UINTS: Final = {1: "<u1", 2: "<u2", 4: "<u4", 8: "<u8"}


@dataclass(frozen=True, slots=True)
class Padding:
    """`dim` counts a tensor's dims, without the batch dimension. `edges` ascend. `elements`: the
    bytes of the pad value of each input that is padded; `outputs`: those that may be cut."""

    dim: int
    edges: tuple[int, ...]
    elements: Mapping[str, bytes]
    outputs: frozenset[str]

    @property
    def axis(self) -> int:
        """Of a batch."""
        return self.dim + 1

    def padded(self, length: int) -> int:
        """As long as its bucket; as it is beyond the last edge."""
        at = bisect_left(self.edges, length)
        return self.edges[at] if at < len(self.edges) else length

    def padded_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of an input, with the batch dimension."""
        if name not in self.elements:
            return shape
        return self.with_length(shape, self.padded(shape[self.axis]))

    def with_length(self, shape: tuple[int, ...], length: int) -> tuple[int, ...]:
        """That shape, of another length."""
        return (*shape[: self.axis], length, *shape[self.axis + 1 :])

    def join(
        self, name: str, shape: tuple[int, ...], given: Sequence[tuple[tuple[int, ...], Buffer]]
    ) -> Buffer:
        """One input of a batch of that shape, from its callers' shapes and bytes in order."""
        element = self.elements[name]
        dtype = _UINTS[len(element)]
        joined: NDArray[np.unsignedinteger] = np.full(shape, np.frombuffer(element, dtype)[0])
        first_row = 0
        for own_shape, data in given:
            rows, length = own_shape[0], own_shape[self.axis]
            before = (slice(None),) * self.dim
            place = (slice(first_row, first_row + rows), *before, slice(0, length))
            joined[place] = np.frombuffer(data, dtype).reshape(own_shape)
            first_row += rows
        return joined.reshape(-1).view(np.uint8).data

    def cut(self, data: Buffer, shape: tuple[int, ...], length: int, element_bytes: int) -> Buffer:
        """The first `length` of a caller's rows of an output of that shape. `element_bytes` 0: of
        BYTES."""
        if element_bytes == 0:
            return self._cut_strings(data, shape, length)
        rows = np.frombuffer(data, f"V{element_bytes}").reshape(shape)
        return rows[(slice(None),) * self.axis + (slice(0, length),)].tobytes()

    def _cut_strings(self, data: Buffer, shape: tuple[int, ...], length: int) -> bytes:
        """Each element tells its own size, so all are walked through. No further than the data:
        a replica's shape is not held against it."""
        inner = prod(shape[self.axis + 1 :])
        pieces = []
        at = 0
        while inner and at < len(data):
            begin = at
            at = _after_strings(data, at, length * inner)
            pieces.append(data[begin:at])
            at = _after_strings(data, at, (shape[self.axis] - length) * inner)
        return b"".join(pieces)


def _after_strings(data: Buffer, at: int, count: int) -> int:
    """Where so many elements of BYTES from `at` on end."""
    while count and at < len(data):
        at += 4 + int.from_bytes(data[at : at + 4], "little")
        count -= 1
    return at


def pad_element(datatype: str, value: float) -> bytes | None:
    """The bytes of one element; None: that datatype has no such value."""
    if datatype == "BF16":
        upper = np.array(value, "<f4").tobytes()[2:]
        exact = float(np.frombuffer(b"\0\0" + upper, "<f4")[0]) == value
        return upper if exact else None
    if datatype not in _DTYPES:
        return None
    dtype = np.dtype(_DTYPES[datatype])
    if dtype.kind != "f" and not (isfinite(value) and value == int(value)):
        return None
    if dtype.kind == "b" and value not in (0.0, 1.0):
        return None
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        if not int(limits.min) <= int(value) <= int(limits.max):
            return None
        return np.array(int(value), dtype).tobytes()
    with np.errstate(over="ignore"):
        element = np.array(value, dtype)
    overflows = isfinite(value) and not isfinite(float(element))
    return None if overflows else element.tobytes()
