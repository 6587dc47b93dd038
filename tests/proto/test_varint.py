"""Numbers as protobuf writes them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.v1.replica_pb2 import ExchangeResponse
from tideserve.v1.varint import varint


@given(st.integers(0, 2**64 - 1))
def test_it_is_protobufs(number: int) -> None:
    field_one = b"\x08" + varint(number)
    assert ExchangeResponse.FromString(field_one).sequence == number
    assert field_one == ExchangeResponse(sequence=number).SerializeToString() or number == 0


def test_a_negative_number_is_no_other_numbers_bytes() -> None:
    with pytest.raises(AssertionError, match="negative"):
        varint(-1)
