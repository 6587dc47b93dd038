"""Hand-made pieces of messages are read by protobuf as what they were made of."""

from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.wire import embedded, header
from tideserve.v1.inference_pb2 import ModelInferResponse, ModelStreamInferResponse
from tideserve.v1.replica_pb2 import Tensor
from tideserve.v1.varint import varint


@given(st.integers(1, 2**29 - 1), st.integers(0, 2**31 - 1))
def test_a_header_names_the_field_and_the_length(field_number: int, length: int) -> None:
    assert header(field_number, length) == varint(field_number * 8 + 2) + varint(length)


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_embedded_pieces_are_one_field(pieces: list[bytes]) -> None:
    tensor = Tensor.FromString(b"".join(embedded(Tensor.DATA_FIELD_NUMBER, pieces)))

    assert tensor.data == b"".join(pieces)


@given(st.binary(max_size=20_000))
def test_views_and_messages_embed_alike(data: bytes) -> None:
    inner = ModelInferResponse(raw_output_contents=[data]).SerializeToString()
    outer = b"".join(
        embedded(ModelStreamInferResponse.INFER_RESPONSE_FIELD_NUMBER, [memoryview(inner)])
    )

    assert ModelStreamInferResponse.FromString(outer).infer_response.raw_output_contents == [data]
