"""Contents that come for a plan that is known: those that fit it, and those that do not."""

import pytest

from tests.server.pieces import parts_of
from tests.server.samples import add_input, elements, make_spec
from tideserve.server.infer_inputs import fill
from tideserve.server.model_spec import TensorSpec
from tideserve.server.payload import read_inputs
from tideserve.v1.inference_pb2 import ModelInferRequest

SPEC = make_spec(
    [
        TensorSpec("a", "FP32", (2,)),
        TensorSpec("b", "INT64", (-1,)),
        TensorSpec("s", "BYTES", (1,), optional=True),
    ]
)
NUMBERS = [b"\x02" * 16, b"\x01" * 16]
WORDS = elements([2], [b"first", b""])


def request_of(*, words: bytes | None = None) -> ModelInferRequest:
    """Of two rows, in another order than the model's."""
    request = ModelInferRequest(model_name="m")
    if words is not None:
        add_input(request, "s", "BYTES", [2, 1], words)
    add_input(request, "b", "INT64", [2, 1], NUMBERS[0])
    add_input(request, "a", "FP32", [2, 2], NUMBERS[1])
    return request


def test_contents_in_the_order_of_the_first_request_make_the_same_of_them() -> None:
    for request in (request_of(), request_of(words=WORDS)):
        read = read_inputs(request, SPEC)

        assert fill(read.plan, list(request.raw_input_contents)) == read


@pytest.mark.parametrize(
    "raw", [[], NUMBERS[:1], [*NUMBERS, b""], [NUMBERS[0], b""], [NUMBERS[0] + b"\0", NUMBERS[1]]]
)
def test_contents_of_another_number_or_size_do_not_fit(raw: list[bytes]) -> None:
    plan = read_inputs(request_of(), SPEC).plan

    assert fill(plan, raw) is None


@pytest.mark.parametrize("sizes", [(3, 2), (0, 5)])
def test_strings_in_parts_are_counted(sizes: tuple[int, int]) -> None:
    plan = read_inputs(request_of(words=WORDS), SPEC).plan
    wrong = WORDS[: -sizes[0] or None] + bytes(sizes[1])

    assert fill(plan, [parts_of(wrong, [5, 9]), *NUMBERS]) is None
    assert fill(plan, [parts_of(WORDS, [5, 9]), *NUMBERS]) is not None
