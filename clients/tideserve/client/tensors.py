"""One tensor: from an array to wire bytes, and back."""

import mmap
import struct
from dataclasses import dataclass
from math import prod
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tideserve.client.datatypes import DATATYPES, WIRE_DTYPES, bfloat16, datatype_of
from tideserve.client.errors import InvalidArgument, InvalidResponse
from tideserve.v1.inference_pb2 import InferTensorContents

Array = NDArray[Any]

_LENGTH: Final = struct.Struct("<I")
_MAX_ELEMENT_BYTES: Final = 2**32 - 1
# Which field of InferTensorContents holds which datatype. FP16 and BF16 have none.
_CONTENTS: Final[dict[str, str]] = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


@dataclass(frozen=True, slots=True)
class WireTensor:
    """A tensor as it travels. `content`: its bytes, or an array of little-endian numbers."""

    datatype: str
    shape: tuple[int, ...]
    content: bytes | Array

    @property
    def byte_size(self) -> int:
        return len(self.content) if isinstance(self.content, bytes) else self.content.nbytes

    @property
    def data(self) -> bytes:
        """Row-major and little-endian."""
        return self.content if isinstance(self.content, bytes) else self.content.tobytes()

    def write_to(self, memory: "mmap.mmap | bytearray", offset: int) -> None:
        """Puts the data into memory: one copy."""
        if isinstance(self.content, bytes):
            memoryview(memory)[offset : offset + len(self.content)] = self.content
            return
        array = self.content
        target = np.frombuffer(memory, array.dtype, array.size, offset)
        target.reshape(array.shape)[...] = array


def encode(name: str, value: ArrayLike) -> WireTensor:
    """`value` in wire form. Arrays keep their dtype; what is not an array becomes what
    `numpy.asarray` makes of it (int: INT64, float: FP64, bool: BOOL, str and bytes: BYTES).

    Raises `InvalidArgument` naming the input for what has no wire form.
    """
    array = as_array(name, value)
    try:
        datatype = datatype_of(array.dtype)
    except InvalidArgument as error:
        raise InvalidArgument(f"input {name!r}: {error}") from error
    if datatype == "BYTES":
        return WireTensor(datatype, array.shape, _join_elements(name, array))
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and not _LITTLE):
        array = array.astype(array.dtype.newbyteorder("<"))
    return WireTensor(datatype, array.shape, array)


_LITTLE: Final = np.dtype("=i4") == np.dtype("<i4")


def as_array(name: str, value: ArrayLike) -> Array:
    """`numpy.asarray`, but lists of str or bytes stay elements of their own: numpy's fixed
    width would drop trailing NULs."""
    if isinstance(value, np.ndarray):
        return value
    try:
        array = np.asarray(value)
        if array.dtype.kind in "SU" and not isinstance(value, np.generic):
            array = np.asarray(value, dtype=object)
    except (ValueError, TypeError, OverflowError) as error:
        raise InvalidArgument(
            f"input {name!r}: expected an array or nested lists of one shape, got "
            f"{type(value).__name__}: {error}"
        ) from error
    return array


def _join_elements(name: str, array: Array) -> bytes:
    parts: list[bytes] = []
    for element in array.ravel().tolist():
        data = _element_bytes(name, element)
        parts.append(_LENGTH.pack(len(data)))
        parts.append(data)
    return b"".join(parts)


def _element_bytes(name: str, element: object) -> bytes:
    match element:
        case bytes():
            data = element
        case str():
            try:
                data = element.encode()
            except UnicodeEncodeError as error:
                raise InvalidArgument(
                    f"input {name!r}: an element has no UTF-8 form ({error}); send bytes"
                ) from error
        case bytearray() | memoryview():
            data = bytes(element)
        case _:
            raise InvalidArgument(
                f"input {name!r}: expected str or bytes in each element, got "
                f"{type(element).__name__}; give the array a numeric dtype"
            )
    if len(data) > _MAX_ELEMENT_BYTES:
        raise InvalidArgument(f"input {name!r}: an element has {len(data)} bytes, 4 GiB at most")
    return data


def decode_raw(name: str, datatype: str, shape: tuple[int, ...], data: bytes) -> Array:
    """The array of raw contents. Numeric ones are read-only views of `data`, not copies;
    BYTES is an object array of bytes; BF16 without ml_dtypes comes as float32, exactly.

    Raises `InvalidResponse` where datatype, shape and size do not agree.
    """
    count = _count(name, datatype, shape)
    if datatype == "BYTES":
        return _object_array(name, _split_elements(name, data, count), shape)
    dtype = bfloat16() if datatype == "BF16" else WIRE_DTYPES[datatype]
    if dtype is None:
        dtype = np.dtype("<u2")
    if len(data) != count * dtype.itemsize:
        raise InvalidResponse(
            f"output {name!r}: {datatype} {list(shape)} takes {count * dtype.itemsize} bytes, "
            f"got {len(data)}"
        )
    array = _shaped(name, np.frombuffer(data, dtype), shape)
    if datatype == "BF16" and dtype.kind == "u":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def decode_contents(
    name: str, datatype: str, shape: tuple[int, ...], contents: InferTensorContents
) -> Array:
    """The array of typed contents. Raises `InvalidResponse` as `decode_raw` does."""
    count = _count(name, datatype, shape)
    field = _CONTENTS.get(datatype)
    if field is None:
        raise InvalidResponse(f"output {name!r}: {datatype} has no typed contents, only raw ones")
    values = getattr(contents, field)
    if len(values) != count:
        raise InvalidResponse(
            f"output {name!r}: {datatype} {list(shape)} has {count} elements, got {len(values)} "
            f"in {field}"
        )
    if datatype == "BYTES":
        return _object_array(name, list(values), shape)
    try:
        array = np.array(values, dtype=WIRE_DTYPES[datatype])
    except OverflowError as error:
        raise InvalidResponse(f"output {name!r}: a value does not fit {datatype}") from error
    return _shaped(name, array, shape)


def _count(name: str, datatype: str, shape: tuple[int, ...]) -> int:
    if datatype not in DATATYPES:
        raise InvalidResponse(
            f"output {name!r}: datatype {datatype!r} is unknown, expected one of "
            f"{', '.join(DATATYPES)}"
        )
    if any(dim < 0 for dim in shape):
        raise InvalidResponse(f"output {name!r}: shape {list(shape)} has a negative size")
    return prod(shape)


def _split_elements(name: str, data: bytes, count: int) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + _LENGTH.size
        if start > len(data):
            raise InvalidResponse(f"output {name!r}: BYTES ends inside a length, at byte {at}")
        (length,) = _LENGTH.unpack_from(data, at)
        at = start + length
        if at > len(data):
            raise InvalidResponse(
                f"output {name!r}: a BYTES element claims {length} bytes at byte {start}, "
                f"{len(data) - start} are left"
            )
        elements.append(data[start:at])
    if len(elements) != count:
        raise InvalidResponse(
            f"output {name!r}: the shape has {count} elements, got {len(elements)}"
        )
    return elements


def _object_array(name: str, elements: list[bytes], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return _shaped(name, array, shape)


def _shaped(name: str, array: Array, shape: tuple[int, ...]) -> Array:
    try:
        return array.reshape(shape)
    except ValueError as error:  # a rank or a size beyond numpy's
        raise InvalidResponse(f"output {name!r}: no array has shape {list(shape)}") from error
