"""A session's bindings, used again where tensors lie where they lay."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.replica.batches import Array
from tests.replica.model_files import write_onnx
from tideserve.replica.backends import onnx_bindings
from tideserve.replica.backends.onnx_bindings import Bindings

LARGE = onnx_bindings._SMALL_BYTES // 4  # columns of FP32


class CountingSession:
    """An InferenceSession, how many bindings it made, and how often it ran without."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.made = self.unbound = 0

    def run(self, names: list[str], feeds: dict[str, Array]) -> Any:
        self.unbound += 1
        return self._session.run(names, feeds)

    def io_binding(self) -> Any:
        self.made += 1
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self._session.run_with_iobinding(binding)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> ort.InferenceSession:
    path = write_onnx(
        Path(tmp_path_factory.mktemp("model")) / "model.onnx",
        [helper.make_node("Add", ["IN", "IN"], ["OUT"])],
        [("IN", TensorProto.FLOAT, ["batch", "columns"])],
        [("OUT", TensorProto.FLOAT, ["batch", "columns"])],
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(path), options)


def filled(value: float, columns: int) -> Array:
    return np.full((1, columns), value, np.float32)


def test_small_inputs_may_lie_anywhere(twice: ort.InferenceSession) -> None:
    session = CountingSession(twice)
    bindings = Bindings(session)
    output = filled(0, 4)
    inputs = [filled(value, 4) for value in range(8)]
    for value, array in enumerate(inputs):
        assert bindings.run({"IN": array}, {"OUT": output})
        assert (output == 2 * value).all()
    assert (session.made, session.unbound) == (1, 1)


def test_large_inputs_are_read_where_they_lie(twice: ort.InferenceSession) -> None:
    session = CountingSession(twice)
    bindings = Bindings(session)
    places = [filled(0, LARGE), filled(0, LARGE)]
    output = filled(0, LARGE)
    for value in range(6):
        place = places[value % 2]
        place[...] = value
        assert bindings.run({"IN": place}, {"OUT": output})
        assert (output == 2 * value).all()
    assert session.made == 2


@given(steps=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.booleans()), max_size=40))
def test_whatever_lies_where_each_batch_gets_its_own(
    twice: ort.InferenceSession, steps: list[tuple[int, int, bool]]
) -> None:
    bindings = Bindings(twice)
    memory = np.zeros(8 * LARGE, np.float32)
    for value, (source, target, is_small) in enumerate(steps):
        columns = LARGE // 2 if is_small else LARGE
        given_array = memory[source * LARGE :][:columns].reshape(1, columns)
        output = memory[(4 + target) * LARGE :][:columns].reshape(1, columns)
        given_array[...] = value
        assert bindings.run({"IN": given_array}, {"OUT": output})
        assert (output == 2 * value).all()


def test_where_every_batch_has_another_shape_none_is_made(twice: ort.InferenceSession) -> None:
    session = CountingSession(twice)
    bindings = Bindings(session)
    for columns in range(1, 20):
        output = filled(0, columns)
        assert bindings.run({"IN": filled(columns, columns)}, {"OUT": output})
        assert (output == 2 * columns).all()
    assert (session.made, session.unbound) == (0, 19)


@pytest.mark.parametrize("limit", ["_MAX_BINDINGS", "_MAX_HELD_BYTES"])
def test_they_are_made_anew_when_there_are_too_many(
    limit: str, twice: ort.InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_bindings, limit, 2 if limit == "_MAX_BINDINGS" else 4 * (1 + 2))
    session = CountingSession(twice)
    bindings = Bindings(session)
    output = [filled(0, columns) for columns in (1, 2, 3)]
    for _ in range(3):
        for columns in (1, 2, 3):
            assert bindings.run({"IN": filled(7, columns)}, {"OUT": output[columns - 1]})
            assert (output[columns - 1] == 14).all()
    assert (session.made, session.unbound) == (6, 3)


def test_what_was_seen_is_forgotten_when_it_is_too_much(
    twice: ort.InferenceSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_bindings, "_MAX_SEEN", 2)
    session = CountingSession(twice)
    bindings = Bindings(session)
    output = [filled(0, columns) for columns in (1, 2, 3)]
    for columns in (1, 2, 3, 1, 1):
        assert bindings.run({"IN": filled(7, columns)}, {"OUT": output[columns - 1]})
    assert (session.made, session.unbound) == (1, 4)


def test_an_output_of_another_shape_is_not_taken_for_written(twice: ort.InferenceSession) -> None:
    bindings = Bindings(twice)
    assert not bindings.run({"IN": filled(1, 4)}, {"OUT": filled(0, 3)})


def test_a_run_that_fails_leaves_none_behind(twice: ort.InferenceSession) -> None:
    session = CountingSession(twice)
    bindings = Bindings(session)
    with pytest.raises(Exception, match="OUT"):
        bindings.run({"IN": filled(1, LARGE)}, {"OUT": filled(0, LARGE + 1)})
    output = filled(0, LARGE)
    assert bindings.run({"IN": filled(1, LARGE)}, {"OUT": output})
    assert (output == 2).all()
    assert session.made == 2


@pytest.mark.parametrize(
    "array", [filled(1, 8)[:, ::2], np.array([["a"]], dtype=object), filled(1, 4).astype(">f4")]
)
def test_what_has_no_plain_bytes_is_refused(twice: ort.InferenceSession, array: Array) -> None:
    """Where it is to be bound, as what is seen a second time."""
    bindings = Bindings(twice)
    with suppress(Exception):
        bindings.run({"IN": filled(1, 4)}, {"OUT": array})
    with pytest.raises(ValueError, match="expected a contiguous array of numbers"):
        bindings.run({"IN": filled(1, 4)}, {"OUT": array})
