"""What a ModelInfer must look like: what is right is read, all else gets a sentence."""

from collections.abc import Callable, Sequence
from math import prod
from struct import pack

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.server.samples import add_input, elements, make_spec
from tideserve.server.errors import InvalidRequestError, TideserveError, UnsupportedError
from tideserve.server.infer_inputs import InferInputs
from tideserve.server.model_spec import DATATYPE_BYTES, ModelSpec, TensorSpec
from tideserve.server.payload import read_inputs
from tideserve.v1.inference_pb2 import InferTensorContents, ModelInferRequest

FP32_2 = b"\x00" * 8
TWO = make_spec(
    [
        TensorSpec("a", "FP32", (2,)),
        TensorSpec("b", "INT64", (-1,)),
        TensorSpec("extra", "BYTES", (1,), optional=True),
    ],
    [TensorSpec("x", "FP32", (2,)), TensorSpec("y", "FP32", (2,))],
)


def request_of(*tensors: tuple[str, str, list[int], bytes]) -> ModelInferRequest:
    request = ModelInferRequest(model_name="m")
    for name, datatype, shape, raw in tensors:
        add_input(request, name, datatype, shape, raw)
    return request


def good() -> ModelInferRequest:
    return request_of(("a", "FP32", [1, 2], FP32_2), ("b", "INT64", [1, 3], b"\x01" * 24))


def drop_input(request: ModelInferRequest, at: int) -> bool:
    del request.inputs[at]
    del request.raw_input_contents[at]
    return True


# --- bad input: what was expected and what came ----------------------------------------------

BadCase = tuple[str, Callable[[ModelInferRequest], object], Sequence[str]]


def set_shape(at: int, shape: list[int]) -> Callable[[ModelInferRequest], object]:
    def change(request: ModelInferRequest) -> None:
        request.inputs[at].shape[:] = shape

    return change


def set_raw(at: int, raw: bytes) -> Callable[[ModelInferRequest], object]:
    def change(request: ModelInferRequest) -> None:
        request.raw_input_contents[at] = raw

    return change


def set_name(at: int, name: str) -> Callable[[ModelInferRequest], object]:
    def change(request: ModelInferRequest) -> None:
        request.inputs[at].name = name

    return change


def set_datatype(at: int, datatype: str) -> Callable[[ModelInferRequest], object]:
    def change(request: ModelInferRequest) -> None:
        request.inputs[at].datatype = datatype

    return change


def set_int64(name: str, value: int) -> Callable[[ModelInferRequest], object]:
    def change(request: ModelInferRequest) -> None:
        request.parameters[name].int64_param = value

    return change


def set_text(name: str, value: str) -> Callable[[ModelInferRequest], object]:
    def change(request: ModelInferRequest) -> None:
        request.parameters[name].string_param = value

    return change


BAD: list[BadCase] = [
    ("missing input", lambda r: drop_input(r, 0), ["missing input 'a'", "got 'b'"]),
    (
        "no inputs at all",
        lambda r: (drop_input(r, 1), drop_input(r, 0)),
        ["missing input 'a', 'b'", "got none"],
    ),
    (
        "extra input",
        lambda r: add_input(r, "c", "FP32", [1, 2], FP32_2),
        ["unexpected input 'c'", "expected 'a', 'b', 'extra'"],
    ),
    ("misnamed input", set_name(0, "A"), ["unexpected input 'A'", "expected 'a', 'b'"]),
    ("unnamed input", set_name(0, ""), ["unexpected input ''"]),
    ("duplicate input", set_name(1, "a"), ["'a' is given twice"]),
    ("wrong datatype", set_datatype(0, "INT32"), ["expected datatype FP32", "got 'INT32'"]),
    ("no datatype", set_datatype(0, ""), ["expected datatype FP32", "got ''"]),
    ("unknown datatype", set_datatype(0, "FP128"), ["expected datatype FP32", "got 'FP128'"]),
    ("rank too low", set_shape(0, [2]), ["expected shape [-1, 2]", "got [2]"]),
    ("rank too high", set_shape(0, [1, 1, 2]), ["expected shape [-1, 2]", "got [1, 1, 2]"]),
    ("no shape", set_shape(0, []), ["expected shape [-1, 2]", "got []"]),
    ("wrong dim", set_shape(0, [1, 3]), ["expected shape [-1, 2]", "got [1, 3]"]),
    ("negative dim", set_shape(1, [1, -3]), ["expected shape [-1, -1]", "got [1, -3]"]),
    ("negative rows", set_shape(0, [-1, 2]), ["expected shape [-1, 2]", "got [-1, 2]"]),
    ("absurd dim", set_shape(1, [1, 2**62]), ["expected shape", f"got [1, {2**62}]"]),
    ("absurd rows", set_shape(0, [2**62, 2]), ["expected shape", f"got [{2**62}, 2]"]),
    ("raw too short", set_raw(0, b"\x00" * 7), ["expected 8 bytes for FP32 [1, 2]", "got 7"]),
    ("raw too long", set_raw(0, b"\x00" * 9), ["expected 8 bytes for FP32 [1, 2]", "got 9"]),
    ("raw empty", set_raw(0, b""), ["expected 8 bytes", "got 0"]),
    (
        "fewer raws than inputs",
        lambda r: r.raw_input_contents.pop(),
        ["for all 2 inputs or for none", "got 1"],
    ),
    (
        "more raws than inputs",
        lambda r: r.raw_input_contents.append(b""),
        ["for all 2 inputs or for none", "got 3"],
    ),
    (
        "raw and typed",
        lambda r: r.inputs[0].contents.fp32_contents.extend([1, 2]),
        ["either in raw_input_contents or in contents", "got both"],
    ),
    (
        "rows that differ",
        lambda r: (set_shape(1, [2, 3])(r), set_raw(1, b"\x01" * 48)(r)),
        ["expected the same rows in every input", "got 1 in 'a' and 2 in 'b'"],
    ),
    (
        "zero rows",
        lambda r: (
            set_shape(0, [0, 2])(r),
            set_shape(1, [0, 3])(r),
            set_raw(0, b"")(r),
            set_raw(1, b"")(r),
        ),
        ["expected 1 to 8 rows", "got 0"],
    ),
    (
        "too many rows",
        lambda r: (
            set_shape(0, [9, 2])(r),
            set_shape(1, [9, 1])(r),
            set_raw(0, FP32_2 * 9)(r),
            set_raw(1, FP32_2 * 9)(r),
        ),
        ["expected 1 to 8 rows", "got 9"],
    ),
    (
        "unknown requested output",
        lambda r: r.outputs.add(name="z"),
        ["unexpected requested output 'z'", "expected 'x', 'y'"],
    ),
    (
        "output requested twice",
        lambda r: (r.outputs.add(name="x"), r.outputs.add(name="x")),
        ["'x' is requested twice"],
    ),
    (
        "BYTES that end inside a prefix",
        lambda r: add_input(r, "extra", "BYTES", [1, 1], b"\x01\x00\x00"),
        ["expected 1 BYTES elements", "length prefixes that do not fit the data"],
    ),
    (
        "BYTES longer than the data",
        lambda r: add_input(r, "extra", "BYTES", [1, 1], pack("<I", 2**32 - 1) + b"abc"),
        ["expected 1 BYTES elements", "length prefixes that do not fit the data"],
    ),
    (
        "too many BYTES elements",
        lambda r: add_input(r, "extra", "BYTES", [1, 1], elements([2], [b"a", b""])),
        ["expected 1 BYTES elements", "got more, in 9 bytes"],
    ),
    (
        "no BYTES elements",
        lambda r: add_input(r, "extra", "BYTES", [1, 1], b""),
        ["expected 1 BYTES elements", "got 0"],
    ),
    ("negative timeout", set_int64("timeout", -5), ["'timeout'", "from 0 to", "got -5"]),
    ("timeout in words", set_text("timeout", "soon"), ["'timeout'", "got 'soon'"]),
    ("timeout with a sign", set_text("timeout", "-5"), ["'timeout'", "got '-5'"]),
    ("timeout in other digits", set_text("timeout", "٣"), ["'timeout'", "got '٣'"]),
    ("endless timeout", set_text("timeout", "9" * 5000), ["'timeout'", "whole number"]),
    ("timeout beyond a float", set_text("timeout", "9" * 400), ["'timeout'", "whole number"]),
    (
        "timeout as a flag",
        lambda r: r.parameters["timeout"].CopyFrom(type(r.parameters["timeout"])(bool_param=True)),
        ["'timeout'", "got True in bool_param"],
    ),
    (
        "timeout as a fraction",
        lambda r: r.parameters["timeout"].CopyFrom(type(r.parameters["timeout"])(double_param=0.5)),
        ["'timeout'", "got 0.5 in double_param"],
    ),
    (
        "timeout without a value",
        lambda r: r.parameters["timeout"].SetInParent(),
        ["'timeout'", "whole number"],
    ),
]


@pytest.mark.parametrize(("change", "words"), [case[1:] for case in BAD], ids=[c[0] for c in BAD])
def test_bad_input_is_refused_with_expected_and_got(
    change: Callable[[ModelInferRequest], object], words: Sequence[str]
) -> None:
    request = good()
    read_inputs(request, TWO)
    change(request)

    with pytest.raises(InvalidRequestError) as refused:
        read_inputs(request, TWO)

    for word in words:
        assert word in str(refused.value)


@pytest.mark.parametrize("shape", [[1, 0, 2**62, 2**62], [0, 2**62]])
def test_an_absurd_shape_is_refused_though_a_zero_makes_it_empty(shape: list[int]) -> None:
    spec = make_spec([TensorSpec("a", "FP32", (-1,) * len(shape))], max_batch_size=0)

    with pytest.raises(InvalidRequestError, match="expected shape"):
        read_inputs(request_of(("a", "FP32", shape, b"")), spec)


@pytest.mark.parametrize("direction", ["inputs", "outputs"])
def test_shared_memory_is_refused_as_unsupported_where_there_is_none(direction: str) -> None:
    request = good()
    request.outputs.add(name="x")
    tensor = getattr(request, direction)[0]
    tensor.parameters["shared_memory_region"].string_param = "r"
    tensor.parameters["shared_memory_byte_size"].int64_param = 8

    with pytest.raises(UnsupportedError, match="send contents in the request"):
        read_inputs(request, TWO)


def test_a_classification_is_refused_as_unsupported() -> None:
    request = good()
    request.outputs.add(name="x").parameters["classification"].int64_param = 3

    with pytest.raises(UnsupportedError, match="classification"):
        read_inputs(request, TWO)


# --- what is read -------------------------------------------------------------------------------


def test_inputs_come_in_the_models_order_whatever_order_they_were_sent_in() -> None:
    sent = request_of(
        ("extra", "BYTES", [1, 1], elements([1], [b"e"])),
        ("b", "INT64", [1, 1], b"\x02" * 8),
        ("a", "FP32", [1, 2], b"\x01" * 8),
    )
    read = read_inputs(sent, TWO)

    assert [tensor.name for tensor in read.plan.tensors] == ["a", "b", "extra"]
    assert read.data == (b"\x01" * 8, b"\x02" * 8, b"\x01\x00\x00\x00e")
    assert read.plan.raw_order == (2, 1, 0)
    assert read.payload_bytes == 8 + 8 + 5


def test_an_optional_input_may_be_left_out_and_changes_the_signature() -> None:
    without = read_inputs(good(), TWO)
    given_too = good()
    add_input(given_too, "extra", "BYTES", [1, 1], elements([1], [b""]))

    assert without.plan.signature == (("a", (2,)), ("b", (3,)))
    assert read_inputs(given_too, TWO).plan.signature != without.plan.signature


def test_requests_that_differ_in_rows_only_share_a_signature() -> None:
    spec = make_spec([TensorSpec("a", "FP32", (-1,))])
    plans = [
        read_inputs(request_of(("a", "FP32", shape, bytes(4 * prod(shape)))), spec).plan
        for shape in ([1, 2], [3, 2], [1, 3])
    ]

    assert plans[0].signature == plans[1].signature != plans[2].signature
    assert [plan.rows for plan in plans] == [1, 3, 1]


def test_a_model_without_batching_takes_its_whole_shape_as_one_row() -> None:
    spec = make_spec([TensorSpec("a", "INT8", (-1, 2))], max_batch_size=0)
    plan = read_inputs(request_of(("a", "INT8", [100, 2], bytes(200))), spec).plan

    assert (plan.rows, plan.signature) == (1, (("a", (100, 2)),))


def test_requested_outputs_are_kept_in_the_order_asked_for() -> None:
    request = good()
    request.outputs.add(name="y")
    request.outputs.add(name="x")

    assert read_inputs(request, TWO).plan.outputs == ("y", "x")
    assert read_inputs(good(), TWO).plan.outputs == ()


def test_a_content_of_size_zero_is_good_where_the_shape_has_a_zero() -> None:
    spec = make_spec([TensorSpec("a", "FP16", (-1,)), TensorSpec("b", "BYTES", (-1,))])
    read = read_inputs(request_of(("a", "FP16", [2, 0], b""), ("b", "BYTES", [2, 0], b"")), spec)

    assert (read.plan.rows, read.data) == (2, (b"", b""))


@pytest.mark.parametrize(
    ("field", "value", "timeout_s"),
    [
        ("int64_param", 250_000, 0.25),
        ("uint64_param", 2**63, 2**63 / 1e6),
        ("string_param", "1000000", 1.0),
        ("int64_param", 0, None),
    ],
)
def test_timeout_is_microseconds(field: str, value: int | str, timeout_s: float | None) -> None:
    request = good()
    setattr(request.parameters["timeout"], field, value)

    assert read_inputs(request, TWO).plan.timeout_s == timeout_s


@pytest.mark.parametrize(("given_priority", "read_as"), [(0, 0), (1, 1), (3, 3)])
def test_a_priority_within_the_models_levels_is_kept(given_priority: int, read_as: int) -> None:
    request = good()
    request.parameters["priority"].uint64_param = given_priority
    spec = make_spec(TWO.inputs, TWO.outputs, priority_levels=3)

    assert read_inputs(request, spec).plan.priority == read_as


@pytest.mark.parametrize("priority", [4, 2**40])
def test_a_priority_beyond_the_models_levels_is_refused(priority: int) -> None:
    request = good()
    request.parameters["priority"].uint64_param = priority
    spec = make_spec(TWO.inputs, TWO.outputs, priority_levels=3)

    with pytest.raises(InvalidRequestError, match=rf"from 1 \(highest\) to 3.* got {priority}"):
        read_inputs(request, spec)


def test_a_priority_means_nothing_to_a_model_without_levels() -> None:
    request = good()
    request.parameters["priority"].uint64_param = 9

    assert read_inputs(request, TWO).plan.priority == 0


# --- typed contents -----------------------------------------------------------------------------

TYPED: list[tuple[str, str, list[object], str]] = [
    ("BOOL", "bool_contents", [True, False], "?"),
    ("INT8", "int_contents", [-128, 127], "<i1"),
    ("INT16", "int_contents", [-(2**15), 2**15 - 1], "<i2"),
    ("INT32", "int_contents", [-(2**31), 2**31 - 1], "<i4"),
    ("INT64", "int64_contents", [-(2**63), 2**63 - 1], "<i8"),
    ("UINT8", "uint_contents", [0, 255], "<u1"),
    ("UINT16", "uint_contents", [0, 2**16 - 1], "<u2"),
    ("UINT32", "uint_contents", [0, 2**32 - 1], "<u4"),
    ("UINT64", "uint64_contents", [0, 2**64 - 1], "<u8"),
    ("FP32", "fp32_contents", [-0.0, float("inf")], "<f4"),
    ("FP64", "fp64_contents", [1e-300, -1.5], "<f8"),
]


def typed_request(datatype: str, field: str, values: Sequence[object]) -> ModelInferRequest:
    request = ModelInferRequest(model_name="m")
    tensor = add_input(request, "a", datatype, [1, 2])
    getattr(tensor.contents, field).extend(values)
    return request


@pytest.mark.parametrize(("datatype", "field", "values", "dtype"), TYPED)
def test_typed_contents_become_the_same_bytes_as_raw_ones(
    datatype: str, field: str, values: list[object], dtype: str
) -> None:
    read = read_inputs(
        typed_request(datatype, field, values), make_spec([TensorSpec("a", datatype, (2,))])
    )

    assert read.data == (np.array(values, dtype=dtype).tobytes(),)


def test_typed_bytes_get_their_length_prefixes() -> None:
    spec = make_spec([TensorSpec("a", "BYTES", (2,))])
    read = read_inputs(typed_request("BYTES", "bytes_contents", [b"xyz", b""]), spec)

    assert read.data == (b"\x03\x00\x00\x00xyz\x00\x00\x00\x00",)


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [
        ("INT8", "int_contents", 128),
        ("INT8", "int_contents", -129),
        ("INT16", "int_contents", 2**15),
        ("UINT8", "uint_contents", 256),
        ("UINT16", "uint_contents", 2**16),
    ],
)
def test_typed_values_out_of_range_are_refused(datatype: str, field: str, value: int) -> None:
    spec = make_spec([TensorSpec("a", datatype, (2,))])

    with pytest.raises(InvalidRequestError, match=f"fit {datatype}.*{value}"):
        read_inputs(typed_request(datatype, field, [0, value]), spec)


@pytest.mark.parametrize("datatype", ["FP16", "BF16"])
def test_half_floats_have_no_typed_contents(datatype: str) -> None:
    spec = make_spec([TensorSpec("a", datatype, (2,))])

    with pytest.raises(InvalidRequestError, match="send raw_input_contents"):
        read_inputs(typed_request(datatype, "fp32_contents", [0, 0]), spec)


def test_typed_contents_in_another_types_field_are_refused() -> None:
    spec = make_spec([TensorSpec("a", "FP32", (2,))])

    with pytest.raises(
        InvalidRequestError, match=r"expected FP32 in contents\.fp32_contents, got contents\.int64"
    ):
        read_inputs(typed_request("FP32", "int64_contents", [1, 2]), spec)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_wrong_number_of_typed_values_is_refused(count: int) -> None:
    spec = make_spec([TensorSpec("a", "FP32", (2,))])

    with pytest.raises(InvalidRequestError, match=rf"expected 2 elements .* got {count}"):
        read_inputs(typed_request("FP32", "fp32_contents", [0.0] * count), spec)


def test_every_datatype_is_accepted_raw() -> None:
    for datatype, size in DATATYPE_BYTES.items():
        raw = bytes(2 * size) if size else elements([2], [b"", b"a"])
        spec = make_spec([TensorSpec("a", datatype, (2,))])
        assert read_inputs(request_of(("a", datatype, [1, 2], raw)), spec).data == (raw,)


# --- whatever comes -----------------------------------------------------------------------------


def reading(message: ModelInferRequest, spec: ModelSpec) -> InferInputs | TideserveError:
    try:
        return read_inputs(message, spec)
    except TideserveError as error:
        return error


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_message_is_read_or_refused_and_nothing_else(data: bytes) -> None:
    try:
        message = ModelInferRequest.FromString(data)
    except Exception:  # noqa: BLE001 - protobuf's own word on garbage
        return
    assert isinstance(reading(message, TWO), InferInputs | TideserveError)


@given(
    st.sampled_from([name for name, _, _, _ in TYPED]),
    st.sampled_from(list(InferTensorContents.DESCRIPTOR.fields_by_name)),
)
def test_any_typed_field_for_any_datatype_is_read_or_refused(datatype: str, field: str) -> None:
    value: object = b"x" if field == "bytes_contents" else 1
    request = typed_request(datatype, field, [value, value])
    spec = make_spec([TensorSpec("a", datatype, (2,))])
    read = reading(request, spec)

    if isinstance(read, InferInputs):
        assert len(read.data[0]) == 2 * DATATYPE_BYTES[datatype]
    else:
        assert isinstance(read, InvalidRequestError)
        assert field in str(read)
