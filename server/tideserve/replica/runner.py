"""From a lease to its outcome: bytes to arrays, the model, arrays to bytes."""

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Any, Final, Protocol

import numpy as np

from tideserve.replica import datatypes, tensors
from tideserve.replica.backends import Array, Arrays, Backend, PlacingBackend
from tideserve.replica.errors import (
    BadOutputError,
    BatchError,
    DeviceLostError,
    LoadError,
    ModelMemoryError,
    ModelRaisedError,
    OutputTooLargeError,
    WireError,
)
from tideserve.replica.failures import classify
from tideserve.replica.model_io import ModelIo, TensorIo
from tideserve.replica.rooms import OutputRoom, Rooms
from tideserve.replica.wire import (
    Failure,
    FailureKind,
    Lease,
    TensorOut,
    Times,
    write_failure,
    write_result,
)

_LOG: Final = logging.getLogger(__name__)
# Room in a message for what is around its outcomes: the replica's id and numbers.
FRAME_BYTES: Final = 4096


# Kinds of batches that the model was asked in vain to place.
_MAX_DECLINED: Final = 64


class OutputMemory(OutputRoom, Protocol):
    """`Outbox`, to a runner."""

    def put(self, tensors: Sequence[bytes | Array]) -> list[int] | None: ...


class Runner:
    """Runs leases on one model. After a lost device every lease fails at once."""

    def __init__(self, backend: Backend, io: ModelIo) -> None:
        self._backend = backend
        self._io = io
        self._inputs = {tensor.name: tensor for tensor in io.inputs}
        self._outputs = {tensor.name: tensor for tensor in io.outputs}
        self._output_types = {
            tensor.name: datatypes.numpy_type(tensor.datatype) for tensor in io.outputs
        }
        self._all = tuple(self._outputs)
        # None where outputs come in memory of the model's own.
        self._placing = backend if isinstance(backend, PlacingBackend) else None
        # By given inputs and wanted outputs: one of them was not as the configuration says.
        self._declined: set[tuple[tuple[str, ...], tuple[str, ...]]] = set()
        self._rooms = Rooms(io)
        self._lost: DeviceLostError | None = None

    @property
    def device_lost(self) -> bool:
        """The process should end."""
        return self._lost is not None

    def run(
        self, lease: Lease, max_message_bytes: int, outbox: OutputMemory | None = None
    ) -> bytes:
        """The lease's outcome as it travels, its outputs in `outbox` where that takes them.
        Never raises for what the model does."""
        times = [perf_counter()]
        try:
            outputs = self._attempt(lease, times, outbox)
            outcome = write_result(lease.lease_id, outputs, _times(times))
        except BatchError as error:
            return self._failure(lease, error, times)
        except Exception as error:  # noqa: BLE001 - whatever it is, it fails this batch only
            _LOG.error("a batch failed outside the model", exc_info=error)
            return self._failure(lease, classify(error), times)
        most_bytes = max_message_bytes - FRAME_BYTES
        if len(outcome) > most_bytes:
            # Fewer rows may fit: as out of memory, the frontend tries again with half of them.
            too_large = OutputTooLargeError(
                f"expected at most {most_bytes} bytes of outputs (the frontend's "
                f"--max-message-bytes, less the frame), got {len(outcome)} for {lease.rows} rows"
            )
            return self._failure(lease, too_large, times)
        return outcome

    def infer(self, arrays: Arrays, rows: int, requested: tuple[str, ...] = ()) -> Arrays:
        """Runs the model on arrays in callers' shapes and checks what it gives.

        Raises `BatchError`s.
        """
        return self._checked(self._call(arrays, requested or self._all), rows, requested)

    def close(self) -> None:
        """Frees the model; what it raises goes to the log."""
        try:
            self._backend.close()
        except (Exception, SystemExit):  # noqa: BLE001 - the model's own, logged
            _LOG.exception("unloading the model failed")

    def _attempt(
        self, lease: Lease, times: list[float], outbox: OutputMemory | None
    ) -> list[TensorOut]:
        if self._lost is not None:
            raise self._lost
        try:
            arrays = {
                tensor.name: tensors.to_array(tensor.datatype, tensor.shape, tensor.data)
                for tensor in lease.inputs
            }
        except (WireError, LoadError) as error:
            raise ModelRaisedError(f"a lease's tensor is broken: {error}") from error
        times.append(perf_counter())
        names = lease.requested_outputs or self._all
        kind = (tuple(arrays), names)
        room = None
        if self._placing is not None and kind not in self._declined:
            room = self._rooms.find(names, lease.rows, outbox)
        if room is not None and self._call_into(arrays, room.arrays):
            times.append(perf_counter())
            outputs = room.tensors
        else:
            results = self._call(arrays, names)
            times.append(perf_counter())
            if room is not None:
                self._on_declined(kind)  # it can, but not there
            checked = self._checked(results, lease.rows, lease.requested_outputs)
            outputs = self._put(
                [self._encode(name, array) for name, array in checked.items()], outbox
            )
        times.append(perf_counter())
        return outputs

    def _on_declined(self, kind: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
        self._declined.add(kind)
        if len(self._declined) > _MAX_DECLINED:
            self._placing = None

    def _call(self, arrays: Arrays, requested: tuple[str, ...]) -> Arrays:
        unknown = [name for name in requested if name not in self._outputs]
        if unknown:
            raise ModelRaisedError(
                f"expected requested outputs of {', '.join(self._all)}, got {', '.join(unknown)}"
            )
        try:
            return self._backend.infer(
                {name: self._to_model(name, array) for name, array in arrays.items()}, requested
            )
        except (Exception, SystemExit) as error:
            failure = classify(error)
            _LOG.exception("the model failed a batch")
            if isinstance(failure, DeviceLostError):
                self._lost = failure
            raise failure from error

    def _call_into(self, arrays: Arrays, outputs: Arrays) -> bool:
        """False: the model is to be called the ordinary way, which has the words for whatever is
        wrong."""
        assert self._placing is not None
        inputs = {name: self._to_model(name, array) for name, array in arrays.items()}
        return self._placing.infer_into(inputs, outputs)

    def _to_model(self, name: str, array: Array) -> Array:
        tensor = self._inputs.get(name)
        if tensor is None:
            raise ModelRaisedError(
                f"expected inputs of {', '.join(self._inputs)}, the lease has {name!r}"
            )
        if not tensor.reshaped:
            return array
        lead, dims = self._split(array.shape)
        return array.reshape(lead + tensor.to_model(dims))

    def _split(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The batch dimension, if there is one, and the others."""
        return (shape[:1], shape[1:]) if self._io.batched else ((), shape)

    def _checked(self, results: Arrays, rows: int, requested: tuple[str, ...]) -> Arrays:
        """The requested outputs in callers' shapes. Raises `BadOutputError`."""
        for name in results:
            if name not in self._outputs:
                raise BadOutputError(
                    f"expected outputs of {', '.join(self._all)}, the model returned {name!r}"
                )
        checked: Arrays = {}
        for name in requested or self._all:
            array = results.get(name)
            if array is None:
                raise BadOutputError(
                    f"expected output {name!r}, the model returned "
                    f"{', '.join(map(str, results)) or 'none'}"
                )
            checked[name] = self._check_one(self._outputs[name], array, rows)
        return checked

    def _check_one(self, tensor: TensorIo, array: Any, rows: int) -> Array:
        if not isinstance(array, np.ndarray):
            raise BadOutputError(
                f"{_where(tensor)}: expected a numpy array, got {type(array).__name__}"
            )
        expected = self._output_types[tensor.name]
        if array.dtype != expected:
            got = datatypes.wire_name(array.dtype)
            if got != tensor.datatype:
                raise BadOutputError(f"{_where(tensor)}: expected {tensor.datatype}, got {got}")
        shape: tuple[int, ...] = array.shape
        lead, dims = self._split(shape)
        if self._io.batched and lead != (rows,):
            raise BadOutputError(
                f"{_where(tensor)}: expected {rows} rows (the batch's), got shape {list(shape)}"
            )
        model_dims = tensor.model_dims
        if dims != model_dims and not _fits(dims, model_dims):
            raise BadOutputError(
                f"{_where(tensor)}: expected shape {[*lead, *model_dims]}, got {list(shape)}"
            )
        return array.reshape(lead + tensor.to_caller(dims)) if tensor.reshaped else array

    def _encode(self, name: str, array: Array) -> TensorOut:
        datatype = self._outputs[name].datatype
        if datatype == "BYTES" and self._io.batched:
            data, row_bytes = tensors.to_row_data(name, array)
            return TensorOut(name, datatype, array.shape, data, row_bytes)
        return TensorOut(name, datatype, array.shape, tensors.to_data(name, array))

    def _put(self, outputs: list[TensorOut], outbox: OutputMemory | None) -> list[TensorOut]:
        """In the arena, where that takes them."""
        offsets = None if outbox is None else outbox.put([output.data for output in outputs])
        if offsets is None:
            return outputs
        placed = zip(outputs, offsets, strict=True)
        return [output._replace(arena_offset=offset) for output, offset in placed]

    def _failure(self, lease: Lease, error: BatchError, times: list[float]) -> bytes:
        match error:
            case BadOutputError():
                kind = FailureKind.BAD_OUTPUT
                _LOG.error("%s", error)
            case ModelMemoryError():
                kind = FailureKind.OUT_OF_MEMORY
            case OutputTooLargeError():
                kind = FailureKind.OUTPUT_TOO_LARGE
            case DeviceLostError():
                kind = FailureKind.DEVICE_LOST
            case _:
                kind = FailureKind.MODEL_ERROR
        return write_failure(lease.lease_id, Failure(kind, str(error)), _times(times))


def _where(tensor: TensorIo) -> str:
    return f"output {tensor.name!r}"


def _fits(dims: tuple[int, ...], model_dims: tuple[int, ...]) -> bool:
    """-1 is any size."""
    if len(dims) != len(model_dims):
        return False
    return all(dim in (-1, size) for size, dim in zip(dims, model_dims, strict=True))


def _times(marks: list[float]) -> Times:
    """From the marks that were reached; the last step ends now if it did not end."""
    if len(marks) == 4:
        return Times(marks[1] - marks[0], marks[2] - marks[1], marks[3] - marks[2])
    now = perf_counter()
    start, after_input, after_infer, end = (marks + [now] * 3)[:4]
    return Times(after_input - start, after_infer - after_input, end - after_infer)
