"""Each caller gets its own rows of a batch back, bit for bit (R4), and no wrong output of a replica."""

from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.samples import add_input, elements, make_spec
from tideserve.server.batch import BatchOutputs
from tideserve.server.exchanges import LeaseHead, TensorIn, tensor_of
from tideserve.server.gather import encode_lease
from tideserve.server.model_spec import DATATYPE_BYTES, ModelSpec, TensorSpec
from tideserve.server.payload import read_inputs
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse
from tideserve.v1.replica_pb2 import ExchangeResponse, Lease, Tensor

IN = TensorSpec("a", "FP32", (2,))


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    names = draw(
        st.lists(st.text("abcdé_", min_size=1, max_size=4), min_size=1, max_size=3, unique=True)
    )
    inputs = [
        TensorSpec(
            name,
            # BYTES is cut in a way of its own: half of all, or few batches would have several
            # callers' worth of it.
            draw(st.one_of(st.just("BYTES"), st.sampled_from(sorted(DATATYPE_BYTES)))),
            tuple(draw(st.lists(st.integers(0, 4), max_size=3))),
        )
        for name in names
    ]
    return make_spec(inputs, inputs, max_batch_size=draw(st.sampled_from([0, 64, 64, 64])))


def draw_data(draw: st.DrawFn, tensor: TensorSpec, shape: tuple[int, ...]) -> bytes:
    size = DATATYPE_BYTES[tensor.datatype]
    if size:
        return draw(st.binary(min_size=size * prod(shape), max_size=size * prod(shape)))
    values = st.lists(st.binary(max_size=6), min_size=prod(shape), max_size=prod(shape))
    return elements(shape, draw(values))


@st.composite
def batches(draw: st.DrawFn) -> tuple[ModelSpec, list[ModelInferRequest]]:
    spec = draw(models())
    requests = []
    for at in range(draw(st.integers(1, 4)) if spec.max_batch_size else 1):
        request = ModelInferRequest(
            model_name="m", id=draw(st.sampled_from(["", f"id {at}", "é" * 80]))
        )
        rows = draw(st.integers(1, 3))
        for tensor in draw(st.permutations(spec.inputs)):
            shape = (rows, *tensor.dims) if spec.max_batch_size else tensor.dims
            add_input(request, tensor.name, tensor.datatype, shape, draw_data(draw, tensor, shape))
        chosen = draw(st.lists(st.sampled_from([t.name for t in spec.outputs]), unique=True))
        for name in chosen:
            request.outputs.add(name=name)
        requests.append(request)
    return spec, requests


def row_sizes(tensor: Tensor) -> list[int]:
    """Bytes of each row, found by a scan as a replica would."""
    per_row = prod(tensor.shape[1:])
    sizes = []
    at = 0
    for _ in range(tensor.shape[0]):
        begin = at
        for _ in range(per_row):
            at += 4 + int.from_bytes(tensor.data[at : at + 4], "little")
        sizes.append(at - begin)
    assert at == len(tensor.data)
    return sizes


def identity(lease: Lease, spec: ModelSpec) -> BatchOutputs:
    """What a replica of a model that gives back its inputs answers."""
    outputs = []
    for tensor in reversed(lease.inputs):
        output = Tensor()
        output.CopyFrom(tensor)
        if spec.max_batch_size and tensor.datatype == "BYTES":
            output.row_bytes.extend(row_sizes(tensor))
        outputs.append(Tensor.FromString(output.SerializeToString()))
    return BatchOutputs([tensor_of(output) for output in outputs], spec, lease.rows)


def test_r4_callers_of_one_batch_get_their_own_bytes_elements_whatever_their_lengths() -> None:
    spec = make_spec([TensorSpec("s", "BYTES", (2,))], [TensorSpec("s", "BYTES", (2,))])
    contents = [
        elements([1, 2], [b"first", b""]),
        elements([2, 2], [b"", b"x" * 300, b"second", b"\x00"]),
        elements([1, 2], [b"", b"third"]),
    ]
    rows = [1, 2, 1]
    callers = []
    for count, raw in zip(rows, contents, strict=True):
        request = ModelInferRequest(model_name="m")
        add_input(request, "s", "BYTES", [count, 2], raw)
        callers.append(read_inputs(request, spec))
    lease = ExchangeResponse.FromString(
        encode_lease(1, [], LeaseHead(lease_id=1, rows=4), callers, spec).message
    ).lease
    outputs = identity(lease, spec)

    answers = [
        ModelInferResponse.FromString(outputs.encode(caller.plan, "", at, final_flag=False))
        for caller, at in zip(callers, [0, 1, 3], strict=True)
    ]

    assert [list(answer.raw_output_contents) for answer in answers] == [[raw] for raw in contents]
    assert [list(answer.outputs[0].shape) for answer in answers] == [[1, 2], [2, 2], [1, 2]]


@settings(max_examples=150, deadline=None)
@given(batches(), st.booleans())
def test_r4_each_caller_gets_its_own_rows_bit_for_bit(
    batch: tuple[ModelSpec, list[ModelInferRequest]], final_flag: bool
) -> None:
    spec, requests = batch
    callers = [read_inputs(request, spec) for request in requests]
    rows = sum(caller.plan.rows for caller in callers)

    answer = ExchangeResponse.FromString(
        encode_lease(7, [3, 4], LeaseHead(lease_id=9, rows=rows), callers, spec).message
    )
    assert (answer.sequence, list(answer.dropped_lease_ids)) == (7, [3, 4])
    assert (answer.lease.lease_id, answer.lease.rows) == (9, rows)
    assert [tensor.name for tensor in answer.lease.inputs] == [t.name for t in spec.inputs]
    for tensor in answer.lease.inputs:
        if spec.max_batch_size:
            assert tensor.shape[0] == rows

    outputs = identity(answer.lease, spec)
    first_row = 0
    for request, caller in zip(requests, callers, strict=True):
        response = ModelInferResponse.FromString(
            outputs.encode(caller.plan, request.id, first_row, final_flag=final_flag)
        )
        check_answer(response, request, spec, final_flag=final_flag)
        first_row += caller.plan.rows


def check_answer(
    response: ModelInferResponse, request: ModelInferRequest, spec: ModelSpec, *, final_flag: bool
) -> None:
    assert (response.model_name, response.model_version, response.id) == ("m", "1", request.id)
    assert ("triton_final_response" in response.parameters) is final_flag
    wanted = [output.name for output in request.outputs] or [t.name for t in spec.outputs]
    assert [tensor.name for tensor in response.outputs] == wanted
    sent = {
        tensor.name: (tensor.datatype, tuple(tensor.shape), raw)
        for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True)
    }
    for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True):
        assert (tensor.datatype, tuple(tensor.shape), raw) == sent[tensor.name]


# --- a replica's mistakes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (Tensor(name="x", datatype="FP32", shape=[1, 2], data=bytes(8)), "expected 2 rows"),
        (Tensor(name="x", datatype="FP32", shape=[], data=b""), "expected 2 rows"),
        (Tensor(name="x", datatype="FP32", shape=[2, 2], data=bytes(15)), "expected 16 bytes"),
        (Tensor(name="x", datatype="FP32", shape=[2, -1, -2], data=bytes(16)), "shape"),
        (Tensor(name="x", datatype="WORDS", shape=[2, 2], data=bytes(16)), "datatype"),
        (Tensor(name="x", datatype="INT32", shape=[2, 2], data=bytes(16)), "datatype"),
        (Tensor(name="nobody", datatype="FP32", shape=[2, 2], data=bytes(16)), "nobody"),
        (Tensor(name="s", datatype="BYTES", shape=[2], data=bytes(8)), "row_bytes of 2 rows"),
        (
            Tensor(name="s", datatype="BYTES", shape=[2], data=bytes(8), row_bytes=[4, 5]),
            "expected 9 bytes",
        ),
    ],
)
def test_outputs_that_do_not_add_up_are_refused(tensor: Tensor, words: str) -> None:
    spec = make_spec([IN], [TensorSpec("x", "FP32", (-1, -1)), TensorSpec("s", "BYTES", ())])

    with pytest.raises(ValueError, match=words):
        BatchOutputs([tensor_of(tensor)], spec, 2)


def test_missing_outputs_are_named() -> None:
    spec = make_spec([IN], [TensorSpec("x", "FP32", (2,)), TensorSpec("y", "FP32", (2,))])
    outputs = BatchOutputs([TensorIn("x", "FP32", (1, 2), bytes(8))], spec, 1)

    assert outputs.missing(()) == ["y"]
    assert outputs.missing(("x",)) == []
    assert outputs.missing(("y", "x")) == ["y"]
