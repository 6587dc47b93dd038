"""Results as JSON values, and in .npy, .npz and .json files."""

import base64
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tideserve.cli.exits import UsageFault
from tideserve.client.datatypes import datatype_of

Array = NDArray[Any]

SUFFIXES: Final = (".npy", ".npz", ".json")


def json_outputs(outputs: Mapping[str, Array]) -> dict[str, Any]:
    """Name to datatype, shape and nested data. What JSON has no number for comes as the
    strings NaN, Infinity and -Infinity; BYTES as text, or all as base64 (`encoding`) where one
    element is no UTF-8."""
    return {name: _json_tensor(array) for name, array in outputs.items()}


def checked_save_path(path: Path) -> Path:
    """Refuses a path that `save` could not write, before the work is done."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageFault(f"--save {path}: expected a name that ends in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise UsageFault(f"--save {path}: there is no directory {path.parent}")
    return path


def save(path: Path, outputs: Mapping[str, Array]) -> None:
    """Writes the outputs: .npy one, .npz and .json all. Raises `UsageFault`."""
    try:
        match path.suffix.lower():
            case ".json":
                path.write_text(json.dumps(json_outputs(outputs), allow_nan=False) + "\n")
            case ".npz":
                np.savez(path, allow_pickle=False, **_numpy_arrays(outputs))
            case _:
                if len(outputs) != 1:
                    raise UsageFault(
                        f"--save {path}: .npy holds one output, got {', '.join(outputs)}: "
                        "use .npz or --output NAME"
                    )
                (array,) = _numpy_arrays(outputs).values()
                np.save(path, array, allow_pickle=False)
    except OSError as error:
        raise UsageFault(f"--save {path}: {error.strerror}") from error


def _numpy_arrays(outputs: Mapping[str, Array]) -> dict[str, Array]:
    return {name: _numpy_array(name, array) for name, array in outputs.items()}


def _numpy_array(name: str, array: Array) -> Array:
    """What numpy's files can hold: BYTES as fixed width, BF16 as float32."""
    if array.dtype.name == "bfloat16":
        return array.astype(np.float32)
    if array.dtype.kind != "O":
        return array
    if any(element.endswith(b"\0") for element in array.ravel()):
        raise UsageFault(f"output {name}: numpy files drop NULs at the end of BYTES: use .json")
    return array.astype(np.bytes_)


def _json_tensor(array: Array) -> dict[str, Any]:
    tensor: dict[str, Any] = {"datatype": datatype_of(array.dtype), "shape": list(array.shape)}
    if array.dtype.kind == "O":
        return tensor | _json_bytes(array)
    if array.dtype.kind not in "biu":
        array = array.astype(np.float64)
        if not np.isfinite(array).all():
            return tensor | {"data": _finite(array.tolist())}
    return tensor | {"data": array.tolist()}


def _json_bytes(array: Array) -> dict[str, Any]:
    elements = array.ravel().tolist()
    encoding = {}
    try:
        texts = [element.decode() for element in elements]
    except UnicodeDecodeError:
        texts = [base64.b64encode(element).decode() for element in elements]
        encoding = {"encoding": "base64"}
    shaped = np.array(texts, dtype=object).reshape(array.shape)
    return {**encoding, "data": shaped.tolist()}


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value
