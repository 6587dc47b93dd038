"""Callers' tensors, joined into the lease of their batch.

Rows are the first dimension and tensors row-major, so a batch is its callers' bytes in order.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from tideserve.server.errors import InvalidRequestError
from tideserve.server.exchanges import LeaseHead, answer_head, tensor_head
from tideserve.server.infer_inputs import InferInputs
from tideserve.server.model_spec import ModelSpec
from tideserve.server.parts import Parts
from tideserve.server.shared_regions import RegionSlice
from tideserve.server.wire import Absent, Buffer, header
from tideserve.v1.arena import MIN_BYTES
from tideserve.v1.replica_pb2 import ExchangeResponse, Lease, Tensor
from tideserve.v1.varint import varint

_DATA: Final = Tensor.DATA_FIELD_NUMBER
_ARENA_OFFSET: Final = varint(Tensor.ARENA_OFFSET_FIELD_NUMBER << 3)
_ARENA_BYTES: Final = varint(Tensor.ARENA_BYTES_FIELD_NUMBER << 3)
_INPUTS: Final = Lease.INPUTS_FIELD_NUMBER
_LEASE: Final = ExchangeResponse.LEASE_FIELD_NUMBER


class LeaseMemory(Protocol):
    """`Arena`, to a batch on its way out."""

    def place(
        self, lease_id: int, tensors: Sequence[Sequence[Buffer | Absent]]
    ) -> list[int] | None: ...


class EncodedLease(NamedTuple):
    """The ExchangeResponse that carries a batch. `unreadable`: by its place in the batch, why a
    request cannot be read from its region any more; zeros stand for it."""

    message: bytes
    unreadable: dict[int, str]


class _InRegion(Absent):
    """A request's tensor that lies in a region until its batch leaves."""

    def __init__(self, found: RegionSlice, at: int, unreadable: dict[int, str]) -> None:
        self._found = found
        self._at = at
        self._unreadable = unreadable

    def __len__(self) -> int:
        return len(self._found)

    def write_to(self, target: memoryview) -> None:
        try:
            self._found.read_into(target)
        except InvalidRequestError as error:
            self._unreadable[self._at] = str(error)
            target[:] = bytes(len(target))

    def to_bytes(self) -> bytes:
        try:
            return self._found.read()
        except InvalidRequestError as error:
            self._unreadable[self._at] = str(error)
            return bytes(len(self._found))


def encode_lease(
    sequence: int,
    dropped_lease_ids: Sequence[int],
    lease: LeaseHead,
    requests: Sequence[InferInputs],
    spec: ModelSpec,
    arena: LeaseMemory | None = None,
) -> EncodedLease:
    """`lease`, and the callers' tensors joined in order, in `arena` where that has room and the
    batch is worth it."""
    plans = requests[0].plan.tensors
    batched = spec.max_batch_size > 0
    shapes = [(lease.rows, *plan.padded_shape[1:]) if batched else plan.shape for plan in plans]
    unreadable: dict[int, str] = {}
    joined = [_joined(requests, at, shape, spec, unreadable) for at, shape in enumerate(shapes)]
    offsets = None
    if arena is not None and sum([request.payload_bytes for request in requests]) >= MIN_BYTES:
        offsets = arena.place(lease.lease_id, joined)
    pieces: list[Buffer] = [lease.encode()]
    for at, plan in enumerate(plans):
        data = joined[at]
        head = tensor_head(plan.name, plan.datatype, shapes[at])
        size = sum([len(piece) for piece in data])
        if offsets is None:
            head += header(_DATA, size)
            pieces.append(header(_INPUTS, len(head) + size) + head)
            pieces += [piece.to_bytes() if isinstance(piece, Absent) else piece for piece in data]
        else:
            head += _ARENA_OFFSET + varint(offsets[at]) + _ARENA_BYTES + varint(size)
            pieces.append(header(_INPUTS, len(head)) + head)
    size = sum([len(piece) for piece in pieces])
    head = answer_head(sequence, dropped_lease_ids) + header(_LEASE, size)
    return EncodedLease(b"".join([head, *pieces]), unreadable)


def _joined(
    requests: Sequence[InferInputs],
    at: int,
    shape: tuple[int, ...],
    spec: ModelSpec,
    unreadable: dict[int, str],
) -> list[Buffer | Absent]:
    """An input of the batch: the callers' bytes as they are, unless one of them is padded."""
    plans = [request.plan.tensors[at] for request in requests]
    if spec.padding is not None and any(plan.shape != plan.padded_shape for plan in plans):
        given: list[tuple[tuple[int, ...], Buffer]] = []
        for plan, request in zip(plans, requests, strict=True):
            own = request.data[at]
            assert isinstance(own, bytes | memoryview), "what may be padded is read as it comes"
            given.append((plan.shape, own))
        return [spec.padding.join(plans[0].name, shape, given)]
    data: list[Buffer | Absent] = []
    for number, request in enumerate(requests):
        own = request.data[at]
        if isinstance(own, RegionSlice):
            data.append(_InRegion(own, number, unreadable))
        elif isinstance(own, Parts):
            data += own.pieces
        else:
            data.append(own)
    return data
