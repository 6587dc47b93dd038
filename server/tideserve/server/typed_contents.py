"""Typed contents (InferTensorContents) as raw bytes, without a Python object for each value.

protobuf writes repeated floats, doubles and bools as their bytes one after the other, which is
what raw contents are; integers are varints, decoded here by numpy, all at once
(https://protobuf.dev/programming-guides/encoding/#packed).
"""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tideserve.v1.inference_pb2 import InferTensorContents
from tideserve.v1.varint import varint

# numpy's name of each datatype that InferTensorContents can carry, and the field it is in.
TYPED_CONTENTS: Final[dict[str, tuple[str, str]]] = {
    "BOOL": ("bool_contents", "?"),
    "INT8": ("int_contents", "<i1"),
    "INT16": ("int_contents", "<i2"),
    "INT32": ("int_contents", "<i4"),
    "INT64": ("int64_contents", "<i8"),
    "UINT8": ("uint_contents", "<u1"),
    "UINT16": ("uint_contents", "<u2"),
    "UINT32": ("uint_contents", "<u4"),
    "UINT64": ("uint64_contents", "<u8"),
    "FP32": ("fp32_contents", "<f4"),
    "FP64": ("fp64_contents", "<f8"),
    "BYTES": ("bytes_contents", ""),
}
_AS_THEY_ARE: Final = ("BOOL", "FP32", "FP64")


def pack(contents: InferTensorContents, datatype: str) -> bytes:
    """The row-major little-endian bytes of the field that `datatype` belongs in.

    Raises `OverflowError`, with the value, where one does not fit the datatype.
    """
    field, name = TYPED_CONTENTS[datatype]
    values = getattr(contents, field)
    if datatype == "BYTES":
        return b"".join(len(value).to_bytes(4, "little") + value for value in values)
    if not values:
        return b""
    packed = _packed(contents, field)
    if datatype in _AS_THEY_ARE:
        return bytes(packed)
    signed = field in ("int_contents", "int64_contents")
    numbers = _varints(packed)
    return _narrowed(numbers.view(np.int64) if signed else numbers, np.dtype(name)).tobytes()


def _packed(contents: InferTensorContents, field: str) -> memoryview:
    """The values of the only field that is set, as protobuf packs them."""
    contents.DiscardUnknownFields()  # type: ignore[attr-defined]
    message = contents.SerializeToString()
    number = InferTensorContents.DESCRIPTOR.fields_by_name[field].number
    # The tag, one byte for numbers below 16, and the length, of as many bytes as it needs.
    for length_bytes in range(1, 6):
        begin = 1 + length_bytes
        if message[:begin] == bytes([number << 3 | 2]) + varint(len(message) - begin):
            return memoryview(message)[begin:]
    raise AssertionError(f"{field} is not all there is")


def _varints(packed: memoryview) -> npt.NDArray[np.uint64]:
    """Base-128 numbers, least significant group first, each ended by a byte below 128."""
    groups = np.frombuffer(packed, np.uint8)
    ends = np.flatnonzero(groups < 0x80)
    if len(ends) == len(groups):
        return groups.astype(np.uint64)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    numbers = np.zeros(len(ends), np.uint64)
    for at in range(int(lengths.max())):
        longer = np.flatnonzero(lengths > at)
        low_bits = (groups[starts[longer] + at] & 0x7F).astype(np.uint64)
        numbers[longer] |= low_bits << np.uint64(7 * at)
    return numbers


def _narrowed(numbers: npt.NDArray[Any], datatype: np.dtype[Any]) -> npt.NDArray[Any]:
    """As `datatype`. Raises OverflowError for the first that does not fit."""
    limits = np.iinfo(datatype)
    outside = np.flatnonzero((numbers < limits.min) | (numbers > limits.max))
    if len(outside):
        raise OverflowError(
            f"expected {limits.min} to {limits.max}, got {int(numbers[outside[0]])}"
        )
    return numbers.astype(datatype)
