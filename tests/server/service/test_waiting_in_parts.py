"""Requests in parts that wait in a queue keep what was read with them for a second and no longer."""

import random
import sys

import pytest

from tests.server.fake_front import INFER, World, echo
from tests.server.samples import make_config, make_found
from tideserve.server.front import Call
from tideserve.server.parts import OWN_AFTER_S, Parts
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse

COLUMNS = 30_000
# A test's variable, and the argument of `sys.getrefcount`.
ALONE = 2
ROWS = [random.Random(seed).randbytes(4 * COLUMNS) for seed in range(3)]


def message(row: bytes) -> bytes:
    request = ModelInferRequest(model_name="m")
    request.inputs.add(name="IN", datatype="FP32", shape=[1, COLUMNS])
    request.raw_input_contents.append(row)
    return request.SerializeToString()


@pytest.fixture
def world() -> World:
    config = make_config()
    config.input[0].dims[:] = config.output[0].dims[:] = [COLUMNS]
    return World(make_found(config=config))


def post(world: World, call_id: int, row: bytes, cuts: int) -> bytes:
    """Its request in so many parts; what was read, which they are views of."""
    payload = message(row)
    read = payload + bytes(1_000_000)
    step = len(payload) // cuts + 1
    view = memoryview(read)
    pieces: list[bytes | memoryview] = [
        view[at : min(at + step, len(payload))] for at in range(0, len(payload), step)
    ]
    parts = Parts(pieces, len(payload))
    world.turn(Call(call_id, INFER, b"", (), "peer", None, parts))
    return read


# The plan of the first is made from what is joined; the second has one part, the third many.
@pytest.mark.parametrize("cuts", [1, 7])
def test_after_a_second_it_has_its_own_bytes(world: World, cuts: int) -> None:
    replica = world.replica()
    post(world, 501, ROWS[0], 3)
    read = post(world, 502, ROWS[1], cuts)
    world.turn(after_s=OWN_AFTER_S / 2)
    early = sys.getrefcount(read)
    world.turn(after_s=OWN_AFTER_S)
    late = sys.getrefcount(read)
    assert early > late == ALONE
    exchange = replica.exchange()
    replica.exchange(echo(replica.lease(exchange)))
    for call_id, row in ((501, ROWS[0]), (502, ROWS[1])):
        assert world.answer(call_id, ModelInferResponse).raw_output_contents == [row]


def test_one_that_has_left_is_not_looked_for(world: World) -> None:
    replica = world.replica()
    post(world, 501, ROWS[0], 3)
    read = post(world, 502, ROWS[1], 7)
    world.cancel(502)
    left = sys.getrefcount(read)
    assert left == ALONE
    world.turn(after_s=2 * OWN_AFTER_S)
    exchange = replica.exchange()
    replica.exchange(echo(replica.lease(exchange)))
    assert world.answer(501, ModelInferResponse).raw_output_contents == [ROWS[0]]


def test_no_more_is_copied_in_a_tick_than_it_may(world: World) -> None:
    world.replica()
    post(world, 501, ROWS[0], 3)
    reads = [post(world, call_id, ROWS[1], 7) for call_id in (502, 503, 504)]
    inference = world.services.inference
    for left in (3, 3, 2, 1, 0):  # the first is the one that was joined for its plan
        kept = [sys.getrefcount(read) > ALONE + 1 for read in reads]  # and the list's
        assert kept == [False] * (3 - left) + [True] * left
        inference.on_tick(world.now_s + OWN_AFTER_S, 1)
