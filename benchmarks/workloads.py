"""What is asked of the servers: one model, one row a request, and the right answer to it."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.errors import WrongAnswerError
from examples.train.split import split
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse

MODELS: Final = Path(__file__).resolve().parents[1] / "examples" / "models"
INFER_PATH: Final = "/inference.GRPCInferenceService/ModelInfer"
# Batched and single rows round differently in the last bits (design 15.10).
TOLERANCE: Final = 1e-5

Rows = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Workload:
    """One model of examples/models, called with one row a request.

    `random_row` draws an input [1, ...]; `answer` gives the right output for it. An
    `exact` answer is compared bit for bit, another within `TOLERANCE` and by class.
    """

    model: str
    input_name: str
    output_name: str
    random_row: Callable[[np.random.Generator], Rows]
    answer: Callable[[Rows], Rows]
    exact: bool

    def request(self, row: Rows) -> bytes:
        """The serialized ModelInferRequest, with raw contents."""
        request = ModelInferRequest(model_name=self.model)
        request.inputs.add(name=self.input_name, datatype="FP32", shape=row.shape)
        request.raw_input_contents.append(row.tobytes())
        return request.SerializeToString()

    def check(self, row: Rows, response: bytes) -> None:
        """Raises WrongAnswerError unless `response` is the right answer to `row`."""
        message = ModelInferResponse.FromString(response)
        expected = self.answer(row)
        named = [(output.name, tuple(output.shape)) for output in message.outputs]
        if named != [(self.output_name, expected.shape)]:
            raise WrongAnswerError(
                f"{self.model}: expected output {self.output_name} {expected.shape}, got {named}"
            )
        raw = message.raw_output_contents[0] if message.raw_output_contents else b""
        if len(raw) != expected.nbytes:
            raise WrongAnswerError(
                f"{self.model}: expected {expected.nbytes} raw output bytes, got {len(raw)}"
            )
        got = np.frombuffer(raw, dtype=np.float32).reshape(expected.shape)
        right = (
            got.tobytes() == expected.tobytes()
            if self.exact
            else np.allclose(got, expected, rtol=0.0, atol=TOLERANCE)
            and bool(got.argmax() == expected.argmax())
        )
        if not right:
            raise WrongAnswerError(
                f"{self.model}: expected {expected.tolist()}, got {got.tolist()}"
            )


def frame(message: bytes) -> bytes:
    """The body of a unary gRPC call: not compressed, four bytes of length, the message."""
    return struct.pack(">BI", 0, len(message)) + message


@cache
def digits_session() -> ort.InferenceSession:
    """digits_onnx on one thread, called directly."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(
        MODELS / "digits_onnx" / "1" / "model.onnx", options, providers=["CPUExecutionProvider"]
    )


def _random_vector(random: np.random.Generator) -> Rows:
    return random.standard_normal((1, 16), dtype=np.float32)


def _same(row: Rows) -> Rows:
    return row


@cache
def _held_out_images() -> Rows:
    return split().held_out.images


def _random_digit(random: np.random.Generator) -> Rows:
    index = int(random.integers(len(_held_out_images())))
    return _held_out_images()[index : index + 1]


def _scores(row: Rows) -> Rows:
    scores: Rows = digits_session().run(["scores"], {"image": row})[0]
    return scores


IDENTITY: Final = Workload("identity", "IN", "OUT", _random_vector, _same, exact=True)
DIGITS: Final = Workload("digits_onnx", "image", "scores", _random_digit, _scores, exact=False)
WORKLOADS: Final = {workload.model: workload for workload in (IDENTITY, DIGITS)}
