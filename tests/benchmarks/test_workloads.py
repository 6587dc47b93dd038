"""Requests are what servers expect, and right answers are told from wrong ones."""

import numpy as np
import pytest

from benchmarks.errors import WrongAnswerError
from benchmarks.workloads import (
    CONVOLUTIONAL,
    DIGITS,
    IDENTITY,
    INTAKE_600K,
    SENTENCE,
    TENSOR_600K,
    WORKLOADS,
    Rows,
    Workload,
    frame,
    session,
)
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse


def response(workload: Workload, values: Rows, name: str | None = None) -> bytes:
    message = ModelInferResponse(model_name=workload.model)
    message.outputs.add(name=name or workload.output.name, datatype="FP32", shape=values.shape)
    message.raw_output_contents.append(values.tobytes())
    return message.SerializeToString()


@pytest.mark.parametrize("workload", WORKLOADS.values())
def test_a_request_carries_one_raw_row(workload: Workload) -> None:
    feed = workload.random_feed(np.random.default_rng(1))
    request = ModelInferRequest.FromString(workload.request(feed))
    assert request.model_name == workload.model
    assert b"".join(request.raw_input_contents) == workload.raw(feed)
    assert len(request.inputs) == len(workload.inputs)
    for sent, tensor, raw in zip(
        request.inputs, workload.inputs, request.raw_input_contents, strict=True
    ):
        assert (sent.name, sent.datatype) == (tensor.name, tensor.datatype)
        assert tuple(sent.shape) == (1, *tensor.dims)
        assert len(raw) == tensor.row_bytes


@pytest.mark.parametrize("workload", [IDENTITY, DIGITS, TENSOR_600K, INTAKE_600K, CONVOLUTIONAL])
def test_the_right_answer_passes(workload: Workload) -> None:
    feed = workload.random_feed(np.random.default_rng(2))
    answer = workload.answer(feed)
    workload.check(feed, response(workload, answer))
    workload.check_raw(feed, answer.tobytes())


def test_a_sentence_is_between_its_marks_and_padded() -> None:
    random = np.random.default_rng(1)
    for _ in range(50):
        feed = SENTENCE.random_feed(random)
        ids, length = feed["input_ids"][0], int(feed["attention_mask"].sum())
        assert 4 <= length <= len(ids)
        assert (ids[0], ids[length - 1]) == (101, 102)
        assert (ids[:length] > 0).all()
        assert not ids[length:].any()


def test_identity_is_compared_bit_for_bit() -> None:
    feed = IDENTITY.random_feed(np.random.default_rng(3))
    almost = np.nextafter(feed["IN"], np.float32(np.inf))
    with pytest.raises(WrongAnswerError, match="identity: expected"):
        IDENTITY.check(feed, response(IDENTITY, almost))


def test_an_intake_is_answered_with_its_first_values() -> None:
    feed = INTAKE_600K.random_feed(np.random.default_rng(6))
    (computed,) = session("intake_600k").run(["OUT"], dict(feed))
    INTAKE_600K.check(feed, response(INTAKE_600K, computed))
    INTAKE_600K.check_raw(feed, feed["IN"][:, :16].tobytes())
    with pytest.raises(WrongAnswerError, match="expected 64 raw output bytes, got 600000"):
        INTAKE_600K.check_raw(feed, feed["IN"].tobytes())


def test_only_what_is_answered_with_itself_is_an_echo() -> None:
    echoes = [workload.model for workload in WORKLOADS.values() if workload.echoes]
    assert echoes == ["identity", "tensor_600k"]


def test_scores_may_differ_by_rounding_but_not_by_class() -> None:
    feed = DIGITS.random_feed(np.random.default_rng(4))
    scores = DIGITS.answer(feed)
    DIGITS.check(feed, response(DIGITS, scores + np.float32(5e-6)))
    with pytest.raises(WrongAnswerError, match="digits_onnx: expected"):
        DIGITS.check(feed, response(DIGITS, scores[:, ::-1].copy()))


def test_another_output_name_and_missing_bytes_are_wrong() -> None:
    feed = IDENTITY.random_feed(np.random.default_rng(5))
    with pytest.raises(WrongAnswerError, match="expected output OUT"):
        IDENTITY.check(feed, response(IDENTITY, feed["IN"], name="IN"))
    message = ModelInferResponse.FromString(response(IDENTITY, feed["IN"]))
    message.raw_output_contents[0] = b""
    with pytest.raises(WrongAnswerError, match="expected 64 raw output bytes, got 0"):
        IDENTITY.check(feed, message.SerializeToString())
    del message.raw_output_contents[:]
    with pytest.raises(WrongAnswerError, match="expected 64 raw output bytes, got 0"):
        IDENTITY.check(feed, message.SerializeToString())


def test_a_frame_is_a_flag_a_length_and_the_message() -> None:
    assert frame(b"hello") == b"\0\0\0\0\5hello"
