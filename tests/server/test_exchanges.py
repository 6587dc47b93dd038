"""Exchanges as bytes, held against protobuf's own classes."""

from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from tideserve.server import exchanges
from tideserve.server.errors import InvalidRequestError
from tideserve.server.exchanges import ExchangeIn, LeaseHead, OutcomeIn, read_exchange
from tideserve.server.wire import header
from tideserve.v1.replica_pb2 import (
    BatchFailure,
    BatchResult,
    ExchangeRequest,
    ExchangeResponse,
    Lease,
    Outcome,
    Tensor,
)

NUMBERS = st.one_of(st.integers(0, 300), st.integers(0, 2**63 - 1))
TENSORS = st.builds(
    Tensor,
    name=st.text(max_size=5),
    datatype=st.sampled_from(["FP32", "BYTES", ""]),
    shape=st.lists(st.one_of(st.integers(-1, 300), st.integers(0, 2**62)), max_size=4),
    data=st.binary(max_size=300),
    row_bytes=st.lists(NUMBERS, max_size=3),
    arena_offset=NUMBERS,
    arena_bytes=NUMBERS,
)
SECONDS = st.floats(0, 100)
OUTCOMES = st.builds(
    Outcome,
    lease_id=NUMBERS,
    result=st.builds(BatchResult, outputs=st.lists(TENSORS, max_size=3)),
    input_s=SECONDS,
    infer_s=SECONDS,
    output_s=SECONDS,
)
FAILURES = st.builds(
    Outcome,
    lease_id=NUMBERS,
    failure=st.builds(
        BatchFailure, kind=st.sampled_from(BatchFailure.Kind.values()), message=st.text(max_size=9)
    ),
)
REQUESTS = st.builds(
    ExchangeRequest,
    replica_id=st.text(max_size=9),
    epoch=st.one_of(NUMBERS, st.integers(2**63, 2**64 - 1)),
    sequence=NUMBERS,
    outcomes=st.lists(st.one_of(OUTCOMES, OUTCOMES, FAILURES), max_size=3),
    want=st.booleans(),
    arena=st.booleans(),
)


def told(exchange: ExchangeIn) -> tuple[Any, ...]:
    """All of it, as values."""
    outcomes = [
        (
            one.lease_id,
            one.failure,
            (one.input_s, one.infer_s, one.output_s),
            [
                (
                    tensor.name,
                    tensor.datatype,
                    tensor.shape,
                    bytes(tensor.data),
                    tensor.row_bytes,
                    (tensor.arena_offset, tensor.arena_bytes),
                )
                for tensor in one.outputs
            ],
        )
        for one in exchange.outcomes
    ]
    head = (exchange.replica_id, exchange.epoch, exchange.sequence, exchange.want, exchange.arena)
    return (*head, outcomes)


def by_protobuf(message: ExchangeRequest) -> tuple[Any, ...]:
    outcomes = []
    for outcome in message.outcomes:
        failure = None
        if not outcome.HasField("result"):
            failure = (outcome.failure.kind, outcome.failure.message)
        outcomes.append(
            (
                outcome.lease_id,
                failure,
                (outcome.input_s, outcome.infer_s, outcome.output_s),
                [
                    (
                        tensor.name,
                        tensor.datatype,
                        tuple(tensor.shape),
                        tensor.data,
                        tuple(tensor.row_bytes),
                        (tensor.arena_offset, tensor.arena_bytes),
                    )
                    for tensor in outcome.result.outputs
                ],
            )
        )
    head = (message.replica_id, message.epoch, message.sequence, message.want, message.arena)
    return (*head, outcomes)


@settings(max_examples=300, deadline=None)
@given(REQUESTS)
def test_an_exchange_is_read_as_protobuf_reads_it(message: ExchangeRequest) -> None:
    assert told(read_exchange(message.SerializeToString())) == by_protobuf(message)


@settings(max_examples=300, deadline=None)
@given(REQUESTS, st.data())
def test_broken_bytes_are_read_or_refused_as_protobuf_does(
    message: ExchangeRequest, data: st.DataObject
) -> None:
    payload = bytearray(message.SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        if payload:
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    broken = bytes(payload[: data.draw(st.integers(0, len(payload)))])
    try:
        expected = by_protobuf(ExchangeRequest.FromString(broken))
    except Exception:  # noqa: BLE001 - DecodeError, and text that is no UTF-8
        with pytest.raises(InvalidRequestError):
            read_exchange(broken)
        return
    # By its text: a broken number of seconds may be none, which equals nothing.
    assert repr(told(read_exchange(broken))) == repr(expected)


# Of a newer replica: a number, bytes, and fixed sizes of fields that nobody knows yet; a tag and a
# length that are written longer than they have to be.
UNKNOWN = st.sampled_from(
    [b"x\x05", b"r\x03abc", b"i" + bytes(8), b"e" + bytes(4), b"\xfa\x80\x00\x80\x00"]
)


def written(messages: st.SearchStrategy[Message]) -> st.SearchStrategy[bytes]:
    return messages.map(lambda message: message.SerializeToString())


def mixed(field: int, parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """A message as a field: its fields come twice, in any order, and some nobody knows."""
    bodies = st.lists(st.one_of(parts, parts, UNKNOWN), min_size=1, max_size=3).map(b"".join)
    return bodies.map(lambda body: header(field, len(body)) + body)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_what_is_laid_out_in_another_way_is_read_as_protobuf_reads_it(data: st.DataObject) -> None:
    results = mixed(2, mixed(1, written(TENSORS)))
    outcomes = mixed(4, st.one_of(results, written(OUTCOMES), written(FAILURES)))
    fields = st.one_of(outcomes, written(REQUESTS), UNKNOWN)
    payload = b"".join(data.draw(st.lists(fields, min_size=1, max_size=3)))
    assert told(read_exchange(payload)) == by_protobuf(ExchangeRequest.FromString(payload))


@settings(max_examples=200, deadline=None)
@given(TENSORS, TENSORS, OUTCOMES)
def test_what_is_said_twice_is_read_as_protobuf_reads_it(
    tensor: Tensor, again: Tensor, outcome: Outcome
) -> None:
    def framed(field: int, *parts: bytes) -> bytes:
        return header(field, sum(map(len, parts))) + b"".join(parts)

    result = framed(2, framed(1, tensor.SerializeToString(), again.SerializeToString()))
    once = outcome.SerializeToString()
    for payload in (framed(4, result), framed(4, once, once), framed(4, result, result)):
        assert told(read_exchange(payload)) == by_protobuf(ExchangeRequest.FromString(payload))


@pytest.mark.interpreted
def test_what_replicas_write_does_not_go_the_long_way(monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [Tensor(name="OUT", datatype="FP32", shape=[2, 300], data=bytes(9000))]
    outcome = Outcome(lease_id=1 << 41, result=BatchResult(outputs=outputs), infer_s=0.5)
    message = ExchangeRequest(
        replica_id="m-1", epoch=1 << 41, sequence=7, outcomes=[outcome], want=True, arena=True
    )
    monkeypatch.setattr(exchanges, "parse", None)
    assert told(read_exchange(message.SerializeToString())) == by_protobuf(message)


def test_large_data_is_not_copied() -> None:
    outputs = [Tensor(name="OUT", datatype="FP32", shape=[1, 5000], data=bytes(20_000))]
    message = ExchangeRequest(outcomes=[Outcome(result=BatchResult(outputs=outputs))])
    (outcome,) = read_exchange(message.SerializeToString()).outcomes
    assert isinstance(outcome.outputs[0].data, memoryview)


@pytest.mark.parametrize("kind", BatchFailure.Kind.values())
def test_a_lost_device_is_told_from_other_failures(kind: int) -> None:
    outcome = OutcomeIn(1, [], (kind, "why"), 0.0, 0.0, 0.0)
    assert outcome.is_of_lost_device is (kind == BatchFailure.DEVICE_LOST)


@settings(max_examples=200, deadline=None)
@given(
    NUMBERS,
    st.integers(0, 2**32 - 1),
    st.lists(st.text(max_size=200), max_size=3),
    st.lists(st.integers(0, 2**32 - 1), max_size=40),
    SECONDS,
)
def test_a_lease_is_written_as_protobuf_reads_it(
    lease_id: int, rows: int, requested: list[str], request_rows: list[int], time_left_s: float
) -> None:
    written = LeaseHead(lease_id, rows, requested, request_rows, time_left_s).encode()
    assert Lease.FromString(written) == Lease(
        lease_id=lease_id,
        rows=rows,
        requested_outputs=requested,
        request_rows=request_rows,
        time_left_s=time_left_s,
    )


@given(NUMBERS, st.lists(NUMBERS, max_size=30))
def test_an_answers_head_is_written_as_protobuf_reads_it(sequence: int, dropped: list[int]) -> None:
    written = ExchangeResponse.FromString(exchanges.answer_head(sequence, dropped))
    assert written == ExchangeResponse(sequence=sequence, dropped_lease_ids=dropped)
