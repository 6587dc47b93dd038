"""A complete model configuration as the runner and the backends see it."""

from dataclasses import dataclass

from tideserve.replica import datatypes
from tideserve.replica.errors import LoadError
from tideserve.v1.model_config_pb2 import ModelConfig, ModelInput, ModelOutput


@dataclass(frozen=True, slots=True)
class TensorIo:
    """One input or output without its batch dimension. `dims` is what callers see, -1 any
    size; `model_dims` what the model sees where a reshape is configured."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    model_dims: tuple[int, ...]
    optional: bool = False

    @property
    def reshaped(self) -> bool:
        return self.dims != self.model_dims

    def to_model(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        """The model's dims for a caller's, variable sizes carried over in order."""
        return _carry(dims, self.dims, self.model_dims)

    def to_caller(self, dims: tuple[int, ...]) -> tuple[int, ...]:
        """The caller's dims for the model's."""
        return _carry(dims, self.model_dims, self.dims)


@dataclass(frozen=True, slots=True)
class ModelIo:
    """`max_batch_size` 0: tensors have no batch dimension."""

    max_batch_size: int
    inputs: tuple[TensorIo, ...]
    outputs: tuple[TensorIo, ...]

    @property
    def batched(self) -> bool:
        return self.max_batch_size > 0

    def model_shape(self, tensor: TensorIo) -> tuple[int, ...]:
        """What the model's own signature should say, -1 for the batch dimension."""
        return (-1, *tensor.model_dims) if self.batched else tensor.model_dims


def model_io(config: ModelConfig) -> ModelIo:
    """Raises `LoadError` where the configuration lacks or contradicts something."""
    if config.max_batch_size < 0:
        raise LoadError(f"max_batch_size: expected 0 or more, got {config.max_batch_size}")
    if not config.input or not config.output:
        raise LoadError("the configuration needs at least one input and one output")
    inputs = tuple(_tensor(tensor, "input", tensor.optional) for tensor in config.input)
    outputs = tuple(_tensor(tensor, "output", optional=False) for tensor in config.output)
    for kind, tensors in (("input", inputs), ("output", outputs)):
        names = [tensor.name for tensor in tensors]
        for name in names:
            if names.count(name) > 1:
                raise LoadError(f"{kind} {name!r} is configured {names.count(name)} times")
    return ModelIo(config.max_batch_size, inputs, outputs)


def _tensor(tensor: ModelInput | ModelOutput, kind: str, optional: bool) -> TensorIo:
    where = f"{kind} {tensor.name!r}"
    if not tensor.name:
        raise LoadError(f"an {kind} without a name is configured")
    datatype = datatypes.from_config(tensor.data_type)
    if not datatype:
        raise LoadError(f"{where} has no data_type")
    datatypes.numpy_type(datatype)
    dims = tuple(tensor.dims)
    if any(dim < -1 for dim in dims):
        raise LoadError(f"{where}: expected dims of 0 or more, or -1, got {list(dims)}")
    model_dims = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else dims
    if not _same_count(dims, model_dims):
        raise LoadError(
            f"{where}: expected a reshape with as many elements and variable sizes as "
            f"dims {list(dims)}, got {list(model_dims)}"
        )
    return TensorIo(tensor.name, datatype, dims, model_dims, optional)


def _same_count(dims: tuple[int, ...], other: tuple[int, ...]) -> bool:
    if dims.count(-1) != other.count(-1):
        return False
    return _fixed_count(dims) == _fixed_count(other)


def _fixed_count(dims: tuple[int, ...]) -> int:
    count = 1
    for dim in dims:
        count *= 1 if dim == -1 else dim
    return count


def _carry(
    actual: tuple[int, ...], pattern: tuple[int, ...], target: tuple[int, ...]
) -> tuple[int, ...]:
    variable = iter(size for size, dim in zip(actual, pattern, strict=True) if dim == -1)
    return tuple(next(variable) if dim == -1 else dim for dim in target)
