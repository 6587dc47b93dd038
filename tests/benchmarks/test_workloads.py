"""Requests are what servers expect, and right answers are told from wrong ones."""

import numpy as np
import pytest

from benchmarks.errors import WrongAnswerError
from benchmarks.workloads import DIGITS, IDENTITY, Rows, Workload, frame
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse


def response(workload: Workload, values: Rows, name: str | None = None) -> bytes:
    message = ModelInferResponse(model_name=workload.model)
    message.outputs.add(name=name or workload.output_name, datatype="FP32", shape=values.shape)
    message.raw_output_contents.append(values.tobytes())
    return message.SerializeToString()


@pytest.mark.parametrize("workload", [IDENTITY, DIGITS])
def test_a_request_carries_one_raw_row(workload: Workload) -> None:
    row = workload.random_row(np.random.default_rng(1))
    request = ModelInferRequest.FromString(workload.request(row))
    assert request.model_name == workload.model
    assert request.inputs[0].name == workload.input_name
    assert tuple(request.inputs[0].shape) == row.shape
    assert row.shape[0] == 1
    assert request.raw_input_contents[0] == row.tobytes()


@pytest.mark.parametrize("workload", [IDENTITY, DIGITS])
def test_the_right_answer_passes(workload: Workload) -> None:
    row = workload.random_row(np.random.default_rng(2))
    workload.check(row, response(workload, workload.answer(row)))


def test_identity_is_compared_bit_for_bit() -> None:
    row = IDENTITY.random_row(np.random.default_rng(3))
    almost = np.nextafter(row, np.float32(np.inf))
    with pytest.raises(WrongAnswerError, match="identity: expected"):
        IDENTITY.check(row, response(IDENTITY, almost))


def test_scores_may_differ_by_rounding_but_not_by_class() -> None:
    row = DIGITS.random_row(np.random.default_rng(4))
    scores = DIGITS.answer(row)
    DIGITS.check(row, response(DIGITS, scores + np.float32(5e-6)))
    with pytest.raises(WrongAnswerError, match="digits_onnx: expected"):
        DIGITS.check(row, response(DIGITS, scores[:, ::-1].copy()))


def test_another_output_name_and_missing_bytes_are_wrong() -> None:
    row = IDENTITY.random_row(np.random.default_rng(5))
    with pytest.raises(WrongAnswerError, match="expected output OUT"):
        IDENTITY.check(row, response(IDENTITY, row, name="IN"))
    message = ModelInferResponse.FromString(response(IDENTITY, row))
    message.raw_output_contents[0] = b""
    with pytest.raises(WrongAnswerError, match="expected 64 raw output bytes, got 0"):
        IDENTITY.check(row, message.SerializeToString())
    del message.raw_output_contents[:]
    with pytest.raises(WrongAnswerError, match="expected 64 raw output bytes, got 0"):
        IDENTITY.check(row, message.SerializeToString())


def test_a_frame_is_a_flag_a_length_and_the_message() -> None:
    assert frame(b"hello") == b"\0\0\0\0\5hello"
