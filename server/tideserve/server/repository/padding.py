"""`tideserve.pad` and the model's tensors together: what is padded, and with which bytes."""

from collections.abc import Sequence
from typing import Final

from tideserve.server.errors import ModelConfigError
from tideserve.server.model_spec import TensorSpec
from tideserve.server.padding import Padding, pad_element
from tideserve.server.repository.parameters import Pad

_KEY: Final = "parameters: tideserve.pad"


def padding_of(
    pad: Pad,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    max_batch_size: int,
    source: str,
) -> Padding:
    """Raises `ModelConfigError` where nothing could be padded, or not with that value."""
    if max_batch_size == 0:
        raise ModelConfigError(
            f"{source}: {_KEY}: expected a max_batch_size of 1 or more with it, got 0: requests "
            "of this model travel alone"
        )
    padded = [tensor for tensor in inputs if _is_open(tensor, pad.dim)]
    if not padded:
        raise ModelConfigError(
            f"{source}: {_KEY}: expected an input whose dims[{pad.dim}] is -1, got "
            f"{', '.join(f'{tensor.name!r} {list(tensor.dims)}' for tensor in inputs)}"
        )
    names = {tensor.name for tensor in padded}
    strangers = sorted(pad.values.keys() - names)
    if strangers:
        raise ModelConfigError(
            f"{source}: {_KEY}: value.{strangers[0]}: expected a padded input, "
            f"{', '.join(sorted(names))}"
        )
    return Padding(
        dim=pad.dim,
        edges=pad.edges,
        elements={
            tensor.name: _element(tensor, pad.values.get(tensor.name, pad.value), source)
            for tensor in padded
        },
        outputs=frozenset(tensor.name for tensor in outputs if _is_open(tensor, pad.dim)),
    )


def _is_open(tensor: TensorSpec, dim: int) -> bool:
    return len(tensor.dims) > dim and tensor.dims[dim] == -1 and tensor.model_dims is None


def _element(tensor: TensorSpec, value: float, source: str) -> bytes:
    element = pad_element(tensor.datatype, value)
    if element is None:
        can = "a datatype of fixed size" if tensor.datatype == "BYTES" else "a value that it has"
        raise ModelConfigError(
            f"{source}: {_KEY}: input {tensor.name!r}: expected {can}, got {tensor.datatype} "
            f"and {value:g}"
        )
    return element
