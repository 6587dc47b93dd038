"""The repository's folders: which models and versions there are, and what is wrong."""

import os
import re
from hashlib import sha256
from pathlib import Path
from typing import Final

from tideserve.server.errors import ModelConfigError, RepositoryError
from tideserve.server.repository.backends import backend_of, model_files
from tideserve.server.repository.config_file import read_config
from tideserve.server.repository.found import FoundModel, FoundVersion, RepositoryScan
from tideserve.server.repository.spec import check_config
from tideserve.server.repository.unsupported import refuse_unservable, unsupported_fields
from tideserve.server.repository.versions import select_versions
from tideserve.v1.model_config_pb2 import ModelConfig, ModelVersionPolicy

__all__ = ["FoundModel", "FoundVersion", "RepositoryScan", "scan", "scan_model"]

CONFIG_FILE: Final = "config.pbtxt"
# From 1, without leading zeros, within an int64.
_VERSION: Final = re.compile(r"[1-9][0-9]{0,17}", re.ASCII)
# Python writes it beside model.py when a replica loads it: no change of the model.
_BYTECODE: Final = "__pycache__"


def scan(root: Path) -> RepositoryScan:
    """Reads the whole repository; a model that is wrong has an error and disturbs no other.

    Raises `RepositoryError` where `root` cannot be read.
    """
    root = root.absolute()
    try:
        names = sorted(path.name for path in root.iterdir() if _is_model_folder(path))
    except OSError as error:
        raise RepositoryError(
            f"{root}: expected a folder of models that this user can read, got: "
            f"{error.strerror}; give `tideserve serve` the path of a model repository"
        ) from error
    return RepositoryScan(str(root), tuple(_read_model(root / name, name) for name in names))


def scan_model(root: Path, name: str) -> FoundModel | None:
    """Reads one model; None where the repository has no such folder. Never leaves `root`."""
    if not _is_valid_name(name):
        return None
    path = root.absolute() / name
    return _read_model(path, name) if _is_model_folder(path) else None


def _is_model_folder(path: Path) -> bool:
    """What cannot be told counts: reading it then says why, and disturbs no other model."""
    if path.name.startswith("."):
        return False
    try:
        return path.is_dir()
    except OSError:
        return True


def _is_valid_name(name: str) -> bool:
    """One path segment that can travel in messages and stand in a log line."""
    return (
        0 < len(name) <= 255
        and name.isprintable()
        and not name.startswith(".")
        and "/" not in name
        and "\\" not in name
    )


def _read_model(path: Path, name: str) -> FoundModel:
    try:
        return _read_files(path, name)
    except ModelConfigError as error:
        sentence = str(error)
    except OSError as error:
        sentence = (
            f"{error.filename or path}: expected a file or folder that this user can read, "
            f"got: {error.strerror}"
        )
    shown = name.encode("utf-8", "backslashreplace").decode()
    shown_path = str(path).encode("utf-8", "backslashreplace").decode()
    return FoundModel(shown, shown_path, config=None, versions=(), backend="", error=sentence)


def _read_files(path: Path, name: str) -> FoundModel:
    if not _is_valid_name(name):
        raise ModelConfigError(
            f"{str(path)!a}: expected a folder name of printable characters without a "
            f"backslash, got {name!a}"
        )
    config_path = path / CONFIG_FILE
    # A link to nothing is a mistake to name, not a config that is left out.
    has_config = os.path.lexists(config_path)
    config = read_config(config_path) if has_config else ModelConfig()
    source = str(config_path if has_config else path)
    if config.name not in ("", name):
        raise ModelConfigError(
            f"{source}: name: expected the folder's name, {name!r}, or none, got {config.name!r}"
        )
    refuse_unservable(config, source)
    folders = {
        int(folder.name): folder
        for folder in path.iterdir()
        if _VERSION.fullmatch(folder.name) and folder.is_dir()
    }
    newest_first = [folders[version] for version in sorted(folders, reverse=True)]
    backend = backend_of(config, newest_first, source)
    files = model_files(config, backend, source)
    config.name = name
    config.backend = backend
    check_config(config, source)
    # A folder whose file is not there yet, while it is being copied, is no version.
    whole = {
        version
        for version, folder in folders.items()
        if any((folder / file_name).exists() for file_name in files)
    }
    policy = config.version_policy if config.HasField("version_policy") else None
    versions = select_versions(policy, whole)
    if not versions:
        raise ModelConfigError(f"{source}: {_why_no_version(config, whole, files)}")
    salt = _config_fingerprint(config)
    return FoundModel(
        name=name,
        path=str(path),
        config=config,
        versions=tuple(
            FoundVersion(version, _generation(salt, folders[version])) for version in versions
        ),
        backend=backend,
        unsupported=unsupported_fields(config),
        warnings=_left_out(policy, source, folders, whole, files),
    )


def _why_no_version(config: ModelConfig, whole: set[int], files: tuple[str, ...]) -> str:
    if not whole:
        return f"expected a version folder (1, 2, ...) with {' or '.join(files)}, found none"
    there = ", ".join(str(version) for version in sorted(whole))
    policy = " ".join(str(config.version_policy).split())
    return f"version_policy: expected one that selects of the versions {there}, got {{{policy}}}"


def _left_out(
    policy: ModelVersionPolicy | None,
    source: str,
    folders: dict[int, Path],
    whole: set[int],
    files: tuple[str, ...],
) -> tuple[str, ...]:
    """Sentences on versions that the policy wants and that are not (wholly) there."""
    empty = [version for version in select_versions(policy, folders) if version not in whole]
    named = policy.specific.versions if policy is not None else ()
    return (
        *(f"{folders[it]}: left out: expected {' or '.join(files)}, found none" for it in empty),
        *(
            f"{source}: version_policy names {it}, which has no folder"
            for it in sorted(set(named) - set(folders))
        ),
    )


def _config_fingerprint(config: ModelConfig) -> bytes:
    """Comments and layout do not count, nor does the policy: it selects versions, it does
    not change them."""
    content = ModelConfig()
    content.CopyFrom(config)
    content.ClearField("version_policy")
    return content.SerializeToString(deterministic=True)


def _generation(salt: bytes, folder: Path) -> str:
    """A fingerprint of the configuration and of each file's name, size and time."""
    digest = sha256(salt)
    for parent, subfolders, names in os.walk(folder, onerror=_raise_unless_gone):
        subfolders[:] = sorted(
            name for name in subfolders if name != _BYTECODE and not name.startswith(".")
        )
        for name in sorted(names):
            if name.startswith("."):
                continue
            path = Path(parent, name)
            try:
                status = path.stat()
            except FileNotFoundError:  # gone since it was listed, or a link to nothing
                continue
            relative = os.fsencode(path.relative_to(folder))
            digest.update(
                b"%d:%b%d:%d;" % (len(relative), relative, status.st_size, status.st_mtime_ns)
            )
    return digest.hexdigest()[:16]


def _raise_unless_gone(error: OSError) -> None:
    """A folder that goes while it is read: the next scan will not find it."""
    if not isinstance(error, FileNotFoundError):
        raise error
