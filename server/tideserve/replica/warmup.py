"""The first batches of a model, before anyone waits for one."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Final

import numpy as np

from tideserve.replica import datatypes, tensors
from tideserve.replica.backends import Array, Arrays
from tideserve.replica.errors import BatchError, DeviceLostError, LoadError, WireError
from tideserve.replica.model_io import ModelIo
from tideserve.replica.runner import Runner
from tideserve.v1.model_config_pb2 import ModelConfig, ModelWarmup

_LOG: Final = logging.getLogger(__name__)
# Synthetic batches take no longer than this in all, so that large models start soon.
SYNTHETIC_BUDGET_S: Final = 1.0
_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Point:
    """A batch of `rows` took `latency_s`."""

    rows: int
    latency_s: float


def warm_up(
    runner: Runner, config: ModelConfig, io: ModelIo, model_path: Path, *, synthetic: bool
) -> tuple[Point, ...]:
    """Runs config.pbtxt's `model_warmup`; without one, zero-filled batches of growing size
    where shapes are known and `synthetic` allows.

    Raises `LoadError` when a configured batch fails; a synthetic one that fails is logged.
    """
    if config.model_warmup:
        points: dict[int, float] = {}
        for setting in config.model_warmup:
            point = _configured(runner, setting, io, model_path)
            points[point.rows] = point.latency_s
        return tuple(Point(rows, points[rows]) for rows in sorted(points))
    if not synthetic or any(-1 in tensor.dims for tensor in io.inputs):
        return ()
    return tuple(_synthetic(runner, io))


def _synthetic(runner: Runner, io: ModelIo) -> Iterator[Point]:
    start_s = perf_counter()
    for rows in _row_counts(io.max_batch_size):
        arrays = {
            tensor.name: _zeros(
                tensor.datatype, (rows, *tensor.dims) if io.batched else tensor.dims
            )
            for tensor in io.inputs
        }
        try:
            # The first batch of a size allocates and plans; the second is what callers see.
            runner.infer(arrays, rows)
            before_s = perf_counter()
            runner.infer(arrays, rows)
        except DeviceLostError as error:
            raise LoadError(f"the device failed while warming up: {error}") from error
        except BatchError as error:
            _LOG.warning("warm-up with %d rows of zeros failed, going on without: %s", rows, error)
            return
        latency_s = perf_counter() - before_s
        yield Point(rows, latency_s)
        # The next size takes up to twice as long, twice.
        if perf_counter() - start_s + 4 * latency_s > SYNTHETIC_BUDGET_S:
            return


def _row_counts(max_batch_size: int) -> list[int]:
    """1, the powers of two, and max_batch_size itself."""
    counts = [1]
    while counts[-1] * 2 < max_batch_size:
        counts.append(counts[-1] * 2)
    if max_batch_size > 1:
        counts.append(max_batch_size)
    return counts


def _configured(runner: Runner, setting: ModelWarmup, io: ModelIo, model_path: Path) -> Point:
    where = f"model_warmup {setting.name!r}"
    rows = max(1, setting.batch_size)
    if rows > max(1, io.max_batch_size):
        raise LoadError(f"{where}: expected a batch_size of at most {max(1, io.max_batch_size)}")
    arrays: Arrays = {}
    for name, given in setting.inputs.items():
        datatype = datatypes.from_config(given.data_type)
        if not datatype:
            raise LoadError(f"{where}: input {name!r} has no data_type")
        row = _row(f"{where}: input {name!r}", given, datatype, model_path)
        arrays[name] = np.stack([row] * rows) if io.batched else row
    latency_s = 0.0
    for _ in range(max(1, setting.count)):
        before_s = perf_counter()
        try:
            runner.infer(arrays, rows)
        except BatchError as error:
            raise LoadError(f"{where} failed: {error}") from error
        latency_s = perf_counter() - before_s
    return Point(rows, latency_s)


def _row(where: str, given: ModelWarmup.Input, datatype: str, model_path: Path) -> Array:
    """One row of a configured batch, whose other rows repeat it."""
    dims = tuple(given.dims)
    if any(dim < 0 for dim in dims):
        raise LoadError(f"{where}: expected dims of 0 or more, got {list(dims)}")
    if given.input_data_file:
        path = model_path / "warmup" / given.input_data_file
        try:
            return tensors.to_array(datatype, dims, memoryview(path.read_bytes()))
        except OSError as error:
            raise LoadError(f"{where}: {path} cannot be read: {error.strerror}") from error
        except WireError as error:
            raise LoadError(f"{where}: {path}: {error}") from error
    if given.random_data and datatype != "BYTES":
        return _random(datatype, dims)
    return _zeros(datatype, dims)


def _random(datatype: str, dims: tuple[int, ...]) -> Array:
    array_type = datatypes.numpy_type(datatype)
    generator = np.random.default_rng(_SEED)
    if datatype == "BOOL":
        return generator.integers(0, 2, dims).astype(array_type)
    if array_type.kind in "iu":
        limits = np.iinfo(array_type)
        return generator.integers(limits.min, limits.max, dims, array_type, endpoint=True)
    return generator.random(dims).astype(array_type)


def _zeros(datatype: str, shape: tuple[int, ...]) -> Array:
    if datatype == "BYTES":
        return np.full(shape, b"", dtype=object)
    return np.zeros(shape, datatypes.numpy_type(datatype))
