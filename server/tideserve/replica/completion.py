"""What a model file says of itself, laid over what config.pbtxt says."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tideserve.replica import datatypes
from tideserve.replica.errors import LoadError
from tideserve.replica.model_io import ModelIo, model_io
from tideserve.v1.model_config_pb2 import ModelConfig, ModelInput, ModelOutput

# For a model that can batch and whose max_batch_size nobody chose.
DEFAULT_MAX_BATCH_SIZE: Final = 64


@dataclass(frozen=True, slots=True)
class FileTensor:
    """An input or output as the file declares it: -1 is any size. An empty shape is a
    scalar's, or that of a tensor whose rank the file does not tell."""

    name: str
    datatype: str
    shape: tuple[int, ...]


def complete(
    config: ModelConfig,
    inputs: Sequence[FileTensor],
    outputs: Sequence[FileTensor],
    overridable: Iterable[FileTensor] = (),
) -> ModelConfig:
    """Fills inputs, outputs and max_batch_size that config.pbtxt leaves out; what it does
    say must fit the file. `overridable` inputs have a default in the file: configured as
    optional or not at all. Raises `LoadError`."""
    completed = ModelConfig()
    completed.CopyFrom(config)
    every = (*inputs, *outputs)
    if not config.input and not config.output and config.max_batch_size == 0:
        batches = all(tensor.shape and tensor.shape[0] == -1 for tensor in every)
        completed.max_batch_size = DEFAULT_MAX_BATCH_SIZE if batches else 0
    batched = completed.max_batch_size > 0
    if not config.input:
        for tensor in inputs:
            _fill(completed.input.add(), tensor, batched)
    if not config.output:
        for tensor in outputs:
            _fill(completed.output.add(), tensor, batched)
    _check(model_io(completed), inputs, outputs, tuple(overridable))
    return completed


def _fill(target: ModelInput | ModelOutput, tensor: FileTensor, batched: bool) -> None:
    shape = tensor.shape
    if batched:
        if not shape or shape[0] != -1:
            raise LoadError(
                f"max_batch_size is set, but the first dimension of {tensor.name!r} is fixed: "
                f"expected [-1, ...], the model file has {list(shape)}"
            )
        shape = shape[1:]
    target.name = tensor.name
    target.data_type = datatypes.to_config(tensor.datatype)
    if shape:
        target.dims.extend(shape)
    else:
        target.dims.append(1)
        target.reshape.SetInParent()


def _check(
    io: ModelIo,
    inputs: Sequence[FileTensor],
    outputs: Sequence[FileTensor],
    overridable: tuple[FileTensor, ...],
) -> None:
    configured = {tensor.name for tensor in io.inputs}
    missing = [tensor.name for tensor in inputs if tensor.name not in configured]
    if missing:
        raise LoadError(f"config.pbtxt lacks the model's input {', '.join(map(repr, missing))}")
    for kind, tensors, known in (
        ("input", io.inputs, (*inputs, *overridable)),
        ("output", io.outputs, outputs),
    ):
        by_name = {tensor.name: tensor for tensor in known}
        for tensor in tensors:
            file = by_name.get(tensor.name)
            if file is None:
                names = ", ".join(sorted(by_name))
                raise LoadError(
                    f"config.pbtxt has {kind} {tensor.name!r}, the model file has {names}"
                )
            if file.datatype != tensor.datatype:
                raise LoadError(
                    f"{kind} {tensor.name!r}: config.pbtxt says {tensor.datatype}, "
                    f"the model file {file.datatype}"
                )
            shape = io.model_shape(tensor)
            if file.shape and not _fits(shape, file.shape):
                raise LoadError(
                    f"{kind} {tensor.name!r}: config.pbtxt makes the model's shape {list(shape)}, "
                    f"the model file has {list(file.shape)}"
                )


def _fits(configured: tuple[int, ...], declared: tuple[int, ...]) -> bool:
    """A size that the file leaves open may be fixed by the configuration, not the reverse:
    the batch dimension of a batched model must be open in the file."""
    if len(configured) != len(declared):
        return False
    return all(theirs in (-1, ours) for ours, theirs in zip(configured, declared, strict=True))
