"""How much room outputs are given: the last answer's, within bounds."""

from tideserve.client.output_room import MAX_KINDS, MAX_ROOM_BYTES, Kind, OutputRoom
from tideserve.v1.inference_pb2 import ModelInferResponse
from tideserve.v1.segments import MIN_OUTPUT_BYTES


def kind(number: int = 0) -> Kind:
    return ("m", "", None, (("x", (number,)),))


def answer(*raw_bytes: int, placed_bytes: int = 0) -> ModelInferResponse:
    response = ModelInferResponse()
    for size in raw_bytes:
        response.outputs.add(name=str(size))
        response.raw_output_contents.append(bytes(size))
    if placed_bytes:
        output = response.outputs.add(name="placed")
        output.parameters["shared_memory_byte_size"].int64_param = placed_bytes
        response.raw_output_contents.append(b"")
    return response


def test_the_room_is_that_of_the_last_answers_large_outputs_wherever_they_were() -> None:
    room = OutputRoom()
    assert room.of(kind()) == 0
    room.on_answer(kind(), answer(10, MIN_OUTPUT_BYTES + 1, placed_bytes=MIN_OUTPUT_BYTES))
    assert room.of(kind()) == 2 * MIN_OUTPUT_BYTES + 64
    assert room.of(kind(1)) == 0
    room.on_answer(kind(), answer(MIN_OUTPUT_BYTES))
    assert room.of(kind()) == MIN_OUTPUT_BYTES


def test_small_answers_and_too_large_ones_have_none() -> None:
    room = OutputRoom()
    for response in (
        answer(MIN_OUTPUT_BYTES - 1),
        answer(),
        answer(1000, placed_bytes=MAX_ROOM_BYTES + 1),
    ):
        room.on_answer(kind(), answer(MIN_OUTPUT_BYTES))
        room.on_answer(kind(), response)
        assert room.of(kind()) == 0
    room.on_answer(kind(), answer(placed_bytes=MAX_ROOM_BYTES))
    assert room.of(kind()) == MAX_ROOM_BYTES


def test_typed_contents_are_not_counted() -> None:
    response = ModelInferResponse()
    response.outputs.add(name="y").contents.fp32_contents.extend([0.0] * MIN_OUTPUT_BYTES)
    room = OutputRoom()
    room.on_answer(kind(), response)
    assert room.of(kind()) == 0


def test_the_kinds_used_last_are_remembered() -> None:
    room = OutputRoom()
    for number in range(MAX_KINDS):
        room.on_answer(kind(number), answer(MIN_OUTPUT_BYTES))
    assert room.of(kind(0))
    room.on_answer(kind(MAX_KINDS), answer(MIN_OUTPUT_BYTES))
    assert [bool(room.of(kind(number))) for number in (0, 1, 2, MAX_KINDS)] == [
        True,
        False,
        True,
        True,
    ]
