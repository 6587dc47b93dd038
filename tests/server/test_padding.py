"""Padding: joined batches, cut answers, and which bytes fill them up."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.samples import add_input, make_spec
from tideserve.server.batch import BatchOutputs
from tideserve.server.errors import InvalidRequestError
from tideserve.server.exchanges import LeaseHead, TensorIn
from tideserve.server.gather import encode_lease
from tideserve.server.infer_inputs import fill
from tideserve.server.model_spec import ModelSpec, TensorSpec
from tideserve.server.padding import Padding, pad_element
from tideserve.server.payload import read_inputs
from tideserve.server.repository.padding import padding_of
from tideserve.server.repository.parameters import Pad
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse
from tideserve.v1.replica_pb2 import ExchangeResponse, Tensor

EDGES = (4, 8)


def spec_of(dim: int = 0) -> ModelSpec:
    """Two inputs that are padded, with 7 and 0; the first comes back, and one of fixed size."""
    open_dims = tuple(-1 if at == dim else 3 for at in range(2))
    spec = make_spec(
        [TensorSpec("ids", "INT32", open_dims), TensorSpec("mask", "BOOL", open_dims)],
        [TensorSpec("ids", "INT32", open_dims), TensorSpec("score", "FP32", (2,))],
    )
    seven = np.int32(7).tobytes()
    padding = Padding(dim, EDGES, {"ids": seven, "mask": b"\0"}, frozenset({"ids"}))
    return ModelSpec(
        **{name: getattr(spec, name) for name in ModelSpec.__slots__ if name != "padding"},
        padding=padding,
    )


def request_of(ids: np.ndarray, mask: np.ndarray) -> ModelInferRequest:
    request = ModelInferRequest(model_name="m")
    add_input(request, "ids", "INT32", ids.shape, ids.tobytes())
    add_input(request, "mask", "BOOL", mask.shape, mask.tobytes())
    return request


def array_of(tensor: Tensor) -> np.ndarray:
    dtype = {"INT32": "<i4", "BOOL": "?"}[tensor.datatype]
    return np.frombuffer(tensor.data, dtype).reshape(tuple(tensor.shape))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 1),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_r4_each_caller_gets_its_own_rows_as_long_as_they_were(
    dim: int, sizes: list[tuple[int, int]], seed: int
) -> None:
    spec = spec_of(dim)
    chance = np.random.default_rng(seed)
    given_ids = []
    for rows, length in sizes:
        shape = (rows, length, 3) if dim == 0 else (rows, 3, length)
        given_ids.append(chance.integers(-100, 100, shape, np.int32))
    callers = [read_inputs(request_of(ids, ids > 0), spec) for ids in given_ids]
    assert len({caller.plan.signature for caller in callers}) == 1
    assert {caller.plan.row_cost for caller in callers} == {4}
    rows = sum(rows for rows, _ in sizes)
    lease = ExchangeResponse.FromString(
        encode_lease(1, [], LeaseHead(lease_id=1, rows=rows), callers, spec).message
    ).lease
    ids, mask = map(array_of, lease.inputs)
    assert ids.shape == mask.shape == ((rows, 4, 3) if dim == 0 else (rows, 3, 4))
    assert sum(c.payload_bytes for c in callers) == ids.nbytes + mask.nbytes
    lost = sum(own.size for own in given_ids)
    assert int((ids == 7).sum()) >= ids.size - lost
    assert int(mask.sum()) == sum(int((own > 0).sum()) for own in given_ids)

    score = np.arange(2 * rows, dtype=np.float32).reshape(rows, 2)
    outputs = BatchOutputs(
        [
            TensorIn("ids", "INT32", ids.shape, ids.tobytes()),
            TensorIn("score", "FP32", score.shape, score.tobytes()),
        ],
        spec,
        rows,
    )
    first_row = 0
    for caller, own in zip(callers, given_ids, strict=True):
        answer = ModelInferResponse.FromString(
            outputs.encode(caller.plan, "", first_row, final_flag=False)
        )
        assert tuple(answer.outputs[0].shape) == own.shape
        assert answer.raw_output_contents[0] == own.tobytes()
        last_row = first_row + own.shape[0]
        assert answer.raw_output_contents[1] == score[first_row:last_row].tobytes()
        first_row = last_row


def test_buckets_wait_apart_and_what_is_longer_than_all_goes_as_it_is() -> None:
    spec = spec_of()
    plans = []
    for length in (4, 5, 8, 9, 20):
        ids = np.zeros((1, length, 3), np.int32)
        plans.append(read_inputs(request_of(ids, ids > 0), spec).plan)
    assert [plan.row_cost for plan in plans] == [4, 8, 8, 9, 20]
    assert len({plan.signature for plan in plans}) == 4
    assert [plan.padding_bytes for plan in plans] == [0, 3 * 3 * 5, 0, 0, 0]


def test_a_request_that_would_not_fit_a_lease_with_its_padding_is_not_padded() -> None:
    """Without a byte of data it could ask for gigabytes."""
    spec = make_spec([TensorSpec("x", "FP32", (-1, -1))], [TensorSpec("x", "FP32", (-1, -1))])
    padding = Padding(0, (16,), {"x": bytes(4)}, frozenset({"x"}))
    names = [name for name in ModelSpec.__slots__ if name != "padding"]
    spec = ModelSpec(**{name: getattr(spec, name) for name in names}, padding=padding)
    request = ModelInferRequest(model_name="m")
    add_input(request, "x", "FP32", [1, 0, 16_000_000], b"")
    plan = read_inputs(request, spec).plan
    assert (plan.padding_bytes, plan.row_cost, plan.length) == (0, 0, 0)
    assert plan.tensors[0].padded_shape == (1, 0, 16_000_000)


def test_a_known_plan_is_filled_with_the_same_padding() -> None:
    ids = np.ones((1, 3, 3), np.int32)
    read = read_inputs(request_of(ids, ids > 0), spec_of())
    again = fill(read.plan, [ids.tobytes(), (ids > 0).tobytes()])
    assert again is not None
    assert again.payload_bytes == read.payload_bytes == (4 + 1) * 3 * 4


def test_an_output_that_is_not_as_long_as_the_bucket_is_left_alone() -> None:
    spec = spec_of()
    ids = np.ones((1, 3, 3), np.int32)
    caller = read_inputs(request_of(ids, ids > 0), spec)
    pooled = np.arange(6, dtype=np.int32).reshape(1, 2, 3)
    outputs = BatchOutputs([TensorIn("ids", "INT32", pooled.shape, pooled.tobytes())], spec, 1)
    answer = ModelInferResponse.FromString(outputs.encode(caller.plan, "", 0, final_flag=False))
    assert tuple(answer.outputs[0].shape) == (1, 2, 3)
    assert answer.raw_output_contents[0] == pooled.tobytes()


def strings(*elements: bytes) -> bytes:
    return b"".join(len(one).to_bytes(4, "little") + one for one in elements)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(0, 1),
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 4)), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
def test_r4_strings_come_back_as_long_as_their_callers_inputs(
    dim: int, sizes: list[tuple[int, int]], seed: int
) -> None:
    """A label for each token, some of them empty."""
    open_dims = tuple(-1 if at == dim else 3 for at in range(2))
    spec = make_spec(
        [TensorSpec("ids", "INT32", open_dims)], [TensorSpec("label", "BYTES", open_dims)]
    )
    padding = padding_of(
        Pad(dim=dim, edges=EDGES, value=0.0, values={}, cost=None),
        spec.inputs,
        spec.outputs,
        8,
        "config.pbtxt",
    )
    names = [name for name in ModelSpec.__slots__ if name != "padding"]
    spec = ModelSpec(**{name: getattr(spec, name) for name in names}, padding=padding)
    chance = np.random.default_rng(seed)
    rows = sum(count for count, _ in sizes)
    shape = (rows, 4, 3) if dim == 0 else (rows, 3, 4)
    labels = np.array(
        [
            b"x" * int(size) + b"%d" % at
            for at, size in enumerate(chance.integers(0, 9, prod(shape)))
        ],
        dtype=object,
    ).reshape(shape)
    row_bytes = [len(strings(*row.ravel())) for row in labels]
    outputs = BatchOutputs(
        [TensorIn("label", "BYTES", shape, strings(*labels.ravel()), tuple(row_bytes))],
        spec,
        rows,
    )
    first_row = 0
    for count, length in sizes:
        request = ModelInferRequest(model_name="m")
        ids = np.zeros((count, length, 3) if dim == 0 else (count, 3, length), np.int32)
        add_input(request, "ids", "INT32", ids.shape, ids.tobytes())
        plan = read_inputs(request, spec).plan
        answer = ModelInferResponse.FromString(
            outputs.encode(plan, "", first_row, final_flag=False)
        )
        own = labels[first_row : first_row + count]
        own = own[:, :length] if dim == 0 else own[:, :, :length]
        assert tuple(answer.outputs[0].shape) == own.shape
        assert answer.raw_output_contents[0] == strings(*own.ravel())
        first_row += count


def test_inputs_of_different_lengths_are_refused() -> None:
    ids, mask = np.ones((1, 3, 3), np.int32), np.ones((1, 2, 3), np.bool_)
    with pytest.raises(InvalidRequestError) as refused:
        read_inputs(request_of(ids, mask), spec_of())
    assert str(refused.value) == (
        "model 'm': expected the same size of dimension 1, which is padded, in every input, "
        "got 3 in 'ids', 2 in 'mask'"
    )


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        ("INT64", -1.0, np.int64(-1).tobytes()),
        ("UINT8", 255.0, b"\xff"),
        ("UINT8", 256.0, None),
        ("UINT8", -1.0, None),
        ("INT32", 0.5, None),
        ("INT32", float("nan"), None),
        ("BOOL", 1.0, b"\x01"),
        ("BOOL", 2.0, None),
        ("FP16", -0.5, np.float16(-0.5).tobytes()),
        ("FP16", 1e6, None),
        ("FP32", float("-inf"), np.float32("-inf").tobytes()),
        ("FP64", 0.1, np.float64(0.1).tobytes()),
        ("BF16", -2.0, b"\x00\xc0"),
        ("BF16", 0.1, None),
        ("BYTES", 0.0, None),
    ],
)
def test_the_pad_value_is_one_of_the_datatype(
    datatype: str, value: float, expected: bytes | None
) -> None:
    assert pad_element(datatype, value) == expected
