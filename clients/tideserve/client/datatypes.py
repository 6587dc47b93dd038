"""The protocol's datatype names and numpy's dtypes."""

from importlib.util import find_spec
from typing import Final

import numpy as np

from tideserve.client.errors import InvalidArgument

# Little-endian, as on the wire. BYTES has no fixed size and BF16 no numpy dtype of its own.
WIRE_DTYPES: Final[dict[str, np.dtype[np.generic]]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
}
DATATYPES: Final = (*WIRE_DTYPES, "BF16", "BYTES")

_BY_KIND_AND_SIZE: Final = {(dtype.kind, dtype.itemsize): n for n, dtype in WIRE_DTYPES.items()}
# object, bytes, str and numpy 2's variable-width strings.
_TEXT_KINDS: Final = "OSUT"


def bfloat16() -> np.dtype[np.generic] | None:
    """ml_dtypes' bfloat16; None where ml_dtypes is not installed."""
    if find_spec("ml_dtypes") is None:
        return None
    import ml_dtypes

    dtype: np.dtype[np.generic] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def datatype_of(dtype: np.dtype[np.generic]) -> str:
    """The datatype that arrays of `dtype`, of either byte order, travel as.

    Raises `InvalidArgument` for one that the protocol does not have.
    """
    if dtype.kind in _TEXT_KINDS:
        return "BYTES"
    name = _BY_KIND_AND_SIZE.get((dtype.kind, dtype.itemsize))
    if name is not None:
        return name
    if dtype.name == "bfloat16":
        return "BF16"
    raise InvalidArgument(
        f"dtype {dtype} cannot be sent: expected bool, an integer of 8 to 64 bits, float16, "
        "float32, float64, bfloat16 (ml_dtypes), or str, bytes or object for BYTES"
    )
