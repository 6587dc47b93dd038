"""One tensor's shape and contents, checked against what the model takes."""

from collections.abc import Sequence
from math import prod
from struct import unpack_from
from typing import Final

from tideserve.server import typed_contents
from tideserve.server.errors import InvalidRequestError
from tideserve.server.model_spec import DATATYPE_BYTES, ModelSpec, TensorSpec
from tideserve.server.typed_contents import TYPED_CONTENTS
from tideserve.server.wire import Buffer
from tideserve.v1.inference_pb2 import InferTensorContents

MAX_ELEMENTS: Final = 1 << 40
# Dimensions that a sentence shows of a shape.
SHOWN_DIMS: Final = 16


def read_shape(given: Sequence[int], expected: TensorSpec, spec: ModelSpec) -> tuple[int, ...]:
    """The checked shape. One of the wrong rank is not even copied: it may have millions of
    dimensions."""
    wanted = [-1, *expected.dims] if spec.max_batch_size else [*expected.dims]
    shape = tuple(given) if len(given) == len(wanted) else None
    # 2**40 elements cannot fit a message. Sizes beside a 0 count too: numpy refuses an empty
    # array whose other sizes are absurd.
    if (
        shape is None
        or not all(got >= 0 and want in (-1, got) for want, got in zip(wanted, shape, strict=True))
        or prod(max(1, size) for size in shape) > MAX_ELEMENTS
    ):
        rows = (
            f", its first dimension being the rows (1 to {spec.max_batch_size})"
            if spec.max_batch_size
            else ""
        )
        raise InvalidRequestError(
            f"model '{spec.name}', input '{expected.name}': expected shape {wanted}{rows}, "
            f"got {_shown(given)}"
        )
    return shape


def _shown(shape: Sequence[int]) -> str:
    """A shape in a sentence, of which only the beginning if it is absurdly long."""
    if len(shape) <= SHOWN_DIMS:
        return str(list(shape))
    sizes = ", ".join(map(str, shape[:SHOWN_DIMS]))
    return f"[{sizes}, ...] of {len(shape)} dimensions"


def check_size(expected: TensorSpec, shape: tuple[int, ...], data: bytes, spec: ModelSpec) -> None:
    if DATATYPE_BYTES[expected.datatype]:
        check_bytes(expected, shape, len(data), spec)
        return
    elements = prod(shape)
    count = count_bytes_elements(data, elements)
    if count != elements:
        if count < 0:
            what = "length prefixes that do not fit the data"
        else:
            what = f"{count}" if count < elements else f"more, in {len(data)} bytes"
        raise InvalidRequestError(
            f"model '{spec.name}', input '{expected.name}': expected {elements} BYTES elements "
            f"for shape {list(shape)}, each with a 4-byte little-endian length, got {what}"
        )


def check_bytes(expected: TensorSpec, shape: tuple[int, ...], given: int, spec: ModelSpec) -> None:
    """Of a datatype whose elements have a size."""
    wanted = prod(shape) * DATATYPE_BYTES[expected.datatype]
    if given != wanted:
        raise InvalidRequestError(
            f"model '{spec.name}', input '{expected.name}': expected {wanted} bytes for "
            f"{expected.datatype} {list(shape)}, got {given}"
        )


def count_bytes_elements(data: Buffer, expected: int) -> int:
    """Elements of a BYTES tensor, one too many for any number above `expected`; -1 if the
    lengths do not add up."""
    at = count = 0
    end = len(data)
    while at + 4 <= end and count <= expected:
        at += 4 + unpack_from("<I", data, at)[0]
        count += 1
    return count if at == end or count > expected else -1


def pack(
    contents: InferTensorContents, expected: TensorSpec, shape: tuple[int, ...], spec: ModelSpec
) -> bytes:
    """Typed contents as raw bytes."""
    where = f"model '{spec.name}', input '{expected.name}'"
    if expected.datatype not in TYPED_CONTENTS:
        raise InvalidRequestError(
            f"{where}: {expected.datatype} has no typed contents, send raw_input_contents"
        )
    field, _ = TYPED_CONTENTS[expected.datatype]
    for descriptor, _ in contents.ListFields():
        if descriptor.name != field:
            raise InvalidRequestError(
                f"{where}: expected {expected.datatype} in contents.{field}, "
                f"got contents.{descriptor.name}"
            )
    values = getattr(contents, field)
    if len(values) != prod(shape):
        raise InvalidRequestError(
            f"{where}: expected {prod(shape)} elements in contents.{field} for shape "
            f"{list(shape)}, got {len(values)}"
        )
    try:
        return typed_contents.pack(contents, expected.datatype)
    except OverflowError as error:
        raise InvalidRequestError(
            f"{where}: a value does not fit {expected.datatype}: {error}"
        ) from error
