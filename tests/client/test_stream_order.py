import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.client import (
    InvalidArgument,
    InvalidResponse,
    ModelError,
    ResourceExhausted,
    StreamRequestError,
    StreamResult,
)
from tideserve.client.stream_order import StreamOrder
from tideserve.v1.inference_pb2 import ModelInferResponse, ModelStreamInferResponse


def answer(request_id: str = "") -> ModelStreamInferResponse:
    return ModelStreamInferResponse(infer_response=ModelInferResponse(id=request_id))


def failure(
    message: str, request_id: str = "", code: int | None = None
) -> ModelStreamInferResponse:
    response = ModelStreamInferResponse(error_message=message)
    response.infer_response.id = request_id
    if code is not None:
        response.infer_response.parameters["grpc_status"].int64_param = code
    return response


@given(order=st.permutations(range(6)))
def test_results_leave_in_the_order_of_the_requests(order: list[int]) -> None:
    table = StreamOrder(10)
    ids = [table.sent(f"r{n}", "m") for n in range(6)]
    left: list[str] = []
    for n in order:
        left += [reply.request_id for reply in table.answered(answer(ids[n]))]
    assert left == ids
    assert table.unanswered == 0
    assert table.unread == 6


def test_an_answer_without_an_id_is_the_oldest_requests() -> None:
    table = StreamOrder(10)
    table.sent("a", "m")
    table.sent("b", "m")
    (reply,) = table.answered(failure("no"))
    assert isinstance(reply, StreamRequestError)
    assert reply.request_id == "a"


def test_a_code_beside_the_sentence_makes_the_error_typed() -> None:
    table = StreamOrder(10)
    table.sent("a", "m")
    (reply,) = table.answered(failure("raised", "a", 13))
    assert isinstance(reply, ModelError)
    assert (reply.message, reply.model, reply.request_id) == ("raised", "m", "a")


def test_ids_made_here_differ_from_those_in_use() -> None:
    table = StreamOrder(10)
    table.sent("stream-1", "m")
    assert table.sent("", "m") == "stream-2"


def test_an_id_in_use_is_refused_and_free_again_once_answered() -> None:
    table = StreamOrder(10)
    table.sent("a", "m")
    with pytest.raises(InvalidArgument, match="in use"):
        table.sent("a", "m")
    table.answered(answer("a"))
    assert table.sent("a", "m") == "a"


def test_no_more_than_max_outstanding_wait_to_be_read() -> None:
    table = StreamOrder(1)
    table.sent("a", "m")
    table.answered(answer("a"))
    with pytest.raises(ResourceExhausted, match="receive some first"):
        table.sent("b", "m")
    table.read()
    assert table.sent("b", "m") == "b"


@pytest.mark.parametrize("request_id", ["other", "", "b"])
def test_an_answer_to_nothing_is_refused(request_id: str) -> None:
    table = StreamOrder(10)
    table.sent("a", "m")
    table.sent("b", "m")
    table.answered(answer("b"))
    if not request_id:
        table.answered(answer("a"))
    with pytest.raises(InvalidResponse, match="not waiting"):
        table.answered(answer(request_id))


def test_an_answer_that_does_not_decode_fails_its_request_only() -> None:
    table = StreamOrder(10)
    table.sent("a", "m")
    response = answer("a")
    response.infer_response.outputs.add(name="y", datatype="FP32", shape=[1])
    (reply,) = table.answered(response)
    assert isinstance(reply, InvalidResponse)
    assert reply.request_id == "a"
    table.sent("b", "m")
    assert isinstance(table.answered(answer("b"))[0], StreamResult)
