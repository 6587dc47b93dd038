import re
from typing import Any

import numpy as np
import pytest

from tideserve.client import InvalidArgument, InvalidResponse
from tideserve.client.inference import InferOptions, outputs_of, request_of
from tideserve.v1.inference_pb2 import ModelInferResponse


def test_a_request_carries_what_it_was_given() -> None:
    request = request_of(
        "m",
        {"x": np.ones((2, 3), np.float16), "t": ["a", "b"]},
        InferOptions(
            version="3",
            outputs=["y"],
            priority=2,
            queue_timeout_s=0.25,
            request_id="r",
            parameters={"flag": True, "n": -1, "big": 2**64 - 1, "f": 0.5, "s": "text"},
        ),
    )
    assert (request.model_name, request.model_version, request.id) == ("m", "3", "r")
    assert [(t.name, t.datatype, list(t.shape)) for t in request.inputs] == [
        ("x", "FP16", [2, 3]),
        ("t", "BYTES", [2]),
    ]
    assert [output.name for output in request.outputs] == ["y"]
    assert request.parameters["priority"].uint64_param == 2
    assert request.parameters["timeout"].int64_param == 250_000
    assert request.parameters["flag"].bool_param is True
    assert request.parameters["n"].int64_param == -1
    assert request.parameters["big"].uint64_param == 2**64 - 1
    assert request.parameters["f"].double_param == 0.5
    assert request.parameters["s"].string_param == "text"


def test_a_queue_timeout_never_becomes_none() -> None:
    request = request_of("m", {"x": [1]}, InferOptions(queue_timeout_s=1e-9))
    assert request.parameters["timeout"].int64_param == 1


@pytest.mark.parametrize(
    ("model", "inputs", "options", "sentence"),
    [
        ("", {}, InferOptions(), "name of a model"),
        ("m", [1], InferOptions(), "mapping"),
        ("m", {"x": [1]}, InferOptions(outputs="y"), "sequence of names"),
        ("m", {"x": [1]}, InferOptions(priority=-1), "priority"),
        ("m", {"x": [1]}, InferOptions(queue_timeout_s=0.0), "queue_timeout_s"),
        ("m", {"x": [1]}, InferOptions(parameters={"timeout": 5}), "reserved"),
        ("m", {"x": [1]}, InferOptions(parameters={"k": 2**70}), "64 bits"),
        ("m", {"x": [1]}, InferOptions(parameters={"k": None}), "NoneType"),  # type: ignore[dict-item]
    ],
)
def test_what_cannot_be_sent_is_refused(
    model: str, inputs: Any, options: InferOptions, sentence: str
) -> None:
    with pytest.raises(InvalidArgument, match=re.escape(sentence)):
        request_of(model, inputs, options)


def test_typed_and_empty_outputs_are_read() -> None:
    response = ModelInferResponse()
    typed = response.outputs.add(name="a", datatype="INT32", shape=[2])
    typed.contents.int_contents.extend([7, -8])
    response.outputs.add(name="none", datatype="FP32", shape=[0, 4])
    arrays = outputs_of(response)
    assert arrays["a"].tolist() == [7, -8]
    assert arrays["none"].shape == (0, 4)


def test_an_output_that_came_without_contents_is_refused() -> None:
    response = ModelInferResponse()
    response.outputs.add(name="a", datatype="INT32", shape=[2])
    with pytest.raises(InvalidResponse, match="without contents"):
        outputs_of(response)


def test_raw_contents_must_come_for_each_output() -> None:
    response = ModelInferResponse(raw_output_contents=[b"1234"])
    response.outputs.add(name="a", datatype="INT32", shape=[1])
    response.outputs.add(name="b", datatype="INT32", shape=[1])
    with pytest.raises(InvalidResponse, match="each of 2 outputs, got 1"):
        outputs_of(response)


def test_an_output_that_came_twice_is_refused() -> None:
    response = ModelInferResponse(raw_output_contents=[b"1234", b"1234"])
    response.outputs.add(name="a", datatype="INT32", shape=[1])
    response.outputs.add(name="a", datatype="INT32", shape=[1])
    with pytest.raises(InvalidResponse, match="twice"):
        outputs_of(response)
