"""What a configuration asks for that Tideserve does not do: named, never silently ignored."""

from collections.abc import Iterator
from typing import Final

from google.protobuf.message import Message

from tideserve.server.errors import ModelConfigError
from tideserve.server.repository.parameters import LATER_KEYS, PREFIX
from tideserve.v1.model_config_pb2 import ModelConfig, ModelInstanceGroup

# Acted on as a whole, with all that is below.
_SUPPORTED: Final = frozenset(
    {
        "name",
        "platform",
        "backend",
        "version_policy",
        "max_batch_size",
        "input.name",
        "input.data_type",
        "input.dims",
        "input.reshape",
        "input.optional",
        "output.name",
        "output.data_type",
        "output.dims",
        "output.reshape",
        "dynamic_batching",
        "instance_group.name",
        "instance_group.kind",
        "instance_group.count",
        "default_model_filename",
        "parameters",
        "model_warmup",
    }
)
# Acted on in part: what is below is named field by field.
_IN_PARTS: Final = frozenset(
    {"input", "output", "instance_group", "optimization", "model_transaction_policy"}
)


def unsupported_fields(config: ModelConfig) -> tuple[str, ...]:
    """Dotted names of the fields that are set and not acted on, each once, in field order."""
    names = list(_walk(config, ""))
    # Devices are the autoscaler's: --gpus, or `devices` of its file.
    elsewhere = (ModelInstanceGroup.KIND_GPU, ModelInstanceGroup.KIND_MODEL)
    if any(group.kind in elsewhere for group in config.instance_group):
        names.append("instance_group.kind")
    batching = config.dynamic_batching
    if batching.priority_levels == 0:
        # As in Triton, priorities mean nothing until there are levels.
        if batching.default_priority_level:
            names.append("dynamic_batching.default_priority_level")
        if batching.priority_queue_policy:
            names.append("dynamic_batching.priority_queue_policy")
    # Only a Python model reads keys of its own; `scan` has filled the backend in.
    unread = config.backend in ("onnxruntime", "pytorch")
    names += sorted(
        f"parameters.{key}"
        for key in config.parameters
        if key in LATER_KEYS or (unread and not key.startswith(PREFIX))
    )
    return tuple(dict.fromkeys(names))


def refuse_unservable(config: ModelConfig, source: str) -> None:
    """Raises `ModelConfigError` for what would change the model's answers if ignored."""
    if config.HasField("sequence_batching"):
        raise ModelConfigError(
            f"{source}: sequence_batching is not supported: a sequence's requests would reach "
            "different replicas; expected dynamic_batching or no scheduler"
        )
    if config.HasField("ensemble_scheduling") or config.platform == "ensemble":
        raise ModelConfigError(
            f"{source}: ensembles are not supported; expected a model with a file of its own, "
            "call the steps one after the other"
        )
    if config.model_transaction_policy.decoupled:
        raise ModelConfigError(
            f"{source}: model_transaction_policy.decoupled is not supported; expected a model "
            "that gives one answer to each request"
        )


def _walk(message: Message, prefix: str) -> Iterator[str]:
    for field, value in message.ListFields():
        path = prefix + field.name
        if path in _IN_PARTS:
            for part in [value] if isinstance(value, Message) else value:
                yield from _walk(part, f"{path}.")
        elif path not in _SUPPORTED:
            yield path
