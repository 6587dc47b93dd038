"""What is asked of the servers: one model, one row a request, and the right answer to it."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from benchmarks.errors import WrongAnswerError
from benchmarks.models import convolutional, intake_600k, sentence, tensor_600k
from benchmarks.models.repository import model_file
from examples.train.split import split
from tideserve.v1.inference_pb2 import ModelInferRequest, ModelInferResponse

INFER_PATH: Final = "/inference.GRPCInferenceService/ModelInfer"
# Batched and single rows round differently in the last bits (design 15.10).
TOLERANCE: Final = 1e-5
# So many values of a wrong answer are shown.
_SHOWN: Final = 10

# The inputs of one request by name, each [1, ...].
Feed = Mapping[str, NDArray[Any]]
Rows = NDArray[np.float32]

_ELEMENTS: Final[Mapping[str, type[Any]]] = {"FP32": np.float32, "INT64": np.int64}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output of a model; `dims` without the batch dimension."""

    name: str
    datatype: str
    dims: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.dims)) * np.dtype(_ELEMENTS[self.datatype]).itemsize


@dataclass(frozen=True, slots=True)
class Workload:
    """One model, called with one row a request.

    `random_feed` draws the inputs of a request; `answer` gives the right output for them. An
    `exact` answer is compared bit for bit, another within `TOLERANCE`, and by class where it
    `has_classes`. Where the model's computing is what counts (`computes`), servers run an
    instance a core, and what they reach is a share of what bare ONNX Runtime does. It is asked
    in batches of `ort_rows`, and the servers take up to `max_batch_rows` (in their
    configurations: max_batch_size).
    """

    model: str
    inputs: tuple[Tensor, ...]
    output: Tensor
    random_feed: Callable[[np.random.Generator], Feed]
    answer: Callable[[Feed], Rows]
    exact: bool
    has_classes: bool
    computes: bool
    max_batch_rows: int
    ort_rows: tuple[int, ...]

    @property
    def input_bytes(self) -> int:
        return sum(tensor.row_bytes for tensor in self.inputs)

    @property
    def echoes(self) -> bool:
        """The right answer is what was asked."""
        return self.exact and self.output.row_bytes == self.input_bytes

    def request(self, feed: Feed) -> bytes:
        """The serialized ModelInferRequest, with raw contents."""
        request = ModelInferRequest(model_name=self.model)
        for tensor in self.inputs:
            value = feed[tensor.name]
            request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=value.shape)
            request.raw_input_contents.append(value.tobytes())
        return request.SerializeToString()

    def raw(self, feed: Feed) -> bytes:
        """The bytes of the inputs alone, for servers that are told no names and shapes."""
        return b"".join(feed[tensor.name].tobytes() for tensor in self.inputs)

    def check(self, feed: Feed, response: bytes) -> None:
        """Raises WrongAnswerError unless `response`, a serialized ModelInferResponse, is the
        right answer to `feed`."""
        message = ModelInferResponse.FromString(response)
        expected = (1, *self.output.dims)
        named = [(output.name, tuple(output.shape)) for output in message.outputs]
        if named != [(self.output.name, expected)]:
            raise WrongAnswerError(
                f"{self.model}: expected output {self.output.name} {expected}, got {named}"
            )
        self.check_raw(feed, message.raw_output_contents[0] if message.raw_output_contents else b"")

    def check_raw(self, feed: Feed, raw: bytes) -> None:
        """Raises WrongAnswerError unless `raw` are the bytes of the right output."""
        expected = self.answer(feed)
        if len(raw) != expected.nbytes:
            raise WrongAnswerError(
                f"{self.model}: expected {expected.nbytes} raw output bytes, got {len(raw)}"
            )
        got = np.frombuffer(raw, dtype=np.float32).reshape(expected.shape)
        if not self._is_right(got, expected):
            raise WrongAnswerError(
                f"{self.model}: expected {_beginning(expected)}, got {_beginning(got)}"
            )

    def _is_right(self, got: Rows, expected: Rows) -> bool:
        if self.exact:
            return got.tobytes() == expected.tobytes()
        same_class = not self.has_classes or bool(got.argmax() == expected.argmax())
        return same_class and np.allclose(got, expected, rtol=0.0, atol=TOLERANCE)


def frame(message: bytes) -> bytes:
    """The body of a unary gRPC call: not compressed, four bytes of length, the message."""
    return struct.pack(">BI", 0, len(message)) + message


@cache
def session(model: str) -> ort.InferenceSession:
    """The model on one thread, called directly."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(model_file(model), options, providers=["CPUExecutionProvider"])


def _beginning(values: Rows) -> str:
    shown = values.ravel()[:_SHOWN].tolist()
    return f"{shown}{' ...' if values.size > _SHOWN else ''} {values.shape}"


def _computed(model: str, output: str, feed: Feed) -> Rows:
    values: Rows = session(model).run([output], dict(feed))[0]
    return values


def _random_values(tensor: Tensor, random: np.random.Generator) -> Feed:
    return {tensor.name: random.standard_normal((1, *tensor.dims), dtype=np.float32)}


def _same(feed: Feed) -> Rows:
    (values,) = feed.values()
    return values


def _first(count: int, feed: Feed) -> Rows:
    return np.ascontiguousarray(_same(feed)[:, :count])


@cache
def _held_out_images() -> Rows:
    return split().held_out.images


def _random_digit(random: np.random.Generator) -> Feed:
    index = int(random.integers(len(_held_out_images())))
    return {"image": _held_out_images()[index : index + 1]}


def _random_sentence(random: np.random.Generator) -> Feed:
    """Words by chance, of 4 to all tokens, between the marks of a beginning and an end."""
    begin, end, first_word = 101, 102, 1000
    length = int(random.integers(4, sentence.TOKENS + 1))
    ids = np.zeros((1, sentence.TOKENS), np.int64)
    ids[0, :length] = random.integers(first_word, sentence.VOCABULARY, length)
    ids[0, 0], ids[0, length - 1] = begin, end
    return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}


def _identity(
    model: str, values: int, max_batch_rows: int, answered: int | None = None
) -> Workload:
    """It answers with what it was asked, or with the first values of that, `answered` of them."""
    source = Tensor("IN", "FP32", (values,))
    answered = answered or values
    return Workload(
        model=model,
        inputs=(source,),
        output=Tensor("OUT", "FP32", (answered,)),
        random_feed=partial(_random_values, source),
        answer=partial(_first, answered),
        exact=True,
        has_classes=False,
        computes=False,
        max_batch_rows=max_batch_rows,
        ort_rows=(1, max_batch_rows),
    )


_IMAGE: Final = Tensor("image", "FP32", (3, convolutional.SIDE, convolutional.SIDE))
IDENTITY: Final = _identity("identity", 16, 64)
TENSOR_600K: Final = _identity("tensor_600k", tensor_600k.VALUES, 8)
INTAKE_600K: Final = _identity("intake_600k", intake_600k.VALUES, 8, intake_600k.ANSWERED)
DIGITS: Final = Workload(
    model="digits_onnx",
    inputs=(Tensor("image", "FP32", (1, 8, 8)),),
    output=Tensor("scores", "FP32", (10,)),
    random_feed=_random_digit,
    answer=partial(_computed, "digits_onnx", "scores"),
    exact=False,
    has_classes=True,
    computes=False,
    max_batch_rows=64,
    ort_rows=(1, 64),
)
CONVOLUTIONAL: Final = Workload(
    model="convolutional",
    inputs=(_IMAGE,),
    output=Tensor("scores", "FP32", (convolutional.CLASSES,)),
    random_feed=partial(_random_values, _IMAGE),
    answer=partial(_computed, "convolutional", "scores"),
    exact=False,
    # Random weights: two classes may be as good as equal.
    has_classes=False,
    computes=True,
    max_batch_rows=8,
    ort_rows=(1, 8),
)
SENTENCE: Final = Workload(
    model="sentence",
    inputs=(
        Tensor("input_ids", "INT64", (sentence.TOKENS,)),
        Tensor("attention_mask", "INT64", (sentence.TOKENS,)),
    ),
    output=Tensor("embedding", "FP32", (sentence.WIDTH,)),
    random_feed=_random_sentence,
    answer=partial(_computed, "sentence", "embedding"),
    exact=False,
    has_classes=False,
    computes=True,
    max_batch_rows=8,
    ort_rows=(1, 8),
)
WORKLOADS: Final = {
    workload.model: workload
    for workload in (IDENTITY, TENSOR_600K, INTAKE_600K, CONVOLUTIONAL, SENTENCE, DIGITS)
}
