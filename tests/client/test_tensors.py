from typing import Any, Literal

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from tideserve.client import InvalidArgument, InvalidResponse
from tideserve.client.datatypes import WIRE_DTYPES
from tideserve.client.tensors import decode_contents, decode_raw, encode
from tideserve.v1.inference_pb2 import InferTensorContents

SHAPES = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
Order = Literal["<", ">"]
ORDERS: list[Order] = ["<", ">"]
NUMERIC = st.sampled_from(sorted(WIRE_DTYPES))
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


@given(data=st.data(), name=NUMERIC, order=st.sampled_from(ORDERS))
def test_numbers_come_back_bit_for_bit(data: st.DataObject, name: str, order: Order) -> None:
    dtype = WIRE_DTYPES[name].newbyteorder(order)
    array = data.draw(npst.arrays(dtype, SHAPES))
    wire = encode("x", array)
    assert wire.datatype == name
    back = decode_raw("x", wire.datatype, wire.shape, wire.data)
    assert back.dtype == WIRE_DTYPES[name]
    assert back.shape == array.shape
    assert back.tobytes() == array.astype(WIRE_DTYPES[name]).tobytes()


@given(data=st.data(), name=NUMERIC)
def test_strided_and_transposed_arrays_travel_row_major(data: st.DataObject, name: str) -> None:
    array = data.draw(npst.arrays(WIRE_DTYPES[name], (4, 6)))
    view = array.T[::2, ::-1]
    wire = encode("x", view)
    back = decode_raw("x", wire.datatype, wire.shape, wire.data)
    assert back.tobytes() == np.ascontiguousarray(view).tobytes()


@given(
    elements=st.lists(st.binary(max_size=20), min_size=6, max_size=6),
    shape=st.sampled_from([(6,), (2, 3), (1, 6), (3, 1, 2)]),
)
def test_bytes_come_back_element_for_element(elements: list[bytes], shape: tuple[int, ...]) -> None:
    array = np.array([*elements, None], dtype=object)[:-1].reshape(shape)
    wire = encode("x", array)
    assert wire.datatype == "BYTES"
    back = decode_raw("x", "BYTES", wire.shape, wire.data)
    assert back.shape == shape
    assert back.ravel().tolist() == elements


@given(elements=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_lists_of_text_keep_every_character(elements: list[str]) -> None:
    """numpy's fixed-width strings would drop trailing NULs."""
    wire = encode("x", elements)
    back = decode_raw("x", "BYTES", wire.shape, wire.data)
    assert [element.decode() for element in back] == elements


@pytest.mark.parametrize(
    "array",
    [np.array(["ab", "c"]), np.array([b"ab", b"c"]), np.array(["ab", b"c"], dtype=object)],
)
def test_every_kind_of_text_array_is_bytes(array: NDArray[Any]) -> None:
    wire = encode("x", array)
    assert (wire.datatype, wire.data) == ("BYTES", b"\2\0\0\0ab\1\0\0\0c")


def test_bf16_travels_with_ml_dtypes() -> None:
    array = np.array([[1.5, -2.0]], dtype=ml_dtypes.bfloat16)
    wire = encode("x", array)
    assert wire.datatype == "BF16"
    back = decode_raw("x", "BF16", wire.shape, wire.data)
    assert back.dtype == ml_dtypes.bfloat16
    assert back.tobytes() == array.tobytes()


def test_bf16_without_ml_dtypes_is_exact_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tideserve.client.tensors.bfloat16", lambda: None)
    array = np.array([[1.5], [-2.25]], dtype=ml_dtypes.bfloat16)
    back = decode_raw("x", "BF16", (2, 1), array.tobytes())
    assert back.dtype == np.float32
    assert back.tolist() == [[1.5], [-2.25]]


@pytest.mark.parametrize(
    ("value", "datatype", "shape"),
    [
        ([1, 2], "INT64", (2,)),
        ([[1.0], [2.0]], "FP64", (2, 1)),
        (True, "BOOL", ()),
        (3, "INT64", ()),
        (np.float32(1.0), "FP32", ()),
        ("text", "BYTES", ()),
        ([2**63], "UINT64", (1,)),
        ([[], []], "FP64", (2, 0)),
    ],
)
def test_lists_and_scalars_follow_numpy(value: Any, datatype: str, shape: tuple[int, ...]) -> None:
    wire = encode("x", value)
    assert (wire.datatype, wire.shape) == (datatype, shape)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([[1], [2, 3]], "one shape"),
        ([None], "NoneType"),
        ([{"a": 1}], "dict"),
        ([2**70], "int"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "datetime64"),
        (np.array([1j]), "complex128"),
        (["\ud800"], "UTF-8"),
    ],
)
def test_what_has_no_wire_form_is_refused_with_the_input(value: Any, sentence: str) -> None:
    with pytest.raises(InvalidArgument, match=f"input 'image'.*{sentence}"):
        encode("image", value)


@given(data=st.data(), name=st.sampled_from(sorted(CONTENTS)))
def test_typed_contents_decode_to_the_same_array(data: st.DataObject, name: str) -> None:
    array = data.draw(npst.arrays(WIRE_DTYPES[name], SHAPES))
    contents = InferTensorContents()
    getattr(contents, CONTENTS[name]).extend(array.ravel().tolist())
    back = decode_contents("y", name, array.shape, contents)
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_typed_bytes_decode() -> None:
    contents = InferTensorContents(bytes_contents=[b"a", b"\xff"])
    assert decode_contents("y", "BYTES", (2, 1), contents).tolist() == [[b"a"], [b"\xff"]]


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "sentence"),
    [
        ("FP32", (2,), b"1234567", "takes 8 bytes, got 7"),
        ("FP99", (1,), b"", "unknown"),
        ("FP32", (-1,), b"", "negative"),
        ("FP32", (0, 2**62, 2**62), b"", "no array has shape"),
        ("BYTES", (1,), b"\1\0", "ends inside a length"),
        ("BYTES", (1,), b"\5\0\0\0ab", "claims 5 bytes"),
        ("BYTES", (2,), b"\1\0\0\0a", "2 elements, got 1"),
        ("BF16", (1,), b"123", "takes 2 bytes"),
    ],
)
def test_raw_contents_that_do_not_fit_are_refused(
    datatype: str, shape: tuple[int, ...], data: bytes, sentence: str
) -> None:
    with pytest.raises(InvalidResponse, match=f"output 'y'.*{sentence}"):
        decode_raw("y", datatype, shape, data)


@pytest.mark.parametrize(
    ("datatype", "contents", "sentence"),
    [
        ("FP16", InferTensorContents(), "only raw"),
        ("FP32", InferTensorContents(fp32_contents=[1.0]), "2 elements, got 1"),
        ("INT8", InferTensorContents(int_contents=[1, 300]), "does not fit INT8"),
    ],
)
def test_typed_contents_that_do_not_fit_are_refused(
    datatype: str, contents: InferTensorContents, sentence: str
) -> None:
    with pytest.raises(InvalidResponse, match=sentence):
        decode_contents("y", datatype, (2,), contents)


@given(data=st.binary(max_size=40), count=st.integers(0, 5))
def test_any_bytes_decode_or_are_refused(data: bytes, count: int) -> None:
    try:
        array = decode_raw("y", "BYTES", (count,), data)
    except InvalidResponse:
        return
    assert encode("y", array).data == data
