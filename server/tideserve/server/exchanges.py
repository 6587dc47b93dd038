"""Exchanges on the wire, without protobuf's classes: what of a lease is not tensors, and what a
replica says of one.

For a batch of one small request those classes took 30 of the frontend's 110 us
(docs/decisions/0017). A message that is laid out in another way than replicas write it goes the
long way through protobuf, which also words every error; `tests/server/test_exchanges.py` compares
the two. Field numbers are those of proto/tideserve/v1/replica.proto.
"""

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

from tideserve.server.service.messages import parse
from tideserve.server.wire import Buffer, header
from tideserve.v1.replica_pb2 import (
    BatchFailure,
    ExchangeRequest,
    ExchangeResponse,
    Lease,
    Outcome,
    Tensor,
)
from tideserve.v1.varint import varint

# Up to this size a copy costs less than a view.
_COPY_BYTES: Final = 4096
# Inputs of a kind: names, datatypes and shapes of batches.
_CACHED_HEADS: Final = 1024
_DOUBLE: Final = struct.Struct("<d")
# Tags, a byte each: field number and wire type.
_NUMBER, _FIXED64, _BYTES = 0, 1, 2
_SEQUENCE_OUT: Final = bytes((ExchangeResponse.SEQUENCE_FIELD_NUMBER << 3 | _NUMBER,))
_DROPPED: Final = ExchangeResponse.DROPPED_LEASE_IDS_FIELD_NUMBER
_LEASE_ID: Final = bytes((Lease.LEASE_ID_FIELD_NUMBER << 3 | _NUMBER,))
_ROWS: Final = bytes((Lease.ROWS_FIELD_NUMBER << 3 | _NUMBER,))
_REQUESTED: Final = Lease.REQUESTED_OUTPUTS_FIELD_NUMBER
_REQUEST_ROWS: Final = Lease.REQUEST_ROWS_FIELD_NUMBER
_TIME_LEFT: Final = bytes((Lease.TIME_LEFT_S_FIELD_NUMBER << 3 | _FIXED64,))


class TensorIn:
    """An output of a batch, as its replica says it: `data`, or a place in the arena."""

    __slots__ = ("arena_bytes", "arena_offset", "data", "datatype", "name", "row_bytes", "shape")

    def __init__(
        self,
        name: str,
        datatype: str,
        shape: tuple[int, ...],
        data: Buffer,
        row_bytes: tuple[int, ...] = (),
        arena_offset: int = 0,
        arena_bytes: int = 0,
    ) -> None:
        self.name = name
        self.datatype = datatype
        self.shape = shape
        self.data = data
        self.row_bytes = row_bytes
        self.arena_offset = arena_offset
        self.arena_bytes = arena_bytes


class OutcomeIn:
    """What became of a lease. `failure`: kind and words; None with a result."""

    __slots__ = ("failure", "infer_s", "input_s", "lease_id", "output_s", "outputs")

    def __init__(
        self,
        lease_id: int,
        outputs: list[TensorIn],
        failure: tuple[int, str] | None,
        input_s: float,
        infer_s: float,
        output_s: float,
    ) -> None:
        self.lease_id = lease_id
        self.outputs = outputs
        self.failure = failure
        self.input_s = input_s
        self.infer_s = infer_s
        self.output_s = output_s

    @property
    def is_of_lost_device(self) -> bool:
        """Its replica ends after this."""
        return self.failure is not None and self.failure[0] == BatchFailure.DEVICE_LOST


class ExchangeIn:
    """An ExchangeRequest."""

    __slots__ = ("arena", "epoch", "outcomes", "replica_id", "sequence", "want")

    def __init__(
        self,
        replica_id: str,
        epoch: int,
        sequence: int,
        outcomes: list[OutcomeIn],
        *,
        want: bool,
        arena: bool,
    ) -> None:
        self.replica_id = replica_id
        self.epoch = epoch
        self.sequence = sequence
        self.outcomes = outcomes
        self.want = want
        self.arena = arena


# --- leases out -----------------------------------------------------------------------------------


class LeaseHead:
    """A lease without its inputs. `requested` outputs, none: all of them."""

    __slots__ = ("lease_id", "request_rows", "requested", "rows", "time_left_s")

    def __init__(
        self,
        lease_id: int,
        rows: int,
        requested: Sequence[str] = (),
        request_rows: Sequence[int] = (),
        time_left_s: float = 0.0,
    ) -> None:
        self.lease_id = lease_id
        self.rows = rows
        self.requested = requested
        self.request_rows = request_rows
        self.time_left_s = time_left_s

    def encode(self) -> bytes:
        """As the first fields of a Lease."""
        pieces = [_LEASE_ID, varint(self.lease_id), _ROWS, varint(self.rows)]
        for name in self.requested:
            text = name.encode()
            pieces += (header(_REQUESTED, len(text)), text)
        counts = b"".join([varint(rows) for rows in self.request_rows])
        if counts:
            pieces += (header(_REQUEST_ROWS, len(counts)), counts)
        pieces += (_TIME_LEFT, _DOUBLE.pack(self.time_left_s))
        return b"".join(pieces)


@lru_cache(_CACHED_HEADS)
def tensor_head(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    """A Tensor without its bytes."""
    return Tensor(name=name, datatype=datatype, shape=shape).SerializeToString()


def answer_head(sequence: int, dropped_lease_ids: Sequence[int]) -> bytes:
    """An ExchangeResponse without its lease."""
    head = _SEQUENCE_OUT + varint(sequence)
    if not dropped_lease_ids:
        return head
    dropped = b"".join([varint(lease_id) for lease_id in dropped_lease_ids])
    return head + header(_DROPPED, len(dropped)) + dropped


# --- outcomes in ----------------------------------------------------------------------------------


def read_exchange(payload: bytes) -> ExchangeIn:
    """Raises `InvalidRequestError` for bytes that are no ExchangeRequest."""
    try:
        exchange = _read_exchange(payload)
    except (IndexError, UnicodeDecodeError):
        exchange = None
    return exchange or _exchange_of(parse(ExchangeRequest, payload))


def tensor_of(tensor: Tensor) -> TensorIn:
    """From protobuf's own class."""
    return TensorIn(
        tensor.name,
        tensor.datatype,
        tuple(tensor.shape),
        tensor.data,
        tuple(tensor.row_bytes),
        tensor.arena_offset,
        tensor.arena_bytes,
    )


def _exchange_of(message: ExchangeRequest) -> ExchangeIn:
    return ExchangeIn(
        message.replica_id,
        message.epoch,
        message.sequence,
        [_outcome_of(outcome) for outcome in message.outcomes],
        want=message.want,
        arena=message.arena,
    )


def _outcome_of(outcome: Outcome) -> OutcomeIn:
    failure = None
    if outcome.WhichOneof("outcome") != "result":
        failure = (int(outcome.failure.kind), outcome.failure.message)
    return OutcomeIn(
        outcome.lease_id,
        [tensor_of(tensor) for tensor in outcome.result.outputs],
        failure,
        outcome.input_s,
        outcome.infer_s,
        outcome.output_s,
    )


# None: laid out in another way. Tags are written as numbers: of a field `n` the tag is n << 3 | type.


def _read_exchange(payload: bytes) -> ExchangeIn | None:
    replica_id = ""
    epoch = sequence = 0
    want = arena = False
    outcomes: list[OutcomeIn] = []
    at, end = 0, len(payload)
    while at < end:
        tag = payload[at]
        value, at = _read_number(payload, at + 1)  # or how many bytes follow
        if tag == 0x18:
            sequence = value
        elif tag == 0x10:
            epoch = value
        elif tag == 0x28:
            want = value != 0
        elif tag == 0x30:
            arena = value != 0
        else:
            stop = at + value
            if stop > end:
                return None
            if tag == 0x0A:
                replica_id = payload[at:stop].decode()
            elif tag == 0x22:
                outcome = _read_outcome(payload, at, stop)
                if outcome is None:
                    return None
                outcomes.append(outcome)
            else:
                return None
            at = stop
    return ExchangeIn(replica_id, epoch, sequence, outcomes, want=want, arena=arena)


def _read_outcome(payload: bytes, at: int, end: int) -> OutcomeIn | None:
    lease_id = 0
    outputs: list[TensorIn] | None = None
    input_s = infer_s = output_s = 0.0
    while at < end:
        tag = payload[at]
        at += 1
        if tag == 0x21 or tag == 0x29 or tag == 0x31:
            if at + 8 > end:
                return None
            (seconds,) = _DOUBLE.unpack_from(payload, at)
            at += 8
            if tag == 0x21:
                input_s = seconds
            elif tag == 0x29:
                infer_s = seconds
            else:
                output_s = seconds
            continue
        value, at = _read_number(payload, at)
        if tag == 0x08:
            lease_id = value
        elif tag == 0x12 and outputs is None and at + value <= end:
            outputs = _read_result(payload, at, at + value)
            if outputs is None:
                return None
            at += value
        else:
            return None
    if outputs is None or at > end:
        return None
    return OutcomeIn(lease_id, outputs, None, input_s, infer_s, output_s)


def _read_result(payload: bytes, at: int, end: int) -> list[TensorIn] | None:
    outputs: list[TensorIn] = []
    while at < end:
        tag = payload[at]
        size, at = _read_number(payload, at + 1)
        stop = at + size
        if tag != 0x0A or stop > end:
            return None
        tensor = _read_tensor(payload, at, stop)
        if tensor is None:
            return None
        outputs.append(tensor)
        at = stop
    return outputs


def _read_tensor(payload: bytes, at: int, end: int) -> TensorIn | None:
    name = datatype = ""
    shape: tuple[int, ...] = ()
    row_bytes: tuple[int, ...] = ()
    data: Buffer = b""
    arena_offset = arena_bytes = 0
    while at < end:
        tag = payload[at]
        value, at = _read_number(payload, at + 1)
        if tag == 0x30:
            arena_offset = value
        elif tag == 0x38:
            arena_bytes = value
        else:
            stop = at + value
            if stop > end:
                return None
            if tag == 0x22:
                data = payload[at:stop] if value <= _COPY_BYTES else memoryview(payload)[at:stop]
            elif tag == 0x0A:
                name = payload[at:stop].decode()
            elif tag == 0x12:
                datatype = payload[at:stop].decode()
            elif tag == 0x1A and not shape:
                shape = _read_numbers(payload, at, stop)
            elif tag == 0x2A and not row_bytes:
                row_bytes = _read_numbers(payload, at, stop)
            else:
                return None
            at = stop
    return (
        TensorIn(name, datatype, shape, data, row_bytes, arena_offset, arena_bytes)
        if at == end
        else None
    )


def _read_numbers(payload: bytes, at: int, end: int) -> tuple[int, ...]:
    numbers: list[int] = []
    while at < end:
        number, at = _read_number(payload, at)
        numbers.append(number)
    if at > end:
        raise IndexError
    return tuple(numbers)


def _read_number(payload: bytes, at: int) -> tuple[int, int]:
    """A varint and where it ends. IndexError: it is cut off, or 2**63 or more, which is how what is
    below 0 is written."""
    byte = payload[at]
    at += 1
    if byte < 0x80:
        return byte, at
    number = byte & 0x7F
    for shift in range(7, 63, 7):
        byte = payload[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
    raise IndexError
