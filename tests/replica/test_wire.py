"""What `wire` reads and writes is what protobuf's own classes read and write."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.replica.errors import WireError
from tideserve.replica.wire import (
    Answer,
    Failure,
    FailureKind,
    RequestWriter,
    TensorOut,
    Times,
    read_answer,
    write_failure,
    write_result,
)
from tideserve.v1.replica_pb2 import (
    BatchFailure,
    ExchangeRequest,
    ExchangeResponse,
    Lease,
    Tensor,
)

U64 = st.integers(0, 2**64 - 1)
U32 = st.integers(0, 2**32 - 1)
NAMES = st.text(max_size=12)
SHAPES = st.lists(st.integers(0, 2**40), max_size=4)
SECONDS = st.floats(0, 1e6)
TENSORS = st.builds(Tensor, name=NAMES, datatype=NAMES, shape=SHAPES, data=st.binary(max_size=300))
LEASES = st.builds(
    Lease,
    lease_id=U64,
    rows=U32,
    inputs=st.lists(TENSORS, max_size=3),
    requested_outputs=st.lists(NAMES, max_size=3),
    request_rows=st.lists(U32, max_size=4),
    time_left_s=st.floats(allow_nan=False),
)
ANSWERS = st.builds(
    ExchangeResponse,
    sequence=U64,
    lease=st.none() | LEASES,
    drain=st.booleans(),
    dropped_lease_ids=st.lists(U64, max_size=3),
)


@given(ANSWERS)
def test_an_answer_is_read_as_protobuf_reads_it(message: ExchangeResponse) -> None:
    answer = read_answer(message.SerializeToString())
    assert answer.sequence == message.sequence
    assert answer.drain == message.drain
    assert answer.dropped_lease_ids == tuple(message.dropped_lease_ids)
    if not message.HasField("lease"):
        assert answer.lease is None
        return
    assert answer.lease is not None
    assert answer.lease.lease_id == message.lease.lease_id
    assert answer.lease.rows == message.lease.rows
    assert answer.lease.requested_outputs == tuple(message.lease.requested_outputs)
    assert [(t.name, t.datatype, t.shape, bytes(t.data)) for t in answer.lease.inputs] == [
        (t.name, t.datatype, tuple(t.shape), t.data) for t in message.lease.inputs
    ]


@given(ANSWERS.map(lambda message: message.SerializeToString()), st.data())
def test_a_damaged_answer_is_an_error_or_an_answer_and_nothing_else(
    message: bytes, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(message)))
    damaged = message[:cut] + data.draw(st.binary(max_size=8)) + message[cut + 1 :]
    try:
        answer = read_answer(damaged)
    except WireError:
        return
    assert isinstance(answer, Answer)


@pytest.mark.parametrize(
    "message",
    [
        b"\x08",  # a number that is missing
        b"\x08" + b"\xff" * 11,  # a number without end
        b"\x12\x7f\x08",  # a lease longer than the message
        b"\x0b",  # a group
        b"\x12\x04\x1a\x02\x0a\x05",  # a tensor whose name ends beyond it
        b"\x12\x06\x1a\x04\x0a\x02\xff\xfe",  # a name that is no UTF-8
    ],
)
def test_broken_bytes_are_an_error(message: bytes) -> None:
    with pytest.raises(WireError):
        read_answer(message)


def test_fields_that_a_newer_frontend_adds_are_passed_over() -> None:
    unknown = b"\x79" + b"\0" * 8 + b"\x7d" + b"\0" * 4 + b"\x7a\x03abc" + b"\x80\x01\x05"
    known = ExchangeResponse(sequence=300, drain=True).SerializeToString()
    assert read_answer(unknown + known + unknown) == Answer(300, None, drain=True)


def test_tensor_bytes_are_a_view_of_the_message() -> None:
    data = bytes(1000)
    message = ExchangeResponse(lease=Lease(inputs=[Tensor(data=data)])).SerializeToString()
    lease = read_answer(message).lease
    assert lease is not None
    assert lease.inputs[0].data.obj is message


@given(
    st.lists(
        st.builds(
            Tensor,
            name=NAMES,
            datatype=NAMES,
            shape=SHAPES,
            data=st.binary(max_size=200),
            row_bytes=st.lists(U64, max_size=3),
        ),
        max_size=3,
    ),
    U64,
    st.tuples(SECONDS, SECONDS, SECONDS),
)
def test_a_result_is_written_as_protobuf_writes_it(
    tensors: list[Tensor], lease_id: int, seconds: tuple[float, float, float]
) -> None:
    outputs = [
        TensorOut(t.name, t.datatype, tuple(t.shape), t.data, tuple(t.row_bytes)) for t in tensors
    ]
    (outcome,) = ExchangeRequest.FromString(
        write_result(lease_id, outputs, Times(*seconds))
    ).outcomes
    assert outcome.lease_id == lease_id
    assert outcome.WhichOneof("outcome") == "result"
    assert list(outcome.result.outputs) == tensors
    assert (outcome.input_s, outcome.infer_s, outcome.output_s) == seconds


@pytest.mark.parametrize("shape", [(2, 3), (0, 3), ()])
def test_arrays_are_written_as_they_lie(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 1.5, np.float32)
    field = write_result(1, [TensorOut("x", "FP32", shape, array)], Times(0, 0, 0))
    (outcome,) = ExchangeRequest.FromString(field).outcomes
    (tensor,) = outcome.result.outputs
    assert (tuple(tensor.shape), tensor.data) == (shape, array.tobytes())


@given(U64, st.sampled_from(FailureKind), st.text())
def test_a_failure_is_written_as_protobuf_writes_it(
    lease_id: int, kind: FailureKind, message: str
) -> None:
    field = write_failure(lease_id, Failure(kind, message), Times(1.0, 2.0, 3.0))
    (outcome,) = ExchangeRequest.FromString(field).outcomes
    assert outcome.lease_id == lease_id
    assert BatchFailure.Kind.Name(outcome.failure.kind) == kind.name
    assert outcome.failure.message == message


def test_text_that_is_no_unicode_is_still_sent() -> None:
    field = write_failure(1, Failure(FailureKind.MODEL_ERROR, "bad \udcff"), Times(0, 0, 0))
    (outcome,) = ExchangeRequest.FromString(field).outcomes
    assert outcome.failure.message == "bad ?"


@given(NAMES, U64, U64, st.integers(0, 3), st.booleans())
def test_a_request_is_written_as_protobuf_writes_it(
    replica_id: str, epoch: int, sequence: int, count: int, want: bool
) -> None:
    outcomes = [write_result(number, [], Times(0, 0, 0)) for number in range(1, count + 1)]
    message = ExchangeRequest.FromString(
        RequestWriter(replica_id, epoch).write(sequence, outcomes, want=want)
    )
    assert message.replica_id == replica_id
    assert (message.epoch, message.sequence, message.want) == (epoch, sequence, want)
    assert [outcome.lease_id for outcome in message.outcomes] == list(range(1, count + 1))
