"""ONNX Runtime's bindings, made once for batches whose tensors lie in the same places.

A binding takes several calls into the runtime to make, one to use. The frontend puts leases of a kind
where it put those before, and outcomes go where earlier ones were: a few bindings serve nearly all
batches. https://onnxruntime.ai/docs/api/python/api_summary.html#iobinding
"""

from typing import Any, Final, NamedTuple

import numpy as np
import onnxruntime as ort

from tideserve.replica.backends import Array, Arrays

# Inputs below this size are copied to where a binding has its own: theirs come in messages, each
# somewhere else.
_SMALL_BYTES: Final = 16 * 1024
# Then all are made anew: what they hold beside the small inputs is a few hundred bytes each.
_MAX_BINDINGS: Final = 256
_MAX_HELD_BYTES: Final = 4 * 1024 * 1024
# Places of small outputs that were seen once. A binding takes 46 us to make, a call without one 9:
# where inputs have another shape each time, none is used again.
_MAX_SEEN: Final = 1024

# By tensor: name, address (None: wherever it lies), shape, type.
_Key = tuple[tuple[str, int | None, tuple[int, ...], Any], ...]


class _Binding(NamedTuple):
    binding: Any
    small: list[tuple[str, Array]]
    """Its own memory of these inputs."""


class Bindings:
    """Owns a session's bindings by where tensors lie. They hold addresses and no memory but the
    small inputs': an address is used again only for an array that lies there now."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._bindings: dict[_Key, _Binding] = {}
        self._held_bytes = 0
        self._seen: set[_Key] = set()

    def run(self, inputs: Arrays, outputs: Arrays) -> bool:
        """Runs the model on contiguous arrays in the CPU's memory. False: not all of the outputs
        are written there. Raises what the runtime raises."""
        key: _Key = (
            *[_input_key(name, array) for name, array in inputs.items()],
            *[(name, _address(array), array.shape, array.dtype) for name, array in outputs.items()],
        )
        bound = self._bindings.get(key)
        if bound is not None:
            for name, memory in bound.small:
                memory[...] = inputs[name]
            self._session.run_with_iobinding(bound.binding)
            return True
        if self._is_new(key, outputs):
            return self._run_unbound(inputs, outputs)
        bound = self._bind(inputs, outputs)
        self._session.run_with_iobinding(bound.binding)
        # An output that is also an input comes as that input, and nothing is written: so it is in
        # a graph, whatever its inputs are.
        given = zip(outputs.values(), bound.binding.get_outputs(), strict=True)
        if not all(value.data_ptr() == _address(array) for array, value in given if array.size):
            return False
        self._keep(key, bound)
        return True

    def _is_new(self, key: _Key, outputs: Arrays) -> bool:
        """Small outputs, which may be copied, where none were seen before."""
        if sum([array.nbytes for array in outputs.values()]) >= _SMALL_BYTES or key in self._seen:
            return False
        if len(self._seen) >= _MAX_SEEN:
            self._seen.clear()
        self._seen.add(key)
        return True

    def _run_unbound(self, inputs: Arrays, outputs: Arrays) -> bool:
        results = self._session.run(list(outputs), inputs)
        for array, result in zip(outputs.values(), results, strict=True):
            if result.shape != array.shape or result.dtype != array.dtype:
                return False
            array[...] = result
        return True

    def _keep(self, key: _Key, bound: _Binding) -> None:
        held_bytes = sum([memory.nbytes for _, memory in bound.small])
        is_full = self._held_bytes + held_bytes > _MAX_HELD_BYTES
        if is_full or len(self._bindings) >= _MAX_BINDINGS:
            self._bindings.clear()
            self._held_bytes = 0
        self._bindings[key] = bound
        self._held_bytes += held_bytes

    def _bind(self, inputs: Arrays, outputs: Arrays) -> _Binding:
        """Raises for what `InferenceSession.run` takes: optional inputs, and initializers in their
        place."""
        binding = self._session.io_binding()
        small: list[tuple[str, Array]] = []
        for name, array in inputs.items():
            memory = array
            if array.nbytes < _SMALL_BYTES:
                memory = np.array(array)
                small.append((name, memory))
            _check(name, memory)
            binding.bind_input(name, "cpu", 0, memory.dtype.type, memory.shape, _address(memory))
        for name, array in outputs.items():
            _check(name, array)
            binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, _address(array))
        return _Binding(binding, small)


def _input_key(name: str, array: Array) -> tuple[str, int | None, tuple[int, ...], Any]:
    address = None if array.nbytes < _SMALL_BYTES else _address(array)
    return name, address, array.shape, array.dtype


def _address(array: Array) -> int:
    # `array.ctypes` takes twice as long.
    address: int = array.__array_interface__["data"][0]
    return address


def _check(name: str, array: Array) -> None:
    """That the runtime may read or write it by its address."""
    if array.dtype.kind == "O" or not array.flags.c_contiguous or not array.dtype.isnative:
        raise ValueError(
            f"tensor {name!r}: expected a contiguous array of numbers, got {array.dtype} "
            f"{list(array.shape)} with strides {list(array.strides)}"
        )
