"""The Exchange messages, read and written without copying tensors more than once.

protobuf's own classes copy a tensor's bytes twice on the way in and twice on the way out;
what travels here is mostly tensors. Encoding: https://protobuf.dev/programming-guides/encoding.
Field numbers are those of proto/tideserve/v1/replica.proto; tests compare with the
generated classes.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple, Protocol

import numpy.typing as npt

from tideserve.replica.errors import WireError
from tideserve.v1.varint import varint

_TIMES: Final = struct.Struct("<BdBdBd")
# Inputs and outputs of a kind: names, datatypes and shapes of batches.
_CACHED_HEADS: Final = 1024
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_WIDEST_VARINT: Final = 10


class TensorIn:
    """`data` is a view of the message, or of the arena."""

    __slots__ = ("data", "datatype", "name", "shape")

    def __init__(self, name: str, datatype: str, shape: tuple[int, ...], data: memoryview) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.data = data


class Lease(NamedTuple):
    """A batch to compute. `requested_outputs` empty: all."""

    lease_id: int
    rows: int
    inputs: tuple[TensorIn, ...]
    requested_outputs: tuple[str, ...] = ()


class Answer(NamedTuple):
    """An ExchangeResponse."""

    sequence: int
    lease: Lease | None = None
    drain: bool = False
    dropped_lease_ids: tuple[int, ...] = ()


class TensorOut(NamedTuple):
    """`data` is contiguous. `row_bytes` only for BYTES of batched models. `arena_offset`: where
    the data was put; None: it travels in the message."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | npt.NDArray[Any]
    row_bytes: tuple[int, ...] = ()
    arena_offset: int | None = None


class InputMemory(Protocol):
    """`Arena`, to a lease that came."""

    def tensor(self, offset: int, size_bytes: int) -> memoryview: ...


class FailureKind(IntEnum):
    """BatchFailure.Kind."""

    MODEL_ERROR = 1
    BAD_OUTPUT = 2
    OUT_OF_MEMORY = 3
    DEVICE_LOST = 4
    OUTPUT_TOO_LARGE = 5


class Failure(NamedTuple):
    """A BatchFailure."""

    kind: FailureKind
    message: str


class Times(NamedTuple):
    """Seconds: bytes to arrays, the model's own call, arrays to bytes."""

    input_s: float
    infer_s: float
    output_s: float


# --- reading ------------------------------------------------------------------------------


def read_answer(message: bytes, arena: InputMemory | None = None) -> Answer:
    """Parses an ExchangeResponse, whose tensors may lie in `arena`. Raises `WireError`."""
    sequence, lease, drain = 0, None, False
    dropped: list[int] = []
    at, end = 0, len(message)
    try:
        while at < end:
            field, value, stop, at = _field(message, at, end)
            if field == 1:
                sequence = value
            elif field == 2:
                lease = _read_lease(message, value, stop, arena)
            elif field == 3:
                drain = value != 0
            elif field == 4:
                dropped += _repeated(message, value, stop)
    except (IndexError, UnicodeDecodeError) as error:
        raise WireError(f"expected an ExchangeResponse, got {len(message)} broken bytes") from error
    return Answer(sequence, lease, drain, tuple(dropped))


def _read_lease(message: bytes, at: int, end: int, arena: InputMemory | None) -> Lease:
    lease_id = rows = 0
    inputs: list[TensorIn] = []
    requested: list[str] = []
    while at < end:
        field, value, stop, at = _field(message, at, end)
        if field == 1:
            lease_id = value
        elif field == 2:
            rows = value
        elif field == 3:
            inputs.append(_read_tensor(message, value, stop, arena))
        elif field == 4:
            requested.append(_read_text(message, value, stop))
    return Lease(lease_id, rows, tuple(inputs), tuple(requested))


def _read_tensor(message: bytes, at: int, end: int, arena: InputMemory | None) -> TensorIn:
    name = datatype = ""
    shape: list[int] = []
    begin = stop = 0  # of its data
    arena_offset = arena_bytes = 0
    while at < end:
        field, value, last, at = _field(message, at, end)
        if field == 1:
            name = _read_text(message, value, last)
        elif field == 2:
            datatype = _read_text(message, value, last)
        elif field == 3:
            shape += _repeated(message, value, last)
        elif field == 4:
            if last < 0:
                raise WireError("expected a tensor's bytes, got a number")
            begin, stop = value, last
        elif field == 6:
            arena_offset = value
        elif field == 7:
            arena_bytes = value
    if not arena_bytes:
        data = memoryview(message)[begin:stop]
    elif arena is None:
        raise WireError(f"tensor {name!r}: expected its data, got a place in an arena")
    else:
        data = arena.tensor(arena_offset, arena_bytes)
    return TensorIn(name, datatype, tuple(shape), data)


def _field(message: bytes, at: int, end: int) -> tuple[int, int, int, int]:
    """(field number, value, -1, end) of a number, (field number, start, stop, end) of bytes. No
    generator: each of its steps costs more than all of this."""
    tag = message[at]
    at += 1
    if tag >= 0x80:
        tag, at = _read_varint(message, at - 1)
    kind = tag & 7
    if kind == _VARINT:
        value, at = _read_varint(message, at)
        return tag >> 3, value, -1, at
    if kind == _BYTES:
        length, at = _read_varint(message, at)
    elif kind == _FIXED64:
        length = 8
    elif kind == _FIXED32:
        length = 4
    else:
        raise WireError(f"expected a wire type of 0, 1, 2 or 5, got {kind}")
    stop = at + length
    if stop > end:
        raise WireError(f"expected {length} bytes more, got {end - at}")
    return tag >> 3, at, stop, stop


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    byte = message[at]
    if byte < 0x80:
        return byte, at + 1
    value = byte & 0x7F
    for more in range(1, _WIDEST_VARINT):
        byte = message[at + more]
        value |= (byte & 0x7F) << 7 * more
        if byte < 0x80:
            return value, at + more + 1
    raise WireError(f"expected a varint of at most {_WIDEST_VARINT} bytes")


def _repeated(message: bytes, value: int, stop: int) -> list[int]:
    """A repeated integer field: one number, or many packed."""
    if stop < 0:
        return [value]
    values: list[int] = []
    while value < stop:
        number, value = _read_varint(message, value)
        values.append(number)
    return values


def _read_text(message: bytes, start: int, stop: int) -> str:
    if stop < 0:
        raise WireError("expected text, got a number")
    return message[start:stop].decode()


# --- writing ------------------------------------------------------------------------------


class RequestWriter:
    """Writes the ExchangeRequests of one life."""

    def __init__(self, replica_id: str, epoch: int, *, arena: bool = False) -> None:
        mapped = b"\x30\x01" if arena else b""
        self._head = _text(1, replica_id) + b"\x10" + varint(epoch) + mapped + b"\x18"

    def write(self, sequence: int, outcomes: Sequence[bytes], *, want: bool) -> bytes:
        """`outcomes` as `write_result` and `write_failure` made them."""
        return b"".join((self._head, varint(sequence), *outcomes, b"\x28\x01" if want else b""))


def write_result(lease_id: int, outputs: Sequence[TensorOut], times: Times) -> bytes:
    """An Outcome with a BatchResult, as a field of ExchangeRequest."""
    parts: list[bytes | npt.NDArray[Any]] = []
    result_bytes = 0
    for output in outputs:
        data = output.data
        data_bytes = len(data) if isinstance(data, bytes) else data.nbytes
        head = _head(output.name, output.datatype, output.shape)
        if output.row_bytes:
            head += _packed(5, output.row_bytes)
        if output.arena_offset is None:
            head += b"\x22" + varint(data_bytes)
            framed = b"\x0a" + varint(len(head) + data_bytes) + head
            parts += (framed, data)
            result_bytes += data_bytes
        else:
            head += b"\x30" + varint(output.arena_offset) + b"\x38" + varint(data_bytes)
            framed = b"\x0a" + varint(len(head)) + head
            parts.append(framed)
        result_bytes += len(framed)
    start = b"\x08" + varint(lease_id) + b"\x12" + varint(result_bytes)
    return _outcome(start, parts, result_bytes, times)


@lru_cache(_CACHED_HEADS)
def _head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """What outputs of a kind begin with."""
    return b"".join((_text(1, name), _text(2, datatype), _packed(3, shape)))


def write_failure(lease_id: int, failure: Failure, times: Times) -> bytes:
    """An Outcome with a BatchFailure, as a field of ExchangeRequest."""
    body = b"\x08" + varint(failure.kind) + _text(2, failure.message)
    start = b"\x08" + varint(lease_id) + b"\x1a" + varint(len(body)) + body
    return _outcome(start, (), 0, times)


def _outcome(
    start: bytes, parts: Sequence[bytes | npt.NDArray[Any]], parts_bytes: int, times: Times
) -> bytes:
    end = _TIMES.pack(0x21, times.input_s, 0x29, times.infer_s, 0x31, times.output_s)
    buffers: list[Any] = [b"\x22", varint(len(start) + parts_bytes + len(end)), start, *parts, end]
    return b"".join(buffers)


def _text(field: int, text: str) -> bytes:
    encoded = text.encode("utf-8", "replace")
    return bytes((field << 3 | _BYTES,)) + varint(len(encoded)) + encoded if encoded else b""


def _packed(field: int, numbers: Sequence[int]) -> bytes:
    if not numbers:
        return b""
    body = b"".join(map(varint, numbers))
    return bytes((field << 3 | _BYTES,)) + varint(len(body)) + body
