"""Tensor bytes to arrays and back: row-major, little-endian, BYTES elements length-prefixed."""

import math
import struct
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from tideserve.replica.datatypes import numpy_type
from tideserve.replica.errors import BadOutputError, WireError

Array = npt.NDArray[Any]

_LENGTH: Final = struct.Struct("<I")


def to_array(datatype: str, shape: tuple[int, ...], data: memoryview) -> Array:
    """The array of a tensor's bytes.

    Fixed-size types are read-only views of `data`, or copies where `data` does not lie at a
    multiple of the element's size. BYTES become object arrays of bytes. Raises `WireError`
    where sizes do not match.
    """
    if datatype == "BYTES":
        return _bytes_array(shape, data)
    array_type = numpy_type(datatype)
    expected_bytes = math.prod(shape) * array_type.itemsize
    if len(data) != expected_bytes:
        raise WireError(
            f"expected {expected_bytes} bytes for {datatype}{list(shape)}, got {len(data)}"
        )
    array = np.frombuffer(data, array_type)
    # Runtimes read whole vectors at once and may fault on unaligned ones.
    if not array.flags.aligned:
        array = array.copy()
    return array.reshape(shape)


def to_data(name: str, array: Array) -> Array | bytes:
    """The bytes of an array as something that `bytes.join` takes: fixed-size types as they
    lie where they lie well, BYTES as their encoding. Raises `BadOutputError`."""
    if array.dtype.kind in "OSU":
        return b"".join(_encoded(name, array))
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("<"))
    return array if array.flags.c_contiguous else np.ascontiguousarray(array)


def to_row_data(name: str, array: Array) -> tuple[bytes, tuple[int, ...]]:
    """The encoding of a BYTES array, and the bytes of each of its rows (first dimension)."""
    rows = [b"".join(_encoded(name, row)) for row in array]
    return b"".join(rows), tuple(map(len, rows))


def _bytes_array(shape: tuple[int, ...], data: memoryview) -> Array:
    count = math.prod(shape)
    elements: list[bytes] = []
    at, end = 0, len(data)
    for _ in range(count):
        if at + 4 > end:
            raise WireError(f"expected {count} BYTES elements, got {len(elements)}")
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if at + length > end:
            raise WireError(
                f"BYTES element {len(elements)}: expected {length} bytes, {end - at} are left"
            )
        elements.append(bytes(data[at : at + length]))
        at += length
    if at != end:
        raise WireError(f"expected {count} BYTES elements, got {end - at} bytes more")
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array.reshape(shape)


def _encoded(name: str, array: Array | bytes | str) -> list[bytes]:
    parts: list[bytes] = []
    for element in np.asarray(array, dtype=object).reshape(-1):
        if isinstance(element, str):
            element = element.encode()
        if not isinstance(element, bytes):
            raise BadOutputError(
                f"output {name!r}: expected bytes or str in a BYTES array, got "
                f"{type(element).__name__}"
            )
        parts.append(_LENGTH.pack(len(element)))
        parts.append(element)
    return parts
