"""PyTorch: TorchScript (`model.pt`) and torch.export (`model.pt2`).

The CUDA path has not run on such a device yet.
"""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from tideserve.replica.backends import Array, Arrays, ModelFiles
from tideserve.replica.completion import FileTensor, complete
from tideserve.replica.datatypes import numpy_type
from tideserve.replica.errors import BadOutputError, LoadError
from tideserve.replica.model_io import model_io
from tideserve.v1.model_config_pb2 import ModelConfig

_DATATYPES: Final = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
# Triton's names for the inputs and outputs of TorchScript: anything, two underscores, a number.
_INDEXED: Final = re.compile(r".*__(\d+)")


def open_model(files: ModelFiles) -> "TorchBackend":
    """Raises `LoadError`."""
    # Inputs are views of the message they came in; a model that writes into one changes
    # bytes that nobody else reads.
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")
    if files.threads:
        torch.set_num_threads(files.threads)
    device = _device(files)
    exported = files.path.suffix == ".pt2"
    try:
        model = _open_exported(files.path, device) if exported else _open_script(files.path, device)
    except Exception as error:
        kind = "torch.export program" if exported else "TorchScript file"
        raise LoadError(f"PyTorch cannot load {files.path} as a {kind}: {error}") from error
    return TorchBackend(model, device)


def _device(files: ModelFiles) -> torch.device:
    index = files.device.index
    if index is None:
        return torch.device("cpu")
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise LoadError(f"device {files.device}: this PyTorch sees {count} CUDA devices")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


@dataclass(frozen=True, slots=True)
class _Model:
    """A callable and what its file says of its arguments and results. The first
    `positional` of the arguments go by place, the others by their name in `keywords`."""

    call: Callable[..., Any]
    arguments: tuple[str, ...]
    keywords: tuple[str, ...]
    positional: int = 0
    inputs: tuple[FileTensor, ...] = ()
    outputs: tuple[FileTensor, ...] = ()


def _open_script(path: Path, device: torch.device) -> _Model:
    with warnings.catch_warnings():
        # PyTorch 2.13 deprecates TorchScript; files made with it are what users have.
        warnings.filterwarnings("ignore", r"`torch\.jit\.", DeprecationWarning)
        module = torch.jit.load(str(path), map_location=device)
    module.eval()
    _, *names = (argument.name for argument in module.forward.schema.arguments)
    return _Model(module, tuple(names), tuple(names))


def _open_exported(path: Path, device: torch.device) -> _Model:
    program = torch.export.load(str(path))
    if device.type != "cpu":
        program = torch.export.passes.move_to_device_pass(program, device)
    signature = program.graph_signature
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    names = tuple(str(name) for name in signature.user_inputs)
    # A program is called as it was exported: the same arguments by place and by name.
    spec = program.call_spec.in_spec
    # PyTorch 2.6 has the attribute only, which later ones deprecate.
    by_place, by_name = spec.children() if hasattr(spec, "children") else spec.children_specs
    keywords = tuple(by_name.context)
    positional = by_place.num_children
    if positional + len(keywords) != len(names):
        raise LoadError("its arguments are nested: expected one tensor each")
    return _Model(
        program.module(),
        names,
        keywords,
        positional,
        tuple(_file_tensor(name, values.get(name)) for name in names),
        tuple(
            _file_tensor(f"OUTPUT__{at}", values.get(str(name)))
            for at, name in enumerate(signature.user_outputs)
        ),
    )


def _file_tensor(name: str, value: Any) -> FileTensor:
    if not isinstance(value, torch.Tensor):
        raise LoadError(f"{name!r} of the exported program is no tensor")
    if value.dtype not in _DATATYPES:
        raise LoadError(f"{name!r} has the type {value.dtype}, which has no name on the wire")
    shape = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)
    return FileTensor(name, _DATATYPES[value.dtype], shape)


class TorchBackend:
    """Owns one module. Inputs go to arguments by name, by Triton's `NAME__index`, or in the
    configuration's order; outputs by key, by index, or in order."""

    def __init__(self, model: _Model, device: torch.device) -> None:
        self._model: _Model | None = model
        self._device = device
        self._places: dict[str, int] = {}
        self._output_places: dict[str, int] = {}

    def complete(self, config: ModelConfig) -> ModelConfig:
        assert self._model is not None
        model = self._model
        completed = ModelConfig()
        completed.CopyFrom(config)
        if model.inputs:
            named_as_file = not config.input or {t.name for t in config.input} == set(
                model.arguments
            )
            if not config.output and named_as_file:
                completed = complete(config, model.inputs, model.outputs)
        if not completed.input or not completed.output:
            raise LoadError(
                "the model file does not tell its types and sizes: config.pbtxt must give "
                f"input and output (forward takes {', '.join(model.arguments) or 'nothing'})"
            )
        self._place(completed)
        return completed

    def _place(self, config: ModelConfig) -> None:
        assert self._model is not None
        io = model_io(config)
        for tensor in (*io.inputs, *io.outputs):
            if tensor.datatype == "BYTES":
                raise LoadError(f"{tensor.name!r}: PyTorch tensors cannot be TYPE_STRING")
        arguments = self._model.arguments
        names = [tensor.name for tensor in io.inputs]
        if all(name in arguments for name in names):
            self._places = {name: arguments.index(name) for name in names}
        elif len(names) > len(arguments):
            raise LoadError(
                f"config.pbtxt has {len(names)} inputs, forward takes {len(arguments)}: "
                f"{', '.join(arguments)}"
            )
        else:
            self._places = _places(names)
        if max(self._places.values()) >= len(arguments):
            raise LoadError(
                f"expected inputs numbered below {len(arguments)}, got {', '.join(names)}"
            )
        self._output_places = _places([tensor.name for tensor in io.outputs])

    def infer(self, inputs: Arrays, requested: tuple[str, ...]) -> Arrays:
        model = self._model
        assert model is not None
        with torch.inference_mode():
            given = {self._places[name]: self._to_tensor(array) for name, array in inputs.items()}
            result = model.call(
                *(given.get(place) for place in range(model.positional)),
                **{
                    name: given[place]
                    for place, name in enumerate(model.keywords, start=model.positional)
                    if place in given
                },
            )
            return {name: _to_array(self._pick(result, name)) for name in requested}

    def close(self) -> None:
        self._model = None
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _to_tensor(self, array: Array) -> torch.Tensor:
        if array.dtype.name == "bfloat16":
            tensor = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
        else:
            tensor = torch.from_numpy(array)
        if self._device.type == "cpu":
            return tensor
        # From pinned memory the copy runs beside the host. The arena may be that already
        # (`pinned.py`): its places stay as they are until the outputs are on the host, which the
        # device's stream does after this copy. Else the caching allocator keeps the pinned block
        # until the copy is done.
        if not tensor.is_pinned():
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _pick(self, result: Any, name: str) -> torch.Tensor:
        if isinstance(result, Mapping):
            found = result.get(name)
            there = f"a dict of {', '.join(map(str, result))}"
        else:
            items = list(result) if isinstance(result, tuple | list) else [result]
            place = self._output_places[name]
            found = items[place] if place < len(items) else None
            there = f"{len(items)} outputs"
        if isinstance(found, torch.Tensor):
            return found
        raise BadOutputError(f"output {name!r}: expected a tensor, the model returned {there}")


def _places(names: Sequence[str]) -> dict[str, int]:
    """Positions by Triton's `NAME__index` if all names are such, else by order."""
    matches = [_INDEXED.fullmatch(name) for name in names]
    if all(matches):
        indices = [int(match[1]) for match in matches if match]
        if len(set(indices)) == len(indices):
            return dict(zip(names, indices, strict=True))
    return {name: at for at, name in enumerate(names)}


def _to_array(tensor: torch.Tensor) -> Array:
    host = tensor.detach().cpu().contiguous()
    if host.dtype == torch.bfloat16:
        bits: Array = host.view(torch.int16).numpy()
        return bits.view(numpy_type("BF16"))
    array: Array = host.numpy()
    return array
