"""Tensors from .npy, .npz, .json and .csv files, made to fit a model."""

import csv
import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tideserve.cli.exits import UsageFault
from tideserve.client import TensorMetadata
from tideserve.client.datatypes import WIRE_DTYPES, bfloat16

Array = NDArray[Any]

_BOOLS: Final = {"true": True, "1": True, "false": False, "0": False}


def read_inputs(
    tensors: Sequence[TensorMetadata], batching: bool, files: Mapping[str, Path], file: Path | None
) -> dict[str, Array]:
    """Each file's array in the datatype and shape of the input it is for.

    `file` is for a model with one input, or holds all inputs by name (.npz, a JSON object).
    Raises `UsageFault`.
    """
    known = {tensor.name: tensor for tensor in tensors}
    found: dict[str, Any] = {}
    for name, path in files.items():
        if name not in known:
            raise UsageFault(f"--input {name}: expected one of {', '.join(known)}")
        found[name] = _read(path, known[name])
    if file is not None:
        found |= _read_all(file, known)
    arrays = {
        name: fitted(np_value(name, value, known[name].datatype), known[name], batching)
        for name, value in found.items()
    }
    if not arrays:
        raise UsageFault(
            f"expected values for {', '.join(known)}: give FILE, --input NAME=FILE or --random ROWS"
        )
    if batching and len({len(array) for array in arrays.values()}) > 1:
        rows = ", ".join(f"{name} has {len(array)}" for name, array in arrays.items())
        raise UsageFault(f"expected as many rows in every input: {rows}")
    return arrays


def random_inputs(tensors: Sequence[TensorMetadata], batching: bool, rows: int) -> dict[str, Array]:
    """Random values in every input's shape, sizes that may vary being 1; the same each time."""
    generator = np.random.default_rng(0)
    arrays: dict[str, Array] = {}
    for tensor in tensors:
        item = tensor.shape[1:] if batching else tensor.shape
        dims = tuple(max(size, 1) if size < 0 else size for size in item)
        shape = (rows, *dims) if batching else dims
        if tensor.datatype == "BYTES":
            values = [f"text {n}" for n in generator.integers(1000, size=prod(shape))]
            arrays[tensor.name] = np.array(values, dtype=object).reshape(shape)
        elif tensor.datatype == "BOOL" or "INT" in tensor.datatype:
            top = 2 if tensor.datatype == "BOOL" else 100
            arrays[tensor.name] = generator.integers(top, size=shape).astype(_dtype(tensor))
        else:
            arrays[tensor.name] = generator.random(shape).astype(_dtype(tensor))
    return arrays


def fitted(array: Array, tensor: TensorMetadata, batching: bool) -> Array:
    """The array in the input's shape: as it is, with the batch dimension added to one item,
    or with flattened items given their sizes back. Raises `UsageFault`."""
    item = tensor.shape[1:] if batching else tensor.shape
    if not batching:
        if _matches(array.shape, item):
            return array
        if (shape := _unflattened(array.size, item)) is not None:
            return array.reshape(shape)
    else:
        if array.ndim >= 1 and _matches(array.shape[1:], item):
            return array
        if _matches(array.shape, item):
            return array[np.newaxis]
        if array.ndim == 2 and (shape := _unflattened(array.shape[1], item)) is not None:
            return array.reshape(array.shape[0], *shape)
        if array.ndim == 1 and (shape := _unflattened(array.size, item)) is not None:
            return array.reshape(1, *shape)
        if array.ndim == 1 and prod(item) == 1:
            return array.reshape(array.size, *item)
    raise UsageFault(
        f"input {tensor.name}: expected shape {list(tensor.shape)} (-1: any size), or rows with "
        f"their sizes flattened, got {list(array.shape)}"
    )


def np_value(name: str, value: Any, datatype: str) -> Array:
    """`value` (an array or nested lists) as an array of the datatype. Raises `UsageFault` where
    a value would change: a fraction or a number out of range for an integer."""
    try:
        array = np.asarray(value, dtype=object) if datatype == "BYTES" else np.asarray(value)
    except ValueError as error:
        raise UsageFault(f"input {name}: expected nested lists of one shape: {error}") from error
    if datatype == "BYTES":
        if not all(isinstance(element, str | bytes) for element in array.ravel()):
            raise UsageFault(f"input {name}: expected strings for BYTES")
        return array
    dtype = _named_dtype(datatype)
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16" and array.size:
        raise UsageFault(f"input {name}: expected numbers for {datatype}, got {array.dtype}")
    with np.errstate(all="ignore"):
        cast = array.astype(dtype)
        if dtype.kind in "biu" and not np.array_equal(cast, array):
            raise UsageFault(f"input {name}: some values are no {datatype}")
    return cast


def _read(path: Path, tensor: TensorMetadata) -> Any:
    match path.suffix.lower():
        case ".npy":
            return _load_numpy(path)
        case ".json":
            return _load_json(path)
        case ".csv":
            return _load_csv(path, tensor)
        case other:
            raise UsageFault(f"{path}: expected .npy, .json or .csv, got {other or 'no suffix'}")


def _read_all(path: Path, known: Mapping[str, TensorMetadata]) -> dict[str, Any]:
    suffix = path.suffix.lower()
    value = (
        _load_numpy(path) if suffix == ".npz" else _load_json(path) if suffix == ".json" else None
    )
    if isinstance(value, dict):
        unknown = sorted(set(value) - set(known))
        if unknown:
            raise UsageFault(f"{path}: no input is called {unknown[0]!r}, expected {list(known)}")
        return value
    if len(known) != 1:
        raise UsageFault(
            f"{path}: the model has {len(known)} inputs ({', '.join(known)}): give --input NAME=FILE"
        )
    (tensor,) = known.values()
    return {tensor.name: _read(path, tensor) if value is None else value}


def _load_numpy(path: Path) -> Any:
    try:
        loaded = np.load(path, allow_pickle=False)
        return loaded if isinstance(loaded, np.ndarray) else dict(loaded)
    except (OSError, ValueError, EOFError) as error:
        raise UsageFault(f"{path}: expected a numpy file without objects: {error}") from error


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageFault(f"{path}: expected JSON: {error}") from error


def _load_csv(path: Path, tensor: TensorMetadata) -> Array:
    """Rows of cells. A first line with a cell that is no number is a header, for numbers."""
    try:
        with path.open(newline="") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, ValueError, csv.Error) as error:
        raise UsageFault(f"{path}: expected CSV: {error}") from error
    if len({len(row) for row in rows}) > 1:
        raise UsageFault(f"{path}: expected as many cells in every line")
    if tensor.datatype == "BYTES":
        return np.array(rows, dtype=object)
    if rows and not all(_is_number(cell) for cell in rows[0]):
        rows = rows[1:]
    if not rows:
        raise UsageFault(f"{path}: expected rows of numbers, found none")
    try:
        if tensor.datatype == "BOOL":
            return np.array([[_BOOLS[cell.strip().lower()] for cell in row] for row in rows])
        # Integers are parsed as such: float64 has 53 bits of them.
        kind = tensor.datatype.rstrip("0123456789")
        return np.array(rows).astype({"INT": "i8", "UINT": "u8"}.get(kind, "f8"))
    except (ValueError, KeyError, OverflowError) as error:
        raise UsageFault(f"{path}: expected {tensor.datatype} in every cell: {error}") from error


def _is_number(cell: str) -> bool:
    if cell.strip().lower() in _BOOLS:
        return True
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _matches(shape: tuple[int, ...], expected: tuple[int, ...]) -> bool:
    return len(shape) == len(expected) and all(
        want in (-1, size) for size, want in zip(shape, expected, strict=True)
    )


def _unflattened(size: int, item: tuple[int, ...]) -> tuple[int, ...] | None:
    """The sizes of an item of `size` elements; at most one may be any."""
    fixed = prod(dim for dim in item if dim >= 0)
    match sum(dim < 0 for dim in item):
        case 0 if fixed == size:
            return item
        case 1 if fixed > 0 and size % fixed == 0:
            return tuple(size // fixed if dim < 0 else dim for dim in item)
        case _:
            return None


def _dtype(tensor: TensorMetadata) -> np.dtype[np.generic]:
    return _named_dtype(tensor.datatype)


def _named_dtype(datatype: str) -> np.dtype[np.generic]:
    if datatype == "BF16":
        dtype = bfloat16()
        if dtype is None:
            raise UsageFault("BF16 needs ml_dtypes: pip install ml-dtypes")
        return dtype
    if datatype not in WIRE_DTYPES:
        raise UsageFault(f"this command cannot make values of datatype {datatype!r}")
    return WIRE_DTYPES[datatype]
