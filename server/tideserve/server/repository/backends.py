"""Which of the replicas' backends runs a model, and the files that it may be in."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from tideserve.server.errors import ModelConfigError
from tideserve.v1.model_config_pb2 import ModelConfig

# As in ModelMetadata where the configuration names none.
PLATFORMS: Final = {
    "onnxruntime": "onnxruntime_onnx",
    "pytorch": "pytorch_libtorch",
    "python": "python",
}
# In the order in which a model that names no backend is looked for (Triton's).
FILENAMES: Final[dict[str, tuple[str, ...]]] = {
    "onnxruntime": ("model.onnx",),
    "pytorch": ("model.pt", "model.pt2"),
    "python": ("model.py",),
}
_BY_PLATFORM: Final = {platform: backend for backend, platform in PLATFORMS.items()} | {
    "libtorch": "pytorch",
    "torch_export": "pytorch",
}
_BY_SUFFIX: Final = {
    PurePosixPath(name).suffix: backend for backend, names in FILENAMES.items() for name in names
}


def backend_of(config: ModelConfig, folders: Sequence[Path], source: str) -> str:
    """By `backend`, `platform`, default_model_filename, or the first of the versions' folders
    that has a model file.

    Raises `ModelConfigError` where they name none, one that replicas lack, or two.
    """
    named = config.backend
    if named and named not in PLATFORMS:
        raise ModelConfigError(
            f"{source}: backend: expected one of {', '.join(PLATFORMS)}, got {named!r}"
        )
    if config.platform:
        by_platform = _BY_PLATFORM.get(config.platform)
        if by_platform is None:
            raise ModelConfigError(
                f"{source}: platform: expected one of {', '.join(_BY_PLATFORM)}, "
                f"got {config.platform!r}"
            )
        if named and named != by_platform:
            raise ModelConfigError(
                f"{source}: expected a platform of backend {named!r}, got {config.platform!r}"
            )
        named = by_platform
    return named or _by_files(config.default_model_filename, folders, source)


def platform_of(config: ModelConfig, backend: str) -> str:
    """The configuration's own where it is one of the backend's."""
    named = config.platform
    return named if _BY_PLATFORM.get(named) == backend else PLATFORMS[backend]


def model_files(config: ModelConfig, backend: str, source: str) -> tuple[str, ...]:
    """The names, relative to a version's folder, of which one must be there.

    Raises `ModelConfigError` for a default_model_filename that leaves the folder.
    """
    name = config.default_model_filename
    if not name:
        return FILENAMES[backend]
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ModelConfigError(
            f"{source}: default_model_filename: expected a name inside the version's folder, "
            f"got {name!r}"
        )
    return (name,)


def _by_files(default_filename: str, folders: Sequence[Path], source: str) -> str:
    known = ", ".join(name for names in FILENAMES.values() for name in names)
    if default_filename:
        backend = _BY_SUFFIX.get(PurePosixPath(default_filename).suffix)
        if backend is None:
            raise ModelConfigError(
                f"{source}: expected a backend ({', '.join(PLATFORMS)}), because "
                f"default_model_filename {default_filename!r} does not tell it; got none"
            )
        return backend
    for folder in folders:
        for backend, names in FILENAMES.items():
            if any((folder / name).exists() for name in names):
                return backend
    raise ModelConfigError(
        f"{source}: expected a backend in config.pbtxt or a version folder (1, 2, ...) with one "
        f"of {known}, found neither"
    )
