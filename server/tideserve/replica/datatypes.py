"""Data types: their names on the wire, in config.pbtxt and in numpy."""

from functools import cache
from typing import Any, Final, cast

import numpy as np

from tideserve.replica.errors import LoadError, NotInstalledError
from tideserve.v1.model_config_pb2 import DataType

# Names as in the Open Inference Protocol; BF16 and BYTES have no numpy type of their own.
_FIXED: Final[dict[str, str]] = {
    "BOOL": "?",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
DATATYPES: Final = (*_FIXED, "BF16", "BYTES")


@cache
def numpy_type(datatype: str) -> np.dtype[Any]:
    """The array type of a wire datatype; BYTES is an object array of bytes.

    Raises `LoadError` for a name that is none, and for BF16 without ml_dtypes.
    """
    if datatype == "BYTES":
        return np.dtype(object)
    if datatype == "BF16":
        try:
            import ml_dtypes
        except ImportError as error:
            raise NotInstalledError(
                "BF16 needs the package ml-dtypes, which is not installed: "
                "pip install 'tideserve[cpu]' or 'tideserve[gpu]', and restart"
            ) from error
        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    if datatype not in _FIXED:
        raise LoadError(f"expected a datatype of {', '.join(DATATYPES)}, got {datatype!r}")
    return np.dtype(_FIXED[datatype])


def wire_name(array_type: np.dtype[Any]) -> str:
    """The wire datatype that an array of this type would be; its numpy name if there is none."""
    if array_type.kind in "OSU":
        return "BYTES"
    if array_type.name == "bfloat16":
        return "BF16"
    little = array_type.newbyteorder("<")
    return next(
        (name for name, code in _FIXED.items() if np.dtype(code) == little), str(array_type)
    )


def from_config(data_type: int) -> str:
    """`TYPE_FP32` to `FP32`, `TYPE_STRING` to `BYTES`; empty for TYPE_INVALID."""
    name = DataType.Name(data_type)
    if name == "TYPE_INVALID":
        return ""
    return "BYTES" if name == "TYPE_STRING" else name.removeprefix("TYPE_")


def to_config(datatype: str) -> "DataType":
    """The reverse of `from_config`."""
    name = "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    return cast("DataType", DataType.Value(name))
