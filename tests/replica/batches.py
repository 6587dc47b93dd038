"""What replica tests run: leases made of arrays, outcomes read back, models made of functions."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tideserve.replica import datatypes
from tideserve.replica.model_io import ModelIo, model_io
from tideserve.replica.runner import Runner
from tideserve.replica.wire import Lease, TensorIn
from tideserve.v1.model_config_pb2 import ModelConfig, ModelInput, ModelOutput
from tideserve.v1.replica_pb2 import ExchangeRequest, Outcome, Tensor

Array = npt.NDArray[Any]
Arrays = dict[str, Array]
MAX_MESSAGE_BYTES = 1 << 20


def config(
    inputs: Mapping[str, tuple[str, Sequence[int]]],
    outputs: Mapping[str, tuple[str, Sequence[int]]],
    max_batch_size: int = 8,
) -> ModelConfig:
    """A configuration by name: (datatype on the wire, dims)."""
    made = ModelConfig(max_batch_size=max_batch_size)
    for name, (datatype, dims) in inputs.items():
        kind = datatypes.to_config(datatype)
        made.input.append(ModelInput(name=name, data_type=kind, dims=dims))
    for name, (datatype, dims) in outputs.items():
        kind = datatypes.to_config(datatype)
        made.output.append(ModelOutput(name=name, data_type=kind, dims=dims))
    return made


def encode(array: Array) -> bytes:
    """The bytes of a tensor on the wire."""
    if array.dtype.kind != "O":
        return array.tobytes()
    return b"".join(
        len(element).to_bytes(4, "little") + element for element in array.reshape(-1).tolist()
    )


def tensor_in(name: str, array: Array) -> TensorIn:
    datatype = datatypes.wire_name(array.dtype)
    return TensorIn(name, datatype, array.shape, memoryview(encode(array)))


def lease(arrays: Arrays, rows: int = 1, requested: tuple[str, ...] = (), number: int = 1) -> Lease:
    tensors = tuple(tensor_in(name, array) for name, array in arrays.items())
    return Lease(number, rows, tensors, requested)


def read_outcome(field: bytes) -> Outcome:
    """An outcome as the frontend parses it."""
    (outcome,) = ExchangeRequest.FromString(field).outcomes
    return outcome


def decode(tensor: Tensor) -> Array:
    """The array of an output tensor; independent of the code under test."""
    shape = tuple(tensor.shape)
    if tensor.datatype != "BYTES":
        return np.frombuffer(tensor.data, datatypes.numpy_type(tensor.datatype)).reshape(shape)
    elements, at = [], 0
    while at < len(tensor.data):
        length = int.from_bytes(tensor.data[at : at + 4], "little")
        elements.append(tensor.data[at + 4 : at + 4 + length])
        at += 4 + length
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


def outputs_of(outcome: Outcome) -> Arrays:
    assert outcome.WhichOneof("outcome") == "result", outcome.failure.message
    return {tensor.name: decode(tensor) for tensor in outcome.result.outputs}


class FunctionBackend:
    """A model that is a function of its inputs; remembers what it was asked."""

    def __init__(self, function: Callable[[Arrays], Any]) -> None:
        self.function = function
        self.requests: list[tuple[Arrays, tuple[str, ...]]] = []
        self.closed = 0

    def complete(self, config: ModelConfig) -> ModelConfig:
        return config

    def infer(self, inputs: Arrays, requested: tuple[str, ...]) -> Arrays:
        self.requests.append((inputs, requested))
        outputs: Arrays = self.function(inputs)
        return outputs

    def close(self) -> None:
        self.closed += 1


def runner_of(
    config: ModelConfig, function: Callable[[Arrays], Any]
) -> tuple[Runner, FunctionBackend, ModelIo]:
    io = model_io(config)
    backend = FunctionBackend(function)
    return Runner(backend, io), backend, io
