"""Model runtimes behind one protocol; each is imported when a model needs it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

import numpy.typing as npt

from tideserve.replica.errors import LoadError, NotInstalledError
from tideserve.replica.settings import Device
from tideserve.v1.model_config_pb2 import ModelConfig

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What a backend loads. `path` is the model file, or the directory that stands for it.

    `threads` 0: the runtime's default. `weights_folder`: where replicas of this machine may share
    weights; None: this one has its own.
    """

    name: str
    version: int
    path: Path
    config: ModelConfig
    device: Device = field(default_factory=Device)
    threads: int = 0
    weights_folder: Path | None = None


class Backend(Protocol):
    """One loaded model. Every method is called on the compute thread."""

    def complete(self, config: ModelConfig) -> ModelConfig:
        """Fills what the model file knows and config.pbtxt leaves out, and holds the rest
        against it. Raises `LoadError`."""

    def infer(self, inputs: Arrays, requested: tuple[str, ...]) -> Arrays:
        """Runs a batch. Inputs are read-only, absent ones are optional; raises what the
        model raises."""

    def close(self) -> None:
        """Frees the model."""


@runtime_checkable
class PlacingBackend(Backend, Protocol):
    """One that can have its runtime write outputs where they are wanted."""

    def infer_into(self, inputs: Arrays, outputs: Arrays) -> bool:
        """As `infer`, of the outputs named, into those arrays. False: not these, or they do not
        fit, or the model failed: they hold anything then, and `infer` has the say. Never raises
        for what the model does."""


@dataclass(frozen=True, slots=True)
class BackendKind:
    """A runtime: config.pbtxt's `backend`, the platforms that mean it, and its model files
    with the platform each gives."""

    backend: str
    module: str
    files: tuple[tuple[str, str], ...]
    package: str = ""
    """The runtime's, with the extra that installs it; empty: it comes with the replica."""
    extra: str = ""
    platforms: tuple[str, ...] = ()
    synthetic_warmup: bool = True
    """Zero-filled batches do no harm: false where a model may have side effects."""

    def opener(self) -> Callable[[ModelFiles], Backend]:
        """Imports the runtime. Raises `NotInstalledError`, and `LoadError` where what is
        installed cannot be imported."""
        try:
            module = import_module(f"{__name__}.{self.module}")
        except ImportError as error:
            install = f"pip install 'tideserve[{self.extra}]'"
            if isinstance(error, ModuleNotFoundError) and error.name == self.package:
                raise NotInstalledError(
                    f"it needs {self.package}, which is not installed: {install} and restart"
                ) from error
            raise LoadError(
                f"the {self.backend} backend cannot be imported: {error}; {install} may mend it"
            ) from error
        opener: Callable[[ModelFiles], Backend] = module.open_model
        return opener


KINDS: Final = (
    BackendKind(
        backend="onnxruntime",
        module="onnx",
        files=(("model.onnx", "onnxruntime_onnx"),),
        package="onnxruntime",
        extra="cpu",
        platforms=("onnxruntime_onnx",),
    ),
    BackendKind(
        backend="pytorch",
        module="torch",
        files=(("model.pt", "pytorch_libtorch"), ("model.pt2", "torch_export")),
        package="torch",
        extra="torch",
        platforms=("pytorch_libtorch", "libtorch", "torch_export"),
    ),
    BackendKind(
        backend="python",
        module="python",
        files=(("model.py", "python"),),
        platforms=("python",),
        synthetic_warmup=False,
    ),
)


@dataclass(frozen=True, slots=True)
class Found:
    """Which runtime serves a version, from which file, under which platform name."""

    kind: BackendKind
    path: Path
    platform: str


def find(config: ModelConfig, version_path: Path) -> Found:
    """By `backend`, else `platform`, else the first of the files there in the order of `KINDS`,
    as the frontend does. Raises `LoadError`."""
    kinds = _named(config)
    if config.default_model_filename:
        return _by_file_name(config.default_model_filename, kinds, version_path)
    found = [
        Found(kind, version_path / name, platform)
        for kind in kinds
        for name, platform in kind.files
        if (version_path / name).exists()
    ]
    if found:
        return found[0]
    expected = ", ".join(name for kind in kinds for name, _ in kind.files)
    there = ", ".join(sorted(path.name for path in version_path.glob("*"))) or "nothing"
    raise LoadError(f"expected one of {expected} in {version_path}, found {there}")


def _named(config: ModelConfig) -> tuple[BackendKind, ...]:
    if config.backend:
        named = tuple(kind for kind in KINDS if kind.backend == config.backend)
        what = f"backend {config.backend!r}"
    elif config.platform:
        named = tuple(kind for kind in KINDS if config.platform in kind.platforms)
        what = f"platform {config.platform!r}"
    else:
        return KINDS
    if not named:
        known = ", ".join(kind.backend for kind in KINDS)
        raise LoadError(f"{what} is not one that a replica has: expected backend {known}")
    return named


def _by_file_name(name: str, kinds: tuple[BackendKind, ...], version_path: Path) -> Found:
    path = version_path / name
    if not path.exists():
        raise LoadError(f"default_model_filename {name!r} is not in {version_path}")
    for kind in kinds:
        for file_name, platform in kind.files:
            if path.suffix == Path(file_name).suffix:
                return Found(kind, path, platform)
    if len(kinds) == 1:
        return Found(kinds[0], path, kinds[0].files[0][1])
    raise LoadError(f"default_model_filename {name!r} does not tell the backend: set backend")
