"""Where a batch's outputs are to lie before the model has made them.

Outputs whose sizes the configuration says can be written by the model's runtime where they are read:
large ones in the arena, small ones in arrays that are used again for the next batch of as many rows.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from tideserve.replica import datatypes
from tideserve.replica.arena import Reserved
from tideserve.replica.backends import Arrays
from tideserve.replica.model_io import ModelIo, TensorIo
from tideserve.replica.wire import TensorOut
from tideserve.v1.arena import MIN_BYTES

# Kinds of batches remembered, by rows and outputs; each keeps less than `MIN_BYTES` of arrays.
_MAX_KINDS: Final = 256


class OutputRoom(Protocol):
    """`Outbox`, to a batch that has not been computed yet."""

    def reserve(self, sizes: Sequence[int]) -> list[Reserved] | None: ...


class Room(NamedTuple):
    """Of one batch: `arrays` for the model to write, and what travels once it has."""

    arrays: Arrays
    tensors: list[TensorOut]


class _Output(NamedTuple):
    """What is known of an output in batches of a kind."""

    name: str
    datatype: str
    array_type: Any
    model_shape: tuple[int, ...]
    shape: tuple[int, ...]
    size_bytes: int


class _Kind(NamedTuple):
    """Batches of as many rows and the same outputs. `own`: a room for those that travel in the
    message."""

    outputs: tuple[_Output, ...]
    sizes: tuple[int, ...]
    own: Room | None


class Rooms:
    """Owns the small outputs' arrays: what they hold is good until the next batch."""

    def __init__(self, io: ModelIo) -> None:
        self._batched = io.batched
        self._outputs = {tensor.name: tensor for tensor in io.outputs}
        self._kinds: dict[tuple[tuple[str, ...], int], _Kind | None] = {}

    def find(self, names: tuple[str, ...], rows: int, outbox: OutputRoom | None) -> Room | None:
        """None: sizes are not known before, or they are large and there is no such room."""
        key = (names, rows)
        if key not in self._kinds:
            if len(self._kinds) >= _MAX_KINDS:
                self._kinds.clear()
            self._kinds[key] = self._kind(names, rows)
        kind = self._kinds[key]
        if kind is None:
            return None
        if kind.own is not None:
            return kind.own
        reserved = None if outbox is None else outbox.reserve(kind.sizes)
        return None if reserved is None else _room(kind.outputs, reserved)

    def _kind(self, names: tuple[str, ...], rows: int) -> _Kind | None:
        outputs: list[_Output] = []
        for name in names:
            tensor = self._outputs.get(name)
            if tensor is None or tensor.datatype == "BYTES" or -1 in tensor.model_dims:
                return None
            outputs.append(self._output(tensor, rows))
        sizes = tuple([output.size_bytes for output in outputs])
        own = None
        if sum(sizes) < MIN_BYTES:
            own = _room(outputs, [(None, memoryview(bytearray(size))) for size in sizes])
        return _Kind(tuple(outputs), sizes, own)

    def _output(self, tensor: TensorIo, rows: int) -> _Output:
        lead = (rows,) if self._batched else ()
        array_type = datatypes.numpy_type(tensor.datatype)
        model_shape = lead + tensor.model_dims
        return _Output(
            tensor.name,
            tensor.datatype,
            array_type,
            model_shape,
            lead + tensor.to_caller(tensor.model_dims),
            array_type.itemsize * math.prod(model_shape),
        )


def _room(outputs: Sequence[_Output], reserved: Sequence[Reserved]) -> Room:
    arrays: Arrays = {}
    tensors: list[TensorOut] = []
    for output, (offset, memory) in zip(outputs, reserved, strict=True):
        array = np.frombuffer(memory, output.array_type).reshape(output.model_shape)
        arrays[output.name] = array
        tensors.append(TensorOut(output.name, output.datatype, output.shape, array, (), offset))
    return Room(arrays, tensors)
