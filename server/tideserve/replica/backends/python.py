"""The python backend: a `model.py` with a class `Model` of three methods (docs/python-models.md)."""

import importlib.util
import itertools
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tideserve.replica.backends import Arrays, ModelFiles
from tideserve.replica.errors import BadOutputError, LoadError, NotInstalledError
from tideserve.replica.model_io import model_io
from tideserve.v1.model_config_pb2 import ModelConfig

_NUMBERS: Final = itertools.count(1)


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What `Model.load` is given. `path` is the version's directory, `parameters` those of
    config.pbtxt, `device` is `cpu` or `gpu:INDEX`, `threads` 0 means no limit was set."""

    name: str
    version: int
    path: Path
    parameters: dict[str, str] = field(default_factory=dict)
    device: str = "cpu"
    threads: int = 0


def open_model(files: ModelFiles) -> "PythonBackend":
    """Imports the file and loads the model. Raises `LoadError`."""
    directory = files.path.parent
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    module = _import(files.path, files.name, files.version)
    model_class = getattr(module, "Model", None)
    if model_class is None:
        if hasattr(module, "TritonPythonModel"):
            raise LoadError(
                f"{files.path} defines TritonPythonModel, which needs Triton's own process: "
                "expected a class Model with load, infer and unload (docs/python-models.md)"
            )
        raise LoadError(f"{files.path}: expected a class named Model, found none")
    context = ModelContext(
        name=files.name,
        version=files.version,
        path=directory,
        parameters={key: value.string_value for key, value in files.config.parameters.items()},
        device=str(files.device),
        threads=files.threads,
    )
    missing = [name for name in ("load", "infer", "unload") if not hasattr(model_class, name)]
    if missing:
        raise LoadError(f"{files.path}: class Model lacks {', '.join(missing)}")
    try:
        model = model_class()
        model.load(context)
    except (Exception, SystemExit) as error:
        raise _load_error(files.path, "load", error) from error
    return PythonBackend(model)


def _import(path: Path, name: str, version: int) -> ModuleType:
    module_name = f"tideserve_model_{name}_{version}_{next(_NUMBERS)}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise LoadError(f"{path} is no Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise _load_error(path, "importing it", error) from error
    return module


def _load_error(path: Path, what: str, error: BaseException) -> LoadError:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return NotInstalledError(
            f"{path} needs the module {error.name}, which is neither beside it nor installed: "
            "install it where replicas run, and restart"
        )
    return LoadError(f"{path}: {what} raised {type(error).__name__}: {error}")


class PythonBackend:
    """Owns one instance of the user's class."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def complete(self, config: ModelConfig) -> ModelConfig:
        if not config.input or not config.output:
            raise LoadError(
                "a python model does not tell its types and sizes: config.pbtxt must give "
                "input and output"
            )
        model_io(config)
        return config

    def infer(self, inputs: Arrays, requested: tuple[str, ...]) -> Arrays:
        del requested  # the model gives all of its outputs
        outputs = self._model.infer(inputs)
        if not isinstance(outputs, dict):
            raise BadOutputError(
                f"expected infer to return a dict of arrays, got {type(outputs).__name__}"
            )
        return outputs

    def close(self) -> None:
        self._model.unload()
