"""The client plane is byte for byte Triton's: our descriptors against tritonclient's own.

Message bytes carry numbers and types and no names of packages, so every message is compared
field by field and every method by its path (DESIGN section 3).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from tritonclient.grpc import model_config_pb2 as triton_config
from tritonclient.grpc import service_pb2 as triton

from tideserve.v1 import inference_pb2, methods, model_config_pb2

OURS = {
    **inference_pb2.DESCRIPTOR.message_types_by_name,
    **model_config_pb2.DESCRIPTOR.message_types_by_name,
}
THEIRS: dict[str, Any] = {
    **triton.DESCRIPTOR.message_types_by_name,
    **triton_config.DESCRIPTOR.message_types_by_name,
}
OUR_ENUMS = {
    **inference_pb2.DESCRIPTOR.enum_types_by_name,
    **model_config_pb2.DESCRIPTOR.enum_types_by_name,
}
THEIR_ENUMS: dict[str, Any] = {
    **triton.DESCRIPTOR.enum_types_by_name,
    **triton_config.DESCRIPTOR.enum_types_by_name,
}


def bare(full_name: str) -> str:
    """A type's name without its package."""
    return full_name.removeprefix("tideserve.v1.").removeprefix("inference.")


def field_facts(field: FieldDescriptor) -> dict[str, object]:
    """All that decides how a field lies on the wire, and what its user calls it."""
    oneof = field.containing_oneof
    return {
        "name": field.name,
        "number": field.number,
        "type": field.type,
        "repeated": field.is_repeated,
        "required": field.is_required,
        "packed": field.is_packed,
        "presence": field.has_presence,
        "message": bare(field.message_type.full_name) if field.message_type else None,
        "enum": bare(field.enum_type.full_name) if field.enum_type else None,
        "oneof": None if oneof is None else oneof.name,
        "default": None if field.is_repeated else field.default_value,
    }


def enum_facts(enum: EnumDescriptor) -> dict[str, int]:
    return {value.name: value.number for value in enum.values}


def messages(top: dict[str, Any]) -> Iterator[tuple[str, Descriptor]]:
    """Every message, those inside others included."""
    waiting = list(top.values())
    while waiting:
        message = waiting.pop()
        yield bare(message.full_name), message
        waiting += message.nested_types


def describe(message: Descriptor) -> dict[str, object]:
    return {
        "fields": sorted((field_facts(field) for field in message.fields), key=str),
        "oneofs": sorted(
            (oneof.name, sorted(field.name for field in oneof.fields)) for oneof in message.oneofs
        ),
        "map entry": message.GetOptions().map_entry,
        "nested": sorted(nested.name for nested in message.nested_types),
        "enums": {enum.name: enum_facts(enum) for enum in message.enum_types},
    }


def test_both_sides_have_the_same_messages() -> None:
    assert {name for name, _ in messages(OURS)} == {name for name, _ in messages(THEIRS)}
    assert len(OURS) > 40


@pytest.mark.parametrize("name", sorted(name for name, _ in messages(THEIRS)))
def test_every_field_is_tritons(name: str) -> None:
    assert describe(dict(messages(OURS))[name]) == describe(dict(messages(THEIRS))[name])


def test_top_level_enums_are_tritons() -> None:
    assert {name: enum_facts(enum) for name, enum in OUR_ENUMS.items()} == {
        name: enum_facts(enum) for name, enum in THEIR_ENUMS.items()
    }


def test_every_method_has_tritons_path_messages_and_shape() -> None:
    theirs = {
        f"/{service.full_name}/{method.name}": (
            method.input_type.name,
            method.output_type.name,
            method.client_streaming,
            method.server_streaming,
        )
        for service in triton.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    ours = {
        method.path: (
            method.request.DESCRIPTOR.name,
            method.response.DESCRIPTOR.name,
            method.kind is methods.Kind.BIDI,
            method.kind is not methods.Kind.UNARY,
        )
        for method in methods.INFERENCE
    }
    assert ours == theirs


def test_a_filled_request_has_the_same_bytes_on_both_sides() -> None:
    def fill(kind: Any) -> bytes:
        request = kind(model_name="m", model_version="3", id="é")
        request.parameters["priority"].uint64_param = 2
        tensor = request.inputs.add(name="x", datatype="INT32", shape=[2, 300])
        tensor.parameters["shared_memory_region"].string_param = "r"
        tensor.contents.int_contents.extend([-1, 0, 2**31 - 1])
        request.outputs.add(name="y").parameters["classification"].int64_param = -5
        request.raw_input_contents.extend([b"", b"\x00" * 300])
        data: bytes = request.SerializeToString(deterministic=True)
        return data

    data = fill(inference_pb2.ModelInferRequest)
    assert data == fill(triton.ModelInferRequest)
    assert str(inference_pb2.ModelInferRequest.FromString(data)) == str(
        triton.ModelInferRequest.FromString(data)
    )


def test_a_filled_configuration_has_the_same_bytes_on_both_sides() -> None:
    def fill(kind: Any) -> bytes:
        config = kind(name="m", max_batch_size=8, backend="onnxruntime")
        config.input.add(name="x", data_type=11, dims=[-1, 3], optional=True).reshape.shape.append(
            -1
        )
        config.dynamic_batching.preferred_batch_size.extend([2, 4])
        config.dynamic_batching.priority_queue_policy[2].timeout_action = 1
        config.version_policy.specific.versions.extend([1, 2**40])
        config.parameters["k"].string_value = "v"
        config.instance_group.add(kind=2, count=3, gpus=[0, 1])
        data: bytes = config.SerializeToString(deterministic=True)
        return data

    assert fill(model_config_pb2.ModelConfig) == fill(triton_config.ModelConfig)


@pytest.mark.parametrize(
    "modules",
    [
        ("tideserve.v1.methods", "tritonclient.grpc"),
        ("tritonclient.grpc", "tideserve.v1.methods"),
        ("tideserve.client", "tritonclient.grpc"),
        ("tritonclient.grpc", "tideserve.client"),
    ],
)
def test_both_can_be_imported_in_one_process_in_either_order(modules: tuple[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {modules[0]}; import {modules[1]}; print('both')"],
        capture_output=True,
        text=True,
        timeout=60,
        env=dict(os.environ),
    )
    assert (done.returncode, done.stdout.strip()) == (0, "both"), done.stderr
