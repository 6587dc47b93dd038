"""Typed contents against numpy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.typed_contents import TYPED_CONTENTS, pack
from tideserve.v1.inference_pb2 import InferTensorContents

NUMBERS = sorted(set(TYPED_CONTENTS) - {"BYTES"})


def contents_of(datatype: str, values: list[object]) -> InferTensorContents:
    contents = InferTensorContents()
    getattr(contents, TYPED_CONTENTS[datatype][0]).extend(values)
    return contents


def values_of(datatype: str) -> st.SearchStrategy[list[object]]:
    dtype = np.dtype(TYPED_CONTENTS[datatype][1])
    if datatype == "BOOL":
        element: st.SearchStrategy[object] = st.booleans()
    elif dtype.kind == "f":
        element = st.floats(width=32 if dtype.itemsize == 4 else 64)
    else:
        limits = np.iinfo(dtype)
        element = st.integers(int(limits.min), int(limits.max)) | st.integers(0, 127)
    return st.lists(element, max_size=300)


@given(st.sampled_from(NUMBERS).flatmap(lambda name: st.tuples(st.just(name), values_of(name))))
def test_any_values_are_numpys_bytes(given_values: tuple[str, list[object]]) -> None:
    datatype, values = given_values
    expected = np.array(values, TYPED_CONTENTS[datatype][1]).tobytes()
    assert pack(contents_of(datatype, values), datatype) == expected


@pytest.mark.parametrize(
    ("datatype", "value"), [("INT8", 128), ("INT16", -(2**15) - 1), ("UINT8", 256)]
)
def test_what_does_not_fit_is_named_with_the_range(datatype: str, value: int) -> None:
    limits = np.iinfo(TYPED_CONTENTS[datatype][1])
    with pytest.raises(OverflowError, match=f"{limits.min} to {limits.max}, got {value}"):
        pack(contents_of(datatype, [1, value, 2]), datatype)


def test_fields_of_a_later_protocol_change_nothing() -> None:
    message = contents_of("INT32", [1, -2]).SerializeToString() + b"\xf8\x01\x05"
    assert pack(InferTensorContents.FromString(message), "INT32") == bytes(
        [1, 0, 0, 0, 0xFE, 0xFF, 0xFF, 0xFF]
    )
