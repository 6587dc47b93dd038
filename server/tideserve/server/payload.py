"""Client messages to validated tensors: what a ModelInfer must look like.

Tensors stay opaque bytes; `batch` joins and cuts them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from struct import unpack_from
from typing import Final, NamedTuple

from tideserve.server.errors import InvalidRequestError, UnsupportedError
from tideserve.server.model_spec import DATATYPE_BYTES, ModelSpec, TensorSpec
from tideserve.server.typed_contents import TYPED_CONTENTS, pack
from tideserve.server.wire import Buffer
from tideserve.v1.inference_pb2 import (
    InferParameter,
    InferTensorContents,
    ModelInferRequest,
)

MAX_ELEMENTS: Final = 1 << 40
MAX_NUMBER: Final = (1 << 64) - 1
# Dimensions that a sentence shows of a shape.
SHOWN_DIMS: Final = 16
SHARED_MEMORY: Final = "shared_memory_region"


class TensorPlan(NamedTuple):
    """What one input must be: `shape` with the batch dimension; `data_bytes` is None for
    BYTES, whose size the shape does not tell. `padded_shape`: in its batch."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data_bytes: int | None
    padded_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InferPlan:
    """All of a validated request but its data: the same for every request of its kind.

    `tensors` are in the model's order, `raw_order` says which raw content each one has;
    `outputs` () means all. Requests with equal signatures may share a batch (R3). `length` of
    what is padded, None: nothing is; `row_cost`: its length in a batch, else 1. `padding_bytes`:
    what the batch has beside the data.
    """

    tensors: tuple[TensorPlan, ...]
    raw_order: tuple[int, ...]
    rows: int
    signature: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[str, ...]
    priority: int
    timeout_s: float | None
    length: int | None = None
    row_cost: int = 1
    padding_bytes: int = 0


class InferInputs(NamedTuple):
    """A validated request: its plan, and row-major little-endian bytes for each tensor.
    `payload_bytes`: in a batch, with padding."""

    plan: InferPlan
    data: tuple[Buffer, ...]
    payload_bytes: int


def read_inputs(message: ModelInferRequest, spec: ModelSpec) -> InferInputs:
    """Checks a request against the model; raises `InvalidRequestError` with what was expected
    and what came, `UnsupportedError` for shared memory and classification."""
    found = _read_tensors(message, spec)
    tensors = tuple(tensor for tensor, _, _ in found)
    data = tuple(data for _, _, data in found)
    length = _padded_length(tensors, spec)
    row_cost = 1 if length is None or spec.padding is None else spec.padding.padded(length)
    padding_bytes = sum(
        (prod(tensor.padded_shape) - prod(tensor.shape)) * DATATYPE_BYTES[tensor.datatype]
        for tensor in tensors
    )
    if padding_bytes and padding_bytes + sum(map(len, data)) > spec.settings.batch.max_lease_bytes:
        # It would travel alone: as it came, or a few bytes could ask for gigabytes of padding.
        tensors = tuple(tensor._replace(padded_shape=tensor.shape) for tensor in tensors)
        row_cost, padding_bytes = length or 0, 0
    plan = InferPlan(
        tensors=tensors,
        raw_order=tuple(at for _, at, _ in found),
        rows=_rows(tensors, spec),
        signature=tuple(
            (tensor.name, tensor.padded_shape[1:] if spec.max_batch_size else tensor.shape)
            for tensor in tensors
        ),
        outputs=_read_outputs(message, spec) if message.outputs else (),
        priority=_read_priority(message, spec),
        timeout_s=_read_timeout_s(message),
        length=length,
        row_cost=row_cost,
        padding_bytes=padding_bytes,
    )
    return InferInputs(plan, data, padding_bytes + sum(map(len, data)))


def fill(plan: InferPlan, raw: Sequence[Buffer]) -> InferInputs | None:
    """A request of a known plan with these raw contents; None if they do not fit it."""
    if len(raw) != len(plan.tensors):
        return None
    data = []
    payload_bytes = plan.padding_bytes
    for tensor, at in zip(plan.tensors, plan.raw_order, strict=True):
        content = raw[at]
        size = len(content)
        if tensor.data_bytes is None:
            elements = prod(tensor.shape)
            if _count_bytes_elements(content, elements) != elements:
                return None
        elif size != tensor.data_bytes:
            return None
        payload_bytes += size
        data.append(content)
    return InferInputs(plan, tuple(data), payload_bytes)


def _read_tensors(
    message: ModelInferRequest, spec: ModelSpec
) -> list[tuple[TensorPlan, int, bytes]]:
    """Each given input with its place in the request and its data, in the model's order."""
    raw = message.raw_input_contents
    inputs = message.inputs
    if raw and len(raw) != len(inputs):
        raise InvalidRequestError(
            f"model '{spec.name}': expected raw_input_contents for all {len(inputs)} inputs "
            f"or for none, got {len(raw)}"
        )
    known = {tensor.name: tensor for tensor in spec.inputs}
    found: dict[str, tuple[TensorPlan, int, bytes]] = {}
    for at, tensor in enumerate(inputs):
        expected = known.get(tensor.name)
        if expected is None:
            raise InvalidRequestError(
                f"model '{spec.name}': unexpected input '{tensor.name}', "
                f"expected {names_of(spec.inputs)}"
            )
        if tensor.name in found:
            raise InvalidRequestError(f"model '{spec.name}': input '{tensor.name}' is given twice")
        data = _read_data(tensor, raw[at] if raw else None, expected, spec)
        shape = tuple(tensor.shape)
        data_bytes = len(data) if DATATYPE_BYTES[expected.datatype] else None
        padding = spec.padding
        padded = shape if padding is None else padding.padded_shape(expected.name, shape)
        plan = TensorPlan(expected.name, expected.datatype, shape, data_bytes, padded)
        found[expected.name] = (plan, at, data)
    missing = [tensor for tensor in spec.inputs if not tensor.optional and tensor.name not in found]
    if missing or not found:
        raise InvalidRequestError(
            f"model '{spec.name}': missing input {names_of(missing or spec.inputs)}, "
            f"got {', '.join(map(repr, found)) or 'none'}"
        )
    return [found[tensor.name] for tensor in spec.inputs if tensor.name in found]


def _read_data(
    tensor: ModelInferRequest.InferInputTensor,
    raw: bytes | None,
    expected: TensorSpec,
    spec: ModelSpec,
) -> bytes:
    """The checked contents of one input."""
    where = f"model '{spec.name}', input '{expected.name}'"
    if tensor.parameters and SHARED_MEMORY in tensor.parameters:
        raise UnsupportedError(
            f"{where} asks for shared memory, which this server does not have: send its contents "
            "in the request"
        )
    if tensor.datatype != expected.datatype:
        raise InvalidRequestError(
            f"{where}: expected datatype {expected.datatype}, got '{tensor.datatype}'"
        )
    shape = _read_shape(tensor.shape, expected, spec)
    if raw is None:
        raw = _pack(tensor.contents, expected, shape, spec)
    elif tensor.HasField("contents"):
        raise InvalidRequestError(
            f"{where}: expected its contents either in raw_input_contents or in contents, got both"
        )
    _check_size(expected, shape, raw, spec)
    return raw


def _read_shape(given: Sequence[int], expected: TensorSpec, spec: ModelSpec) -> tuple[int, ...]:
    """The checked shape. One of the wrong rank is not even copied: it may have millions of
    dimensions."""
    wanted = [-1, *expected.dims] if spec.max_batch_size else [*expected.dims]
    shape = tuple(given) if len(given) == len(wanted) else None
    # 2**40 elements cannot fit a message. Sizes beside a 0 count too: numpy refuses an empty
    # array whose other sizes are absurd.
    if (
        shape is None
        or not all(got >= 0 and want in (-1, got) for want, got in zip(wanted, shape, strict=True))
        or prod(max(1, size) for size in shape) > MAX_ELEMENTS
    ):
        rows = (
            f", its first dimension being the rows (1 to {spec.max_batch_size})"
            if spec.max_batch_size
            else ""
        )
        raise InvalidRequestError(
            f"model '{spec.name}', input '{expected.name}': expected shape {wanted}{rows}, "
            f"got {_shown(given)}"
        )
    return shape


def _shown(shape: Sequence[int]) -> str:
    """A shape in a sentence, of which only the beginning if it is absurdly long."""
    if len(shape) <= SHOWN_DIMS:
        return str(list(shape))
    sizes = ", ".join(map(str, shape[:SHOWN_DIMS]))
    return f"[{sizes}, ...] of {len(shape)} dimensions"


def _check_size(expected: TensorSpec, shape: tuple[int, ...], data: bytes, spec: ModelSpec) -> None:
    elements = prod(shape)
    element_bytes = DATATYPE_BYTES[expected.datatype]
    if element_bytes:
        if len(data) != elements * element_bytes:
            raise InvalidRequestError(
                f"model '{spec.name}', input '{expected.name}': expected "
                f"{elements * element_bytes} bytes for {expected.datatype} {list(shape)}, "
                f"got {len(data)}"
            )
        return
    count = _count_bytes_elements(data, elements)
    if count != elements:
        if count < 0:
            what = "length prefixes that do not fit the data"
        else:
            what = f"{count}" if count < elements else f"more, in {len(data)} bytes"
        raise InvalidRequestError(
            f"model '{spec.name}', input '{expected.name}': expected {elements} BYTES elements "
            f"for shape {list(shape)}, each with a 4-byte little-endian length, got {what}"
        )


def _count_bytes_elements(data: Buffer, expected: int) -> int:
    """Elements of a BYTES tensor, one too many for any number above `expected`; -1 if the
    lengths do not add up."""
    at = count = 0
    end = len(data)
    while at + 4 <= end and count <= expected:
        at += 4 + unpack_from("<I", data, at)[0]
        count += 1
    return count if at == end or count > expected else -1


def _pack(
    contents: InferTensorContents, expected: TensorSpec, shape: tuple[int, ...], spec: ModelSpec
) -> bytes:
    """Typed contents as raw bytes."""
    where = f"model '{spec.name}', input '{expected.name}'"
    if expected.datatype not in TYPED_CONTENTS:
        raise InvalidRequestError(
            f"{where}: {expected.datatype} has no typed contents, send raw_input_contents"
        )
    field, _ = TYPED_CONTENTS[expected.datatype]
    for descriptor, _ in contents.ListFields():
        if descriptor.name != field:
            raise InvalidRequestError(
                f"{where}: expected {expected.datatype} in contents.{field}, "
                f"got contents.{descriptor.name}"
            )
    values = getattr(contents, field)
    if len(values) != prod(shape):
        raise InvalidRequestError(
            f"{where}: expected {prod(shape)} elements in contents.{field} for shape "
            f"{list(shape)}, got {len(values)}"
        )
    try:
        return pack(contents, expected.datatype)
    except OverflowError as error:
        raise InvalidRequestError(
            f"{where}: a value does not fit {expected.datatype}: {error}"
        ) from error


def _padded_length(tensors: tuple[TensorPlan, ...], spec: ModelSpec) -> int | None:
    """The size, one for all inputs, of the dimension that is padded."""
    padding = spec.padding
    if padding is None:
        return None
    found = {t.name: t.shape[padding.axis] for t in tensors if t.name in padding.elements}
    if len(set(found.values())) > 1:
        sizes = ", ".join(f"{size} in '{name}'" for name, size in found.items())
        raise InvalidRequestError(
            f"model '{spec.name}': expected the same size of dimension {padding.axis}, which is "
            f"padded, in every input, got {sizes}"
        )
    return next(iter(found.values()), None)


def _rows(tensors: tuple[TensorPlan, ...], spec: ModelSpec) -> int:
    if not spec.max_batch_size:
        return 1
    rows = tensors[0].shape[0]
    for tensor in tensors:
        if tensor.shape[0] != rows:
            raise InvalidRequestError(
                f"model '{spec.name}': expected the same rows in every input, got {rows} in "
                f"'{tensors[0].name}' and {tensor.shape[0]} in '{tensor.name}'"
            )
    if not 1 <= rows <= spec.max_batch_size:
        raise InvalidRequestError(
            f"model '{spec.name}': expected 1 to {spec.max_batch_size} rows "
            f"(max_batch_size), got {rows}"
        )
    return rows


def _read_outputs(message: ModelInferRequest, spec: ModelSpec) -> tuple[str, ...]:
    known = {tensor.name for tensor in spec.outputs}
    names: list[str] = []
    for output in message.outputs:
        if output.name not in known:
            raise InvalidRequestError(
                f"model '{spec.name}': unexpected requested output '{output.name}', "
                f"expected {names_of(spec.outputs)}"
            )
        if output.name in names:
            raise InvalidRequestError(
                f"model '{spec.name}': output '{output.name}' is requested twice"
            )
        for parameter in (SHARED_MEMORY, "classification"):
            if parameter in output.parameters:
                raise UnsupportedError(
                    f"output '{output.name}' asks for {parameter}, which this server does not "
                    "have: take the tensor itself"
                )
        names.append(output.name)
    return tuple(names)


def _read_priority(message: ModelInferRequest, spec: ModelSpec) -> int:
    if "priority" not in message.parameters:
        return 0
    priority = _whole_number(message.parameters["priority"], "priority")
    levels = spec.settings.queue.priority_levels
    if levels <= 1:
        return 0
    if not 0 <= priority <= levels:
        raise InvalidRequestError(
            f"model '{spec.name}': expected a priority from 1 (highest) to {levels}, "
            f"or 0 for the default, got {priority}"
        )
    return priority


def _read_timeout_s(message: ModelInferRequest) -> float | None:
    if "timeout" not in message.parameters:
        return None
    timeout_us = _whole_number(message.parameters["timeout"], "timeout")
    return timeout_us / 1e6 if timeout_us else None


def _whole_number(parameter: InferParameter, name: str) -> int:
    choice = parameter.WhichOneof("parameter_choice")
    value = None if choice is None else getattr(parameter, choice)
    # Triton's HTTP bridge and some clients send numbers as text.
    if isinstance(value, str) and len(value) <= len(str(MAX_NUMBER)):
        value = int(value) if value.isascii() and value.isdecimal() else value
    if type(value) is not int or not 0 <= value <= MAX_NUMBER:
        raise InvalidRequestError(
            f"parameter '{name}': expected a whole number from 0 to {MAX_NUMBER} in int64_param, "
            f"got {value!r} in {choice or 'none'}"
        )
    return value


def names_of(tensors: Sequence[TensorSpec]) -> str:
    """For a sentence."""
    return ", ".join(f"'{tensor.name}'" for tensor in tensors)
