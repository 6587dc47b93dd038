"""Tensor bytes to arrays and back."""

import math
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.replica.batches import Array, encode
from tideserve.replica import datatypes, tensors
from tideserve.replica.errors import BadOutputError, WireError

FIXED = [name for name in datatypes.DATATYPES if name != "BYTES"]
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


def sent(array: Array) -> bytes:
    """As `wire` joins it into a message."""
    parts: list[Any] = [tensors.to_data("OUT", array)]
    return b"".join(parts)


def objects(shape: tuple[int, ...], elements: list[Any]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


@given(data=st.data(), datatype=st.sampled_from(FIXED), shape=SHAPES, offset=st.integers(0, 9))
def test_fixed_types_come_and_go_bit_for_bit_wherever_they_lie(
    data: st.DataObject, datatype: str, shape: tuple[int, ...], offset: int
) -> None:
    size = math.prod(shape) * datatypes.numpy_type(datatype).itemsize
    content = data.draw(st.binary(min_size=size, max_size=size))
    if datatype == "BOOL":
        content = bytes(byte & 1 for byte in content)
    message = memoryview(bytes(offset) + content)[offset:]
    array = tensors.to_array(datatype, shape, message)
    assert array.shape == shape
    assert array.dtype == datatypes.numpy_type(datatype)
    assert array.flags.aligned
    assert sent(array) == content


@given(data=st.data(), shape=SHAPES)
def test_bytes_come_and_go(data: st.DataObject, shape: tuple[int, ...]) -> None:
    count = math.prod(shape)
    elements = data.draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
    array = objects(shape, elements)
    encoded = encode(array)
    read = tensors.to_array("BYTES", shape, memoryview(encoded))
    assert read.shape == shape
    assert read.reshape(-1).tolist() == elements
    assert tensors.to_data("OUT", read) == encoded
    if shape:
        content, row_bytes = tensors.to_row_data("OUT", read)
        assert content == encoded
        assert row_bytes == tuple(len(encode(array[at : at + 1])) for at in range(len(array)))


def test_aligned_bytes_are_viewed_and_not_copied() -> None:
    content = bytes(64)
    array = tensors.to_array("FP32", (16,), memoryview(content))
    assert not array.flags.owndata
    assert not array.flags.writeable


@pytest.mark.parametrize("size", [0, 7, 9, 16])
def test_bytes_that_do_not_fill_the_shape_are_named(size: int) -> None:
    with pytest.raises(WireError, match=rf"expected 8 bytes for FP32\[2, 1\], got {size}"):
        tensors.to_array("FP32", (2, 1), memoryview(bytes(size)))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "expected 2 BYTES elements, got 0"),
        (b"\x01\0\0\0a\x01\0\0", "expected 2 BYTES elements, got 1"),
        (b"\x01\0\0\0a\x09\0\0\0abc", "element 1: expected 9 bytes, 3 are left"),
        (b"\xff\xff\xff\xffabc", "element 0: expected 4294967295 bytes, 3 are left"),
        (b"\0\0\0\0\0\0\0\0x", "expected 2 BYTES elements, got 1 bytes more"),
    ],
)
def test_broken_elements_are_named(content: bytes, sentence: str) -> None:
    with pytest.raises(WireError, match=sentence):
        tensors.to_array("BYTES", (2,), memoryview(content))


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype="<i4").reshape(2, 3).T,
        np.arange(12, dtype="<i4").reshape(3, 4)[:, ::2],
        np.arange(6, dtype=">i4").reshape(3, 2),
    ],
    ids=["transposed", "strided", "big endian"],
)
def test_arrays_that_lie_otherwise_are_set_in_order(array: Array) -> None:
    read = np.frombuffer(sent(array), "<i4").reshape(3, 2)
    assert read.tolist() == array.tolist()


@pytest.mark.parametrize(
    "array",
    [objects((2,), ["a", b"b"]), np.array(["a", "b"]), np.array([b"a", b"b"])],
    ids=["object", "str", "bytes"],
)
def test_text_is_sent_as_utf8(array: Array) -> None:
    assert tensors.to_data("OUT", array) == b"\x01\0\0\0a\x01\0\0\0b"


@pytest.mark.parametrize("element", [7, None, 1.5, ["a"]])
def test_an_element_that_is_no_text_is_a_bad_output(element: Any) -> None:
    array = np.empty((1, 1), dtype=object)
    array[0, 0] = element
    kind = type(element).__name__
    with pytest.raises(BadOutputError, match=f"'OUT': expected bytes or str .* got {kind}"):
        tensors.to_row_data("OUT", array)


def test_other_threads_go_on_while_many_strings_are_read_and_written() -> None:
    """The replica's beats among them: compiled code lets no other thread in."""
    count = 400_000
    data = memoryview(b"\x01\0\0\0a" * count)
    looks, over = 0, threading.Event()

    def look() -> None:
        nonlocal looks
        while not over.wait(0.001):
            looks += 1

    thread = threading.Thread(target=look)
    thread.start()
    try:
        before = looks
        array = tensors.to_array("BYTES", (1, count), data)
        read = looks - before
        before = looks
        tensors.to_row_data("OUT", array)
        written = looks - before
    finally:
        over.set()
        thread.join()
    assert min(read, written) >= 3
