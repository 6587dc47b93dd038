"""A client's ModelInfer, read and checked against its model.

It decides what a request must look like, and words what is wrong with one. Of most kinds it sees
the first request only: what is then known of the kind is in `infer_inputs`.
"""

from math import prod

from tideserve.server.contents import check_bytes, check_size, pack, read_shape
from tideserve.server.errors import InvalidRequestError, UnsupportedError
from tideserve.server.infer_inputs import (
    Content,
    InferInputs,
    InferPlan,
    TensorPlan,
    content_of,
    targets_of,
)
from tideserve.server.model_spec import DATATYPE_BYTES, ModelSpec, TensorSpec, names_of
from tideserve.server.parameters import whole_number
from tideserve.server.placement import OUTPUTS, Place, Places, given_bytes, read_place
from tideserve.server.shared_regions import SharedRegions
from tideserve.v1.inference_pb2 import ModelInferRequest


def read_inputs(
    message: ModelInferRequest, spec: ModelSpec, regions: SharedRegions | None = None
) -> InferInputs:
    """Checks a request against the model; raises `InvalidRequestError` with what was expected
    and what came, `UnsupportedError` for classification, and for shared memory without `regions`,
    `MessageTooLargeError`."""
    places = _read_places(message, spec, regions)
    found = _read_tensors(message, spec, places, regions)
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
        places=places,
    )
    return InferInputs(
        plan,
        data,
        padding_bytes + sum(map(len, data)),
        *(targets_of(plan, regions) if places is not None else ((), None)),
    )


def _read_places(
    message: ModelInferRequest, spec: ModelSpec, regions: SharedRegions | None
) -> Places | None:
    """None for a request that asks for no shared memory. Its size is checked before any is read."""
    model = f"model '{spec.name}'"
    inputs = tuple(read_place(t.parameters, f"{model}, input '{t.name}'") for t in message.inputs)
    outputs = tuple(
        read_place(t.parameters, f"{model}, output '{t.name}'") for t in message.outputs
    )
    spare = read_place(message.parameters, model, OUTPUTS)
    if not any(inputs) and not any(outputs) and spare is None:
        return None
    if regions is None:
        raise UnsupportedError(
            f"{model}: the request asks for shared memory, which this server does not have: send "
            "contents in the request"
        )
    regions.check_size(given_bytes(inputs), model)
    return Places(inputs, outputs, spare)


def _read_tensors(
    message: ModelInferRequest,
    spec: ModelSpec,
    places: Places | None,
    regions: SharedRegions | None,
) -> list[tuple[TensorPlan, int, Content]]:
    """Each given input with its place in the request and its data, in the model's order."""
    raw = message.raw_input_contents
    inputs = message.inputs
    in_message = len(inputs) if places is None else places.in_message()
    if raw and len(raw) != in_message:
        which = "" if places is None else " that are not in shared memory"
        raise InvalidRequestError(
            f"model '{spec.name}': expected raw_input_contents for all {in_message} inputs{which} "
            f"or for none, got {len(raw)}"
        )
    rest = iter(raw)
    known = {tensor.name: tensor for tensor in spec.inputs}
    found: dict[str, tuple[TensorPlan, int, Content]] = {}
    for at, tensor in enumerate(inputs):
        expected = known.get(tensor.name)
        if expected is None:
            raise InvalidRequestError(
                f"model '{spec.name}': unexpected input '{tensor.name}', "
                f"expected {names_of(spec.inputs)}"
            )
        if tensor.name in found:
            raise InvalidRequestError(f"model '{spec.name}': input '{tensor.name}' is given twice")
        place = None if places is None else places.inputs[at]
        data: Content
        if place is None:
            data = _read_data(tensor, next(rest) if raw else None, expected, spec)
        else:
            assert regions is not None
            data = _read_shared(tensor, place, expected, spec, regions)
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
    shape = _read_kind(tensor, expected, spec)
    if raw is None:
        raw = pack(tensor.contents, expected, shape, spec)
    elif tensor.HasField("contents"):
        raise InvalidRequestError(
            f"{where}: expected its contents either in raw_input_contents or in contents, got both"
        )
    check_size(expected, shape, raw, spec)
    return raw


def _read_shared(
    tensor: ModelInferRequest.InferInputTensor,
    place: Place,
    expected: TensorSpec,
    spec: ModelSpec,
    regions: SharedRegions,
) -> Content:
    """The checked contents of one input that lies in a region."""
    where = f"model '{spec.name}', input '{expected.name}'"
    shape = _read_kind(tensor, expected, spec)
    if tensor.HasField("contents"):
        raise InvalidRequestError(
            f"{where}: expected its contents either in shared memory or in contents, got both"
        )
    element_bytes = DATATYPE_BYTES[expected.datatype]
    if element_bytes:
        check_bytes(expected, shape, place.byte_size, spec)
    padding = spec.padding
    is_padded = padding is not None and expected.name in padding.elements
    is_late = bool(element_bytes) and not is_padded
    data = content_of(regions.slice(place, where), is_late=is_late)
    if isinstance(data, bytes):
        check_size(expected, shape, data, spec)
    return data


def _read_kind(
    tensor: ModelInferRequest.InferInputTensor, expected: TensorSpec, spec: ModelSpec
) -> tuple[int, ...]:
    """The checked shape of an input of the right datatype."""
    if tensor.datatype != expected.datatype:
        raise InvalidRequestError(
            f"model '{spec.name}', input '{expected.name}': expected datatype "
            f"{expected.datatype}, got '{tensor.datatype}'"
        )
    return read_shape(tensor.shape, expected, spec)


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
        if "classification" in output.parameters:
            raise UnsupportedError(
                f"output '{output.name}' asks for classification, which this server does not "
                "have: take the tensor itself"
            )
        names.append(output.name)
    return tuple(names)


def _read_priority(message: ModelInferRequest, spec: ModelSpec) -> int:
    if "priority" not in message.parameters:
        return 0
    priority = whole_number(message.parameters["priority"], "priority")
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
    timeout_us = whole_number(message.parameters["timeout"], "timeout")
    return timeout_us / 1e6 if timeout_us else None
