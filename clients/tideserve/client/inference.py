"""One inference: arrays to a request, a response to arrays."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tideserve.client.errors import InvalidArgument, InvalidResponse
from tideserve.v1.inference_pb2 import InferParameter, ModelInferRequest, ModelInferResponse
from tideserve.v1.segments import (
    MIN_OUTPUT_BYTES,
    OUTPUTS_BYTE_SIZE,
    OUTPUTS_OFFSET,
    OUTPUTS_REGION,
    aligned,
)

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from tideserve.client.segments import Segment
    from tideserve.client.tensors import Array, WireTensor

# numpy is imported by the first request, not with the client: `tideserve health` runs in
# containers every few seconds and needs none (numpy is about half of its start-up).

Parameter = bool | int | float | str

_RESERVED: Final = {"priority": "priority", "timeout": "queue_timeout_s"}
_INT64_MAX: Final = 2**63 - 1
_UINT64_MAX: Final = 2**64 - 1
# From here on a copy through shared memory is cheaper than the way through the connection
# (docs/decisions/0011).
SHARED_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class InferOptions:
    """What a request says beside its tensors. `priority` 1 is the highest;
    `queue_timeout_s` travels as the parameter `timeout` in microseconds."""

    version: str = ""
    outputs: Sequence[str] | None = None
    priority: int | None = None
    queue_timeout_s: float | None = None
    request_id: str = ""
    parameters: Mapping[str, Parameter] | None = None


def request_of(
    model: str, inputs: "Mapping[str, ArrayLike]", options: InferOptions
) -> ModelInferRequest:
    """The request, with raw contents. Raises `InvalidArgument` for what cannot be sent."""
    return request_from(model, encoded(model, inputs, options), options)


def encoded(
    model: str, inputs: "Mapping[str, ArrayLike]", options: InferOptions
) -> "dict[str, WireTensor]":
    """The inputs in wire form. Raises `InvalidArgument` for what cannot be sent."""
    from tideserve.client.tensors import encode

    if not model:
        raise InvalidArgument("expected the name of a model, got an empty string")
    if not isinstance(inputs, Mapping):
        raise InvalidArgument(
            f"inputs: expected a mapping of names to arrays, got {type(inputs).__name__}",
            model=model,
        )
    if isinstance(options.outputs, str):
        raise InvalidArgument(
            f"outputs: expected a sequence of names, got the string {options.outputs!r}",
            model=model,
        )
    return {name: encode(name, value) for name, value in inputs.items()}


def shared_bytes(tensors: "Mapping[str, WireTensor]") -> int:
    """What a segment must hold for these inputs; 0: none of them is large."""
    return sum(
        aligned(tensor.byte_size) for tensor in tensors.values() if tensor.byte_size >= SHARED_BYTES
    )


def request_from(
    model: str,
    tensors: "Mapping[str, WireTensor]",
    options: InferOptions,
    segment: "Segment | None" = None,
) -> ModelInferRequest:
    """The request. Large inputs are written to the segment, of at least `shared_bytes`, where there
    is one, and what it has left is for outputs; the others are its raw contents. Raises
    `InvalidArgument`."""
    request = ModelInferRequest(
        model_name=model, model_version=options.version, id=options.request_id
    )
    offset = 0
    for name, tensor in tensors.items():
        placed = request.inputs.add(name=name, datatype=tensor.datatype, shape=tensor.shape)
        if segment is None or tensor.byte_size < SHARED_BYTES:
            request.raw_input_contents.append(tensor.data)
            continue
        tensor.write_to(segment.memory, offset)
        placed.parameters["shared_memory_region"].string_param = segment.name
        placed.parameters["shared_memory_offset"].int64_param = offset
        placed.parameters["shared_memory_byte_size"].int64_param = tensor.byte_size
        offset += aligned(tensor.byte_size)
    if segment is not None and segment.byte_size - offset >= MIN_OUTPUT_BYTES:
        request.parameters[OUTPUTS_REGION].string_param = segment.name
        request.parameters[OUTPUTS_OFFSET].int64_param = offset
        request.parameters[OUTPUTS_BYTE_SIZE].int64_param = segment.byte_size - offset
    for name in options.outputs or ():
        request.outputs.add(name=name)
    _set_parameters(request, options)
    return request


def without_segment(request: ModelInferRequest, segment: "Segment") -> ModelInferRequest:
    """The request that `request_from` made with the segment, with all inputs as raw contents: a copy
    of what it was given there."""
    plain = ModelInferRequest()
    plain.CopyFrom(request)
    raw = iter(request.raw_input_contents)
    del plain.raw_input_contents[:]
    for tensor in plain.inputs:
        if "shared_memory_region" not in tensor.parameters:
            plain.raw_input_contents.append(next(raw))
            continue
        offset = tensor.parameters["shared_memory_offset"].int64_param
        byte_size = tensor.parameters["shared_memory_byte_size"].int64_param
        plain.raw_input_contents.append(segment.read(offset, byte_size))
        tensor.parameters.clear()
    for name in (OUTPUTS_REGION, OUTPUTS_OFFSET, OUTPUTS_BYTE_SIZE):
        plain.parameters.pop(name, None)
    return plain


def outputs_of(
    response: ModelInferResponse, segment: "Segment | None" = None
) -> "dict[str, Array]":
    """The outputs by name, in the response's order, from raw or typed contents, or copied from the
    segment that the request gave them.

    Raises `InvalidResponse`.
    """
    from tideserve.client.tensors import decode_contents, decode_raw

    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise InvalidResponse(
            f"expected raw contents for each of {len(response.outputs)} outputs, got {len(raw)}",
            model=response.model_name,
        )
    arrays: dict[str, Array] = {}
    for index, output in enumerate(response.outputs):
        shape = tuple(output.shape)
        if raw:
            data = raw[index]
            if segment is not None and "shared_memory_region" in output.parameters:
                data = _placed(output, segment, response.model_name)
            array = decode_raw(output.name, output.datatype, shape, data)
        elif output.HasField("contents") or 0 in shape:
            array = decode_contents(output.name, output.datatype, shape, output.contents)
        else:
            raise InvalidResponse(
                f"output {output.name!r} came without contents", model=response.model_name
            )
        if output.name in arrays:
            raise InvalidResponse(f"output {output.name!r} came twice", model=response.model_name)
        arrays[output.name] = array
    return arrays


def _placed(output: ModelInferResponse.InferOutputTensor, segment: "Segment", model: str) -> bytes:
    parameters = output.parameters
    region = parameters["shared_memory_region"].string_param
    if region != segment.name:
        raise InvalidResponse(
            f"output {output.name!r}: expected it in shared memory {segment.name!r}, got {region!r}",
            model=model,
        )
    try:
        return segment.read(
            parameters["shared_memory_offset"].int64_param,
            parameters["shared_memory_byte_size"].int64_param,
        )
    except ValueError as error:
        raise InvalidResponse(f"output {output.name!r}: {error}", model=model) from error


def _set_parameters(request: ModelInferRequest, options: InferOptions) -> None:
    for key, value in (options.parameters or {}).items():
        if key in _RESERVED:
            raise InvalidArgument(
                f"parameter {key!r} is reserved: use the argument {_RESERVED[key]}",
                model=request.model_name,
            )
        _set(request.parameters[key], key, value)
    if options.priority is not None:
        if not 0 <= options.priority <= _UINT64_MAX:
            raise InvalidArgument(
                f"priority: expected 1 (highest) or more, or 0 for the model's default, "
                f"got {options.priority}",
                model=request.model_name,
            )
        request.parameters["priority"].uint64_param = options.priority
    if options.queue_timeout_s is not None:
        if not 0 < options.queue_timeout_s < _INT64_MAX / 1e6:
            raise InvalidArgument(
                f"queue_timeout_s: expected more than 0, got {options.queue_timeout_s}",
                model=request.model_name,
            )
        # At least one: 0 would mean no timeout.
        request.parameters["timeout"].int64_param = max(1, round(options.queue_timeout_s * 1e6))


def _set(parameter: InferParameter, key: str, value: Parameter) -> None:
    match value:
        case bool():
            parameter.bool_param = value
        case int() if -_INT64_MAX - 1 <= value <= _INT64_MAX:
            parameter.int64_param = value
        case int() if 0 < value <= _UINT64_MAX:
            parameter.uint64_param = value
        case float():
            parameter.double_param = value
        case str():
            parameter.string_param = value
        case _:
            raise InvalidArgument(
                f"parameter {key!r}: expected bool, an integer of 64 bits, float or str, got "
                f"{type(value).__name__} {value!r}"
            )
