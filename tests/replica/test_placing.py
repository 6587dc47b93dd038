"""A model writes its outputs where the frontend reads them, or as it likes."""

import mmap
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.replica.batches import (
    MAX_MESSAGE_BYTES,
    Arrays,
    FunctionBackend,
    config,
    lease,
    read_outcome,
)
from tideserve.replica.arena import Arena, Outbox
from tideserve.replica.model_io import model_io
from tideserve.replica.runner import Runner
from tideserve.v1.arena import MIN_BYTES
from tideserve.v1.model_config_pb2 import ModelConfig
from tideserve.v1.replica_pb2 import BatchFailure, Outcome

OUTCOME_BEGIN = 4096
COLUMNS = MIN_BYTES // 4
VALUES = np.arange(2 * COLUMNS, dtype=np.float32).reshape(2, COLUMNS)


class PlacingModel(FunctionBackend):
    """`declines`: it finds that the outputs do not fit, after it wrote some of them."""

    def __init__(self, function: Callable[[Arrays], Any], *, declines: bool = False) -> None:
        super().__init__(function)
        self.declines = declines
        self.placed: list[Arrays] = []

    def infer_into(self, inputs: Arrays, outputs: Arrays) -> bool:
        self.placed.append(outputs)
        for output in outputs.values():
            output[...] = -1
        if self.declines:
            return False
        for name, array in self.function(inputs).items():
            if name in outputs:
                outputs[name][...] = array
        return True


def arena(size_bytes: int = 1 << 20) -> Arena:
    return Arena(mmap.mmap(-1, size_bytes), OUTCOME_BEGIN, size_bytes)


def identity(columns: int = COLUMNS) -> ModelConfig:
    return config({"x": ("FP32", [columns])}, {"y": ("FP32", [columns])})


def given(outcome: Outcome, memory: Arena) -> Any:
    """What the frontend would read."""
    (tensor,) = outcome.result.outputs
    assert tensor.arena_bytes
    room = memory.room(tensor.arena_offset, tensor.arena_bytes)
    return np.frombuffer(room, np.float32).reshape(tuple(tensor.shape))


def run(runner: Runner, memory: Arena, outbox: Outbox | None = None) -> Outcome:
    outbox = outbox or Outbox(memory)
    return read_outcome(runner.run(lease({"x": VALUES}, 2), MAX_MESSAGE_BYTES, outbox))


def test_a_model_writes_its_outputs_where_they_are_read() -> None:
    model, memory = PlacingModel(lambda inputs: {"y": inputs["x"] * 2}), arena()
    outbox = Outbox(memory)
    outcome = run(Runner(model, model_io(identity())), memory, outbox)
    assert np.array_equal(given(outcome, memory), VALUES * 2)
    assert len(model.placed) == 1
    assert not model.requests
    assert outbox.extent == outcome.result.outputs[0].arena_offset
    assert memory.used_bytes == VALUES.nbytes


def test_a_reshaped_output_is_placed_too() -> None:
    made = identity()
    made.output[0].dims[:] = [2, COLUMNS // 2]
    made.output[0].reshape.shape.append(COLUMNS)
    model, memory = PlacingModel(lambda inputs: {"y": inputs["x"]}), arena()
    outcome = run(Runner(model, model_io(made)), memory)
    assert list(outcome.result.outputs[0].shape) == [2, 2, COLUMNS // 2]
    assert np.array_equal(given(outcome, memory).reshape(VALUES.shape), VALUES)
    assert not model.requests


def test_what_it_declines_is_asked_for_the_ordinary_way_and_not_tried_again() -> None:
    model = PlacingModel(lambda inputs: {"y": inputs["x"]}, declines=True)
    runner, memory = Runner(model, model_io(identity())), arena()
    for _ in range(2):
        outbox = Outbox(memory)
        assert np.array_equal(given(run(runner, memory, outbox), memory), VALUES)
        assert memory.used_bytes == VALUES.nbytes
        assert outbox.extent is not None
        memory.free(outbox.extent)
    assert len(model.placed) == 1
    assert len(model.requests) == 2


def test_a_batch_that_fails_says_why_gives_its_room_back_and_changes_nothing() -> None:
    def fail(inputs: Arrays) -> Arrays:
        raise ValueError("negative weight")

    model = PlacingModel(fail, declines=True)
    runner, memory = Runner(model, model_io(identity())), arena()
    outbox = Outbox(memory)
    outcome = run(runner, memory, outbox)
    assert outcome.failure.kind == BatchFailure.MODEL_ERROR
    assert "negative weight" in outcome.failure.message
    assert outbox.extent is not None, "the exchanger frees it"
    memory.free(outbox.extent)
    model.declines, model.function = False, lambda inputs: {"y": inputs["x"]}
    assert np.array_equal(given(run(runner, memory), memory), VALUES)
    assert len(model.placed) == 2


@pytest.mark.parametrize("case", ["unknown size", "no room", "no memory"])
def test_without_a_size_or_room_the_model_is_asked_the_ordinary_way(case: str) -> None:
    model = PlacingModel(lambda inputs: {"y": inputs["x"]})
    memory = arena(OUTCOME_BEGIN + 4096 if case == "no room" else 1 << 20)
    outbox = None if case == "no memory" else Outbox(memory)
    runner = Runner(model, model_io(identity(-1 if case == "unknown size" else COLUMNS)))
    outcome = read_outcome(runner.run(lease({"x": VALUES}, 2), MAX_MESSAGE_BYTES, outbox))
    assert not model.placed
    (tensor,) = outcome.result.outputs
    assert (tensor.arena_bytes > 0) == (case == "unknown size")
    if not tensor.arena_bytes:
        assert tensor.data == VALUES.tobytes()


@pytest.mark.parametrize("has_arena", [True, False])
def test_small_outputs_are_written_to_the_same_arrays_batch_after_batch(has_arena: bool) -> None:
    model = PlacingModel(lambda inputs: {"y": inputs["x"] + 1})
    runner, memory = Runner(model, model_io(identity(4))), arena()
    outcomes: list[tuple[Any, bytes]] = []
    for rows in (1, 2, 1):
        values = VALUES[:rows, :4] + len(outcomes)
        made = lease({"x": np.ascontiguousarray(values)}, rows)
        outbox = Outbox(memory) if has_arena else None
        outcomes.append((values + 1, runner.run(made, MAX_MESSAGE_BYTES, outbox)))
    for expected, field in outcomes:
        (tensor,) = read_outcome(field).result.outputs
        assert tuple(tensor.shape) == expected.shape
        assert tensor.data == expected.tobytes()
    assert model.placed[0]["y"] is model.placed[2]["y"]
    assert not model.requests
    assert not memory.used_bytes


def test_what_a_kind_of_batches_declines_the_others_may_have() -> None:
    model = PlacingModel(lambda inputs: {"y": inputs["x"]})
    made = identity(4)
    made.input.add(name="z", data_type=made.input[0].data_type, dims=[4], optional=True)
    runner = Runner(model, model_io(made))
    small = np.ascontiguousarray(VALUES[:, :4])
    for arrays, declines in (({"x": small, "z": small}, True), ({"x": small}, False)):
        model.declines = declines
        for _ in range(2):
            outcome = read_outcome(runner.run(lease(arrays, 2), MAX_MESSAGE_BYTES))
            assert outcome.result.outputs[0].data == small.tobytes()
    assert len(model.requests) == 2, "of the kind that declined"
    assert len(model.placed) == 3


def test_what_was_reserved_in_vain_is_given_back() -> None:
    memory = arena()
    outbox = Outbox(memory)
    reserved = outbox.reserve([VALUES.nbytes])
    assert reserved is not None
    assert [offset for offset, _ in reserved] == [outbox.extent]
    offsets = outbox.put([VALUES])
    assert offsets == [outbox.extent]
    assert memory.used_bytes == VALUES.nbytes
    assert bytes(memory.room(offsets[0], VALUES.nbytes)) == VALUES.tobytes()
