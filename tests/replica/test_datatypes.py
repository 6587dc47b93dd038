"""The three names of each data type."""

import sys

import numpy as np
import pytest

from tideserve.replica import datatypes
from tideserve.replica.errors import LoadError
from tideserve.v1.model_config_pb2 import TYPE_INVALID, TYPE_STRING, DataType

BYTES_OF_ONE = {
    "BOOL": 1, "UINT8": 1, "UINT16": 2, "UINT32": 4, "UINT64": 8, "INT8": 1, "INT16": 2,
    "INT32": 4, "INT64": 8, "FP16": 2, "BF16": 2, "FP32": 4, "FP64": 8,
}  # fmt: skip


def test_every_type_of_the_configuration_has_a_name_on_the_wire_and_back() -> None:
    kinds = [kind for kind in DataType.values() if kind != TYPE_INVALID]
    names = [datatypes.from_config(kind) for kind in kinds]
    assert sorted(names) == sorted(datatypes.DATATYPES)
    assert [datatypes.to_config(name) for name in names] == kinds


def test_no_type_has_no_name() -> None:
    assert datatypes.from_config(TYPE_INVALID) == ""


def test_text_is_bytes_on_the_wire() -> None:
    assert datatypes.from_config(TYPE_STRING) == "BYTES"
    assert datatypes.numpy_type("BYTES") == np.dtype(object)


@pytest.mark.parametrize("name", BYTES_OF_ONE)
def test_arrays_have_the_wires_size_and_order(name: str) -> None:
    array_type = datatypes.numpy_type(name)
    assert array_type.itemsize == BYTES_OF_ONE[name]
    assert datatypes.wire_name(array_type) == name
    assert datatypes.wire_name(array_type.newbyteorder(">")) == name


@pytest.mark.parametrize("text", ["O", "S3", "U3"])
def test_arrays_of_text_are_bytes(text: str) -> None:
    assert datatypes.wire_name(np.dtype(text)) == "BYTES"


def test_a_type_without_a_name_on_the_wire_keeps_its_own() -> None:
    assert datatypes.wire_name(np.dtype("complex64")) == "complex64"


@pytest.mark.parametrize("name", ["", "FP8", "fp32", "TYPE_FP32"])
def test_an_unknown_name_is_refused_with_the_known(name: str) -> None:
    with pytest.raises(LoadError, match=rf"expected a datatype of BOOL, .*BYTES, got '{name}'"):
        datatypes.numpy_type(name)


def test_bf16_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    datatypes.numpy_type.cache_clear()
    with pytest.raises(LoadError, match="BF16 needs the package ml-dtypes"):
        datatypes.numpy_type("BF16")
