from pathlib import Path

import numpy as np
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
    TideserveClientError,
)
from tideserve.client import segments as client_segments
from tideserve.client.inference import InferOptions, encoded, request_from
from tideserve.client.segments import Segment, SegmentPool
from tideserve.client.stream_order import Answered, SentRequest, StreamOrder
from tideserve.v1.inference_pb2 import ModelInferResponse, ModelStreamInferResponse


def send(table: StreamOrder, request_id: str = "", segment: Segment | None = None) -> str:
    sent = SentRequest("m", segment=segment)
    table.sent(request_id, sent)
    return sent.request_id


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
    ids = [send(table, f"r{n}") for n in range(6)]
    left: list[str] = []
    for n in order:
        left += [reply.request_id for reply in table.answered(answer(ids[n])).leaving]
    assert left == ids
    assert table.unanswered == 0
    assert table.unread == 6


def test_an_answer_without_an_id_is_the_oldest_requests() -> None:
    table = StreamOrder(10)
    send(table, "a")
    send(table, "b")
    (reply,) = table.answered(failure("no")).leaving
    assert isinstance(reply, StreamRequestError)
    assert reply.request_id == "a"


def test_a_code_beside_the_sentence_makes_the_error_typed() -> None:
    table = StreamOrder(10)
    send(table, "a")
    (reply,) = table.answered(failure("raised", "a", 13)).leaving
    assert isinstance(reply, ModelError)
    assert (reply.message, reply.model, reply.request_id) == ("raised", "m", "a")


def test_ids_made_here_differ_from_those_in_use() -> None:
    table = StreamOrder(10)
    send(table, "stream-1")
    assert send(table, "") == "stream-2"


def test_an_id_in_use_is_refused_and_free_again_once_answered() -> None:
    table = StreamOrder(10)
    send(table, "a")
    with pytest.raises(InvalidArgument, match="in use"):
        send(table, "a")
    table.answered(answer("a"))
    assert send(table, "a") == "a"


def test_no_more_than_max_outstanding_wait_to_be_read() -> None:
    table = StreamOrder(1)
    send(table, "a")
    table.answered(answer("a"))
    with pytest.raises(ResourceExhausted, match="receive some first"):
        send(table, "b")
    table.read()
    assert send(table, "b") == "b"


@pytest.mark.parametrize("request_id", ["other", "", "b"])
def test_an_answer_to_nothing_is_refused(request_id: str) -> None:
    table = StreamOrder(10)
    send(table, "a")
    send(table, "b")
    table.answered(answer("b"))
    if not request_id:
        table.answered(answer("a"))
    with pytest.raises(InvalidResponse, match="not waiting"):
        table.answered(answer(request_id))


def test_an_answer_that_does_not_decode_fails_its_request_only() -> None:
    table = StreamOrder(10)
    send(table, "a")
    response = answer("a")
    response.infer_response.outputs.add(name="y", datatype="FP32", shape=[1])
    (reply,) = table.answered(response).leaving
    assert isinstance(reply, InvalidResponse)
    assert reply.request_id == "a"
    send(table, "b")
    assert isinstance(table.answered(answer("b")).leaving[0], StreamResult)


# --- segments -----------------------------------------------------------------------------------


@pytest.fixture
def segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Segment:
    monkeypatch.setattr(client_segments, "FOLDER", tmp_path)
    segment, _ = SegmentPool(is_on=True).make(1)
    assert segment is not None
    return segment


LARGE = np.arange(100_000, dtype=np.float32)
INPUTS = {"a": LARGE, "small": LARGE[:3], "b": LARGE[::-1]}


def sent_with(segment: Segment) -> SentRequest:
    options = InferOptions(priority=3)
    request = request_from("m", encoded("m", INPUTS, options), options, segment)
    return SentRequest("m", segment=segment, request=request)


def unknown(segment: Segment, request_id: str, code: int | None = 3) -> ModelStreamInferResponse:
    return failure(f"region '{segment.name}' is not registered", request_id, code)


@pytest.mark.parametrize("response", [answer("b"), failure("raised", "b", 13)])
def test_an_answer_frees_its_segment_even_where_an_older_one_holds_it_back(
    segment: Segment, response: ModelStreamInferResponse
) -> None:
    table = StreamOrder(10)
    send(table, "a")
    send(table, "b", segment)
    had_segments = table.has_segments
    assert table.answered(response) == Answered([], segment)
    assert (had_segments, table.has_segments) == (True, False)
    assert table.ended() == []
    leaving = table.answered(answer("a"))
    assert [reply.request_id for reply in leaving.leaving] == ["a", "b"]
    assert leaving.segment is None


def test_what_has_no_answer_at_the_end_is_named_once(segment: Segment) -> None:
    table = StreamOrder(10)
    send(table, "a", segment)
    send(table, "b")
    assert table.ended() == [segment]
    assert table.ended() == []
    assert not table.has_segments


def test_outputs_in_the_segment_are_copied_when_the_answer_comes(segment: Segment) -> None:
    table = StreamOrder(10)
    send(table, "a", segment)
    segment.memory[64:67] = b"abc"
    response = answer("a")
    output = response.infer_response.outputs.add(name="y", datatype="UINT8", shape=[3])
    output.parameters["shared_memory_region"].string_param = segment.name
    output.parameters["shared_memory_offset"].int64_param = 64
    output.parameters["shared_memory_byte_size"].int64_param = 3
    response.infer_response.raw_output_contents.append(b"")
    (reply,) = table.answered(response).leaving
    segment.memory[64:67] = b"xyz"
    assert isinstance(reply, StreamResult)
    assert reply.outputs["y"].tobytes() == b"abc"


@pytest.mark.parametrize("code", [3, 5, None])
def test_a_request_whose_segment_is_unknown_is_sent_again_once_as_it_would_have_been_without(
    segment: Segment, code: int | None
) -> None:
    table = StreamOrder(10)
    sent = sent_with(segment)
    table.sent("a", sent)
    assert sent.request is not None
    sent.request.id = "a"
    send(table, "b")

    answered = table.answered(unknown(segment, "a", code))

    options = InferOptions(priority=3, request_id="a")
    assert answered.again == request_from("m", encoded("m", INPUTS, options), options)
    assert (answered.leaving, answered.segment) == ([], segment)
    assert not table.has_segments
    assert table.answered(answer("b")).leaving == []
    error, result = table.answered(unknown(segment, "a", code)).leaving
    assert isinstance(error, TideserveClientError)
    assert (error.request_id, result.request_id) == ("a", "b")


def test_an_answer_without_an_id_is_not_that_of_a_request_sent_again_before_an_older_one(
    segment: Segment,
) -> None:
    table = StreamOrder(10)
    table.sent("a", sent_with(segment))
    send(table, "b")
    assert table.answered(unknown(segment, "")).again is not None
    assert table.answered(failure("no")).leaving == []
    leaving = table.answered(answer()).leaving
    assert [type(it) for it in leaving] == [StreamResult, StreamRequestError]


def test_another_mistake_is_not_sent_again(segment: Segment) -> None:
    table = StreamOrder(10)
    table.sent("a", sent_with(segment))
    answered = table.answered(failure("expected FP64", "a", 3))
    assert (answered.again, answered.segment) == (None, segment)
    assert isinstance(answered.leaving[0], InvalidArgument)
