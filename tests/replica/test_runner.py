"""Leases become arrays, arrays become outcomes, and what does not fit is named."""

import logging
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.replica.batches import (
    MAX_MESSAGE_BYTES,
    Array,
    Arrays,
    config,
    lease,
    outputs_of,
    read_outcome,
    runner_of,
)
from tideserve.replica.errors import BadOutputError, LoadError
from tideserve.replica.model_io import model_io
from tideserve.replica.runner import FRAME_BYTES
from tideserve.replica.wire import Lease, TensorIn
from tideserve.v1.model_config_pb2 import ModelConfig
from tideserve.v1.replica_pb2 import BatchFailure, Outcome

FIXED = {
    "BOOL": np.array([[True, False], [False, False]]),
    "UINT8": np.array([[0, 255], [1, 2]], np.uint8),
    "UINT16": np.array([[0, 65535], [1, 2]], np.uint16),
    "UINT32": np.array([[0, 2**32 - 1], [1, 2]], np.uint32),
    "UINT64": np.array([[0, 2**64 - 1], [1, 2]], np.uint64),
    "INT8": np.array([[-128, 127], [1, 2]], np.int8),
    "INT16": np.array([[-32768, 32767], [1, 2]], np.int16),
    "INT32": np.array([[-(2**31), 2**31 - 1], [1, 2]], np.int32),
    "INT64": np.array([[-(2**63), 2**63 - 1], [1, 2]], np.int64),
    "FP16": np.array([[0.5, np.inf], [-0.0, 2]], np.float16),
    "BF16": np.array([[0.5, 3e38], [-0.0, 2]], ml_dtypes.bfloat16),
    "FP32": np.array([[0.1, 3e38], [-0.0, 2]], np.float32),
    "FP64": np.array([[0.1, 1e308], [-0.0, 2]], np.float64),
}


def objects(rows: list[list[bytes]]) -> Array:
    array = np.empty((len(rows), len(rows[0])), dtype=object)
    array[:] = rows
    return array


def run(
    made: ModelConfig,
    function: Callable[[Arrays], Any],
    given: Lease,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
) -> Outcome:
    runner, _, _ = runner_of(made, function)
    return read_outcome(runner.run(given, max_message_bytes))


def failure_of(outcome: Outcome) -> tuple[int, str]:
    assert outcome.WhichOneof("outcome") == "failure"
    return outcome.failure.kind, outcome.failure.message


def identity(datatype: str = "FP32", dims: tuple[int, ...] = (2,), rows: int = 8) -> ModelConfig:
    return config({"x": (datatype, dims)}, {"y": (datatype, dims)}, rows)


# --- types and shapes ---------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", FIXED)
def test_every_type_arrives_and_leaves_bit_for_bit(datatype: str) -> None:
    array = FIXED[datatype]
    runner, backend, _ = runner_of(identity(datatype), lambda inputs: {"y": inputs["x"]})
    outcome = read_outcome(runner.run(lease({"x": array}, 2, number=5), MAX_MESSAGE_BYTES))
    assert outcome.lease_id == 5
    (tensor,) = outcome.result.outputs
    assert (tensor.name, tensor.datatype, list(tensor.shape)) == ("y", datatype, [2, 2])
    assert tensor.data == array.tobytes()
    assert not tensor.row_bytes
    seen = backend.requests[0][0]["x"]
    assert seen.dtype == array.dtype
    assert seen.tobytes() == array.tobytes()


def test_bytes_elements_arrive_as_bytes_and_leave_with_the_bytes_of_each_row() -> None:
    array = objects([[b"", b"\0\xff"], [b"abc", b"x" * 300]])
    runner, backend, _ = runner_of(identity("BYTES"), lambda inputs: {"y": inputs["x"]})
    outcome = read_outcome(runner.run(lease({"x": array}, 2), MAX_MESSAGE_BYTES))
    np.testing.assert_array_equal(outputs_of(outcome)["y"], array)
    (tensor,) = outcome.result.outputs
    assert list(tensor.row_bytes) == [4 + 4 + 2, 4 + 3 + 4 + 300]
    assert type(backend.requests[0][0]["x"][1, 0]) is bytes


@pytest.mark.parametrize(
    "given",
    [np.array([["é", "b"]], object), np.array([["é", "b"]]), np.array([[b"\xc3\xa9", b"b"]])],
)
def test_text_outputs_are_sent_as_utf8(given: Array) -> None:
    made = config({"x": ("FP32", (1,))}, {"y": ("BYTES", (2,))})
    outcome = run(made, lambda _: {"y": given}, lease({"x": np.zeros((1, 1), np.float32)}))
    assert outputs_of(outcome)["y"].tolist() == [["é".encode(), b"b"]]


def test_a_bytes_array_of_numbers_is_a_bad_output() -> None:
    made = config({"x": ("FP32", (1,))}, {"y": ("BYTES", (1,))})
    given = np.array([[1]], object)
    outcome = run(made, lambda _: {"y": given}, lease({"x": np.zeros((1, 1), np.float32)}))
    assert failure_of(outcome) == (
        BatchFailure.BAD_OUTPUT,
        "output 'y': expected bytes or str in a BYTES array, got int",
    )


@pytest.mark.parametrize("datatype", ["FP32", "BF16", "BYTES"])
def test_zero_size_dims_pass(datatype: str) -> None:
    array = np.empty((3, 0), object if datatype == "BYTES" else FIXED[datatype].dtype)
    outcome = run(
        identity(datatype, (-1,)), lambda given: {"y": given["x"]}, lease({"x": array}, 3)
    )
    assert outputs_of(outcome)["y"].shape == (3, 0)


def test_a_model_without_batching_gets_exactly_the_requests_shape() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    made = identity(dims=(2, -1), rows=0)
    outcome = run(made, lambda given: {"y": given["x"] * 2}, lease({"x": array}))
    np.testing.assert_array_equal(outputs_of(outcome)["y"], array * 2)


def test_bytes_of_a_model_without_batching_carry_no_rows() -> None:
    array = objects([[b"a", b"bc"]])
    outcome = run(identity("BYTES", (1, 2), 0), lambda x: {"y": x["x"]}, lease({"x": array}))
    assert not outcome.result.outputs[0].row_bytes
    np.testing.assert_array_equal(outputs_of(outcome)["y"], array)


def test_unaligned_and_strided_arrays_are_set_right() -> None:
    array = np.arange(4, dtype=np.float64).reshape(2, 2)
    data = memoryview(b"abc" + array.tobytes())[3:]
    given = Lease(1, 2, (TensorIn("x", "FP64", (2, 2), data),))
    seen: list[bool] = []

    def model(inputs: Arrays) -> Arrays:
        seen.append(bool(inputs["x"].flags.aligned))
        return {"y": inputs["x"][:, ::-1].astype(">f8")}

    outcome = run(identity("FP64"), model, given)
    assert seen == [True]
    np.testing.assert_array_equal(outputs_of(outcome)["y"], array[:, ::-1])


def test_optional_inputs_may_be_absent() -> None:
    made = config({"x": ("FP32", (1,)), "bias": ("FP32", (1,))}, {"y": ("FP32", (1,))})
    made.input[1].optional = True
    runner, backend, _ = runner_of(made, lambda inputs: {"y": inputs["x"]})
    read_outcome(runner.run(lease({"x": np.ones((1, 1), np.float32)}), MAX_MESSAGE_BYTES))
    assert list(backend.requests[0][0]) == ["x"]


def test_a_reshape_is_applied_both_ways() -> None:
    made = config({"x": ("FP32", (1,))}, {"y": ("FP32", (1, -1))})
    made.input[0].reshape.SetInParent()
    made.output[0].reshape.shape.extend([-1, 1, 1])
    runner, backend, _ = runner_of(
        made, lambda x: {"y": np.tile(x["x"], (3, 1)).T[:, :, None, None]}
    )
    array = np.array([[5.0], [7.0]], np.float32)
    outcome = read_outcome(runner.run(lease({"x": array}, 2), MAX_MESSAGE_BYTES))
    assert backend.requests[0][0]["x"].shape == (2,)
    np.testing.assert_array_equal(outputs_of(outcome)["y"], [[[5, 5, 5]], [[7, 7, 7]]])


def test_only_requested_outputs_travel_in_the_order_asked() -> None:
    made = config(
        {"x": ("FP32", (2,))}, {"a": ("FP32", (2,)), "b": ("FP32", (2,)), "c": ("FP32", (2,))}
    )
    function = lambda x: dict.fromkeys("abc", x["x"])  # noqa: E731
    runner, backend, _ = runner_of(made, function)
    array = np.zeros((1, 2), np.float32)
    outcome = read_outcome(runner.run(lease({"x": array}, 1, ("c", "a")), MAX_MESSAGE_BYTES))
    assert [tensor.name for tensor in outcome.result.outputs] == ["c", "a"]
    assert backend.requests[0][1] == ("c", "a")
    outcome = read_outcome(runner.run(lease({"x": array}), MAX_MESSAGE_BYTES))
    assert [tensor.name for tensor in outcome.result.outputs] == ["a", "b", "c"]


def test_each_part_is_timed() -> None:
    outcome = run(identity(), lambda x: {"y": x["x"]}, lease({"x": np.zeros((1, 2), np.float32)}))
    assert min(outcome.input_s, outcome.infer_s, outcome.output_s) > 0


# --- outputs that do not fit --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"y": np.zeros((2, 2))}, "output 'y': expected FP32, got FP64"),
        ({"y": np.zeros((2, 2), np.complex64)}, "output 'y': expected FP32, got complex64"),
        (
            {"y": np.zeros((1, 2), np.float32)},
            "output 'y': expected 2 rows (the batch's), got shape [1, 2]",
        ),
        (
            {"y": np.zeros((), np.float32)},
            "output 'y': expected 2 rows (the batch's), got shape []",
        ),
        ({"y": np.zeros((2, 3), np.float32)}, "output 'y': expected shape [2, 2], got [2, 3]"),
        ({"y": np.zeros((2,), np.float32)}, "output 'y': expected shape [2, 2], got [2]"),
        ({"y": [[0, 0], [0, 0]]}, "output 'y': expected a numpy array, got list"),
        ({}, "expected output 'y', the model returned none"),
        ({"z": 1}, "expected outputs of y, the model returned 'z'"),
    ],
)
def test_an_output_that_does_not_fit_is_named(given: Any, sentence: str) -> None:
    outcome = run(identity(), lambda _: given, lease({"x": np.zeros((2, 2), np.float32)}, 2))
    assert failure_of(outcome) == (BatchFailure.BAD_OUTPUT, sentence)


def test_outputs_over_the_message_limit_are_a_failure_of_their_own() -> None:
    given = lease({"x": np.zeros((2, 2000), np.float32)}, 2)
    outcome = run(identity(dims=(2000,)), lambda x: {"y": x["x"]}, given, 10_000)
    kind, words = failure_of(outcome)
    assert kind == BatchFailure.OUTPUT_TOO_LARGE
    assert f"expected at most {10_000 - FRAME_BYTES} bytes of outputs" in words
    assert words.endswith("for 2 rows")


# --- models that raise --------------------------------------------------------------------------


def raising(error: BaseException) -> Callable[[Arrays], Arrays]:
    def model(inputs: Arrays) -> Arrays:
        raise error

    return model


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ValueError("no"), BatchFailure.MODEL_ERROR, "ValueError: no"),
        (KeyError(), BatchFailure.MODEL_ERROR, "KeyError"),
        (SystemExit(3), BatchFailure.MODEL_ERROR, "SystemExit: 3"),
        (MemoryError("8 GiB"), BatchFailure.OUT_OF_MEMORY, "MemoryError: 8 GiB"),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
            BatchFailure.OUT_OF_MEMORY,
            "RuntimeError: CUDA out of memory. Tried to allocate 2 GiB",
        ),
        (
            RuntimeError("CUDA failure 700: an illegal memory access was encountered"),
            BatchFailure.DEVICE_LOST,
            "RuntimeError: CUDA failure 700: an illegal memory access was encountered",
        ),
    ],
)
def test_what_a_model_raises_becomes_its_kind_of_failure(
    error: BaseException, kind: int, message: str
) -> None:
    outcome = run(identity(), raising(error), lease({"x": np.zeros((1, 2), np.float32)}))
    assert failure_of(outcome) == (kind, message)


def test_the_replica_goes_on_after_an_error_and_logs_where_it_was(
    caplog: pytest.LogCaptureFixture,
) -> None:
    runner, backend, _ = runner_of(identity(), raising(ValueError("no")))
    given = lease({"x": np.zeros((1, 2), np.float32)})
    with caplog.at_level(logging.ERROR, "tideserve.replica"):
        runner.run(given, MAX_MESSAGE_BYTES)
    assert "Traceback" in caplog.text
    backend.function = lambda inputs: {"y": inputs["x"]}
    assert "y" in outputs_of(read_outcome(runner.run(given, MAX_MESSAGE_BYTES)))
    assert not runner.device_lost


def test_after_a_lost_device_no_lease_reaches_the_model() -> None:
    lost = RuntimeError("CUDA error: device-side assert triggered")
    runner, backend, _ = runner_of(identity(), raising(lost))
    given = lease({"x": np.zeros((1, 2), np.float32)})
    for _ in range(2):
        outcome = read_outcome(runner.run(given, MAX_MESSAGE_BYTES))
        assert failure_of(outcome)[0] == BatchFailure.DEVICE_LOST
    assert len(backend.requests) == 1
    assert runner.device_lost


def test_a_model_that_cannot_unload_is_logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner, backend, _ = runner_of(identity(), dict)
    monkeypatch.setattr(backend, "close", lambda: raising(ValueError("stuck"))({}))
    runner.close()
    assert "stuck" in caplog.text


# --- leases that are broken ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "sentence"),
    [
        (
            TensorIn("x", "FP32", (1, 2), memoryview(b"1234567")),
            "expected 8 bytes for FP32[1, 2], got 7",
        ),
        (TensorIn("x", "FP31", (1, 2), memoryview(b"")), "got 'FP31'"),
        (
            TensorIn("z", "FP32", (1, 2), memoryview(bytes(8))),
            "expected inputs of x, the lease has 'z'",
        ),
        (TensorIn("x", "BYTES", (1,), memoryview(b"\5\0\0\0abc")), "expected 5 bytes, 3 are left"),
        (TensorIn("x", "BYTES", (1,), memoryview(b"\5\0")), "expected 1 BYTES elements, got 0"),
        (TensorIn("x", "BYTES", (0,), memoryview(b"\0\0\0\0")), "got 4 bytes more"),
    ],
)
def test_a_broken_lease_fails_with_what_is_wrong(tensor: TensorIn, sentence: str) -> None:
    outcome = run(identity(), lambda x: {"y": x["x"]}, Lease(1, 1, (tensor,)))
    kind, message = failure_of(outcome)
    assert kind == BatchFailure.MODEL_ERROR
    assert sentence in message


def test_an_unknown_requested_output_is_named() -> None:
    given = lease({"x": np.zeros((1, 2), np.float32)}, 1, ("q",))
    assert failure_of(run(identity(), dict, given)) == (
        BatchFailure.MODEL_ERROR,
        "expected requested outputs of y, got q",
    )


# --- configurations -------------------------------------------------------------------------------


def test_infer_checks_as_run_does() -> None:
    runner, _, _ = runner_of(identity(), lambda _: {"y": np.zeros((1, 2))})
    with pytest.raises(BadOutputError, match="expected FP32, got FP64"):
        runner.infer({"x": np.zeros((1, 2), np.float32)}, 1)


def broken(change: Callable[[ModelConfig], None]) -> ModelConfig:
    made = identity()
    change(made)
    return made


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (broken(lambda c: c.ClearField("input")), "at least one input and one output"),
        (broken(lambda c: c.output.append(c.output[0])), "output 'y' is configured 2 times"),
        (broken(lambda c: c.input[0].ClearField("name")), "an input without a name"),
        (broken(lambda c: c.input[0].ClearField("data_type")), "input 'x' has no data_type"),
        (broken(lambda c: c.input[0].dims.append(-2)), "expected dims of 0 or more, or -1"),
        (broken(lambda c: c.input[0].reshape.shape.append(3)), "expected a reshape with as many"),
        (broken(lambda c: setattr(c, "max_batch_size", -1)), "max_batch_size: expected 0 or more"),
    ],
)
def test_a_configuration_that_contradicts_itself_is_refused(
    made: ModelConfig, sentence: str
) -> None:
    with pytest.raises(LoadError, match=sentence):
        model_io(made)
