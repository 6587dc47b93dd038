"""From a configuration to a `ModelSpec`, with every check that needs no model file."""

from collections.abc import Iterator, Sequence
from typing import Final

from tideserve.server.errors import ModelConfigError
from tideserve.server.model_spec import ModelSpec, TensorSpec
from tideserve.server.repository.backends import platform_of
from tideserve.server.repository.found import FoundModel, FoundVersion
from tideserve.server.repository.padding import padding_of
from tideserve.server.repository.parameters import read_parameters
from tideserve.server.repository.settings import model_settings
from tideserve.server.repository.unsupported import refuse_unservable
from tideserve.v1.model_config_pb2 import (
    DataType,
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
)

# As many replicas as the autoscaler starts at most.
MAX_INSTANCES: Final = 4096


def is_complete(config: ModelConfig) -> bool:
    """Whether the configuration alone describes the tensors, so that no replica has to.

    It has inputs and outputs, each with a data type and dims.
    """
    return (
        bool(config.input)
        and bool(config.output)
        and all(tensor.data_type and tensor.dims for _, tensor in _tensors(config))
    )


def check_config(config: ModelConfig, source: str) -> None:
    """Checks what a configuration says, complete or not. Raises `ModelConfigError`."""
    refuse_unservable(config, source)
    _check_tensors(config, source)
    _check_instances(config, source)
    model_settings(config, source, complete=is_complete(config))


def build_spec(found: FoundModel, version: FoundVersion, config: ModelConfig) -> ModelSpec:
    """The version's spec, from a complete configuration: config.pbtxt's own, or as a replica
    completed it.

    Raises `ModelConfigError` with the field, what was expected and what came.
    """
    source = f"{found.path} version {version.version}"
    if found.error is not None:
        raise ModelConfigError(found.error)
    if config.name not in ("", found.name):
        raise ModelConfigError(
            f"{source}: name: expected {found.name!r} or none, got {config.name!r}"
        )
    refuse_unservable(config, source)
    _check_instances(config, source)
    _check_tensors(config, source)
    _check_completed(config, source)
    inputs = tuple(_tensor_spec(tensor, tensor.optional) for tensor in config.input)
    outputs = tuple(_tensor_spec(tensor, optional=False) for tensor in config.output)
    own = read_parameters(config.parameters, source)
    kept = ModelConfig()
    kept.CopyFrom(config)
    kept.name = found.name
    kept.backend = found.backend
    return ModelSpec(
        name=found.name,
        version=version.version,
        generation=version.generation,
        path=found.path,
        platform=platform_of(config, found.backend),
        backend=found.backend,
        max_batch_size=config.max_batch_size,
        inputs=inputs,
        outputs=outputs,
        config=kept,
        settings=model_settings(config, source, complete=True),
        latency_target_s=own.latency_target_s,
        padding=(
            padding_of(own.pad, inputs, outputs, config.max_batch_size, source)
            if own.pad is not None
            else None
        ),
    )


def instance_count(config: ModelConfig) -> int:
    """Replicas that its instance_group asks for: all groups' `count` (less than 1 means 1) on each
    of the group's GPUs."""
    counts = (max(1, group.count) * max(1, len(group.gpus)) for group in config.instance_group)
    return sum(counts) or 1


def _tensor_spec(tensor: ModelInput | ModelOutput, optional: bool) -> TensorSpec:
    return TensorSpec(
        name=tensor.name,
        datatype=_datatype(tensor.data_type),
        dims=tuple(tensor.dims),
        model_dims=tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None,
        optional=optional,
    )


def _datatype(data_type: DataType) -> str:
    """The client plane's name: FP32 of TYPE_FP32."""
    name = DataType.Name(data_type).removeprefix("TYPE_")
    return "BYTES" if name == "STRING" else name


def _tensors(config: ModelConfig) -> Iterator[tuple[str, ModelInput | ModelOutput]]:
    yield from (("input", tensor) for tensor in config.input)
    yield from (("output", tensor) for tensor in config.output)


def _check_completed(config: ModelConfig, source: str) -> None:
    for kind, count in (("input", len(config.input)), ("output", len(config.output))):
        if count == 0:
            raise ModelConfigError(
                f"{source}: expected at least one {kind}, got none: neither config.pbtxt nor "
                "the model file tells it"
            )
    for kind, tensor in _tensors(config):
        missing = [] if tensor.data_type else ["data_type"]
        missing += [] if tensor.dims else ["dims"]
        if missing:
            raise ModelConfigError(
                f"{source}: {kind} {tensor.name!r}: expected {' and '.join(missing)}, got none: "
                "neither config.pbtxt nor the model file tells it"
            )


def _check_tensors(config: ModelConfig, source: str) -> None:
    seen: set[tuple[str, str]] = set()
    for kind, tensor in _tensors(config):
        if not tensor.name:
            raise ModelConfigError(f"{source}: {kind}: name: expected one in each, got none")
        if (kind, tensor.name) in seen:
            raise ModelConfigError(
                f"{source}: {kind} {tensor.name!r}: expected each name once, got it again"
            )
        seen.add((kind, tensor.name))
        _check_tensor(tensor, f"{source}: {kind} {tensor.name!r}")


def _check_tensor(tensor: ModelInput | ModelOutput, where: str) -> None:
    if tensor.data_type not in DataType.values():
        raise ModelConfigError(
            f"{where}: data_type: expected one of {', '.join(DataType.keys()[1:])}, "
            f"got {tensor.data_type}"
        )
    for field, dims in (("dims", tensor.dims), ("reshape", tensor.reshape.shape)):
        for dim in dims:
            if dim < 1 and dim != -1:
                raise ModelConfigError(
                    f"{where}: {field}: expected sizes of 1 or more, or -1 for any size, got {dim}"
                )
    shape = tensor.reshape.shape
    if tensor.HasField("reshape") and tensor.dims and [*_runs(tensor.dims)] != [*_runs(shape)]:
        raise ModelConfigError(
            f"{where}: reshape: expected as many elements as dims {[*tensor.dims]} has, before, "
            f"between and after each -1, got {[*shape]}"
        )


def _runs(dims: Sequence[int]) -> Iterator[int]:
    """Element counts of the runs between sizes of -1: [2, 4, -1, 6] gives 8 and 6."""
    count = 1
    for dim in dims:
        if dim == -1:
            yield count
            count = 1
        else:
            count *= dim
    yield count


def _check_instances(config: ModelConfig, source: str) -> None:
    for index, group in enumerate(config.instance_group):
        if group.gpus and group.kind in (
            ModelInstanceGroup.KIND_CPU,
            ModelInstanceGroup.KIND_MODEL,
        ):
            raise ModelConfigError(
                f"{source}: instance_group[{index}]: gpus: expected none with "
                f"{ModelInstanceGroup.Kind.Name(group.kind)}, got {list(group.gpus)}"
            )
    if instance_count(config) > MAX_INSTANCES:
        raise ModelConfigError(
            f"{source}: instance_group: expected at most {MAX_INSTANCES} instances in all, got "
            f"{instance_count(config)}"
        )
