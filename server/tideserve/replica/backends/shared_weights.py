"""Weights that a model's replicas on one machine share.

ONNX Runtime arranges weights for this processor as it loads a model, in memory of each process's own.
It can also save what it made (`session.save_external_prepacked_constant_initializers` of its session
options) and map it later. The first replica of a version does so in a folder that all of them have;
every one maps these files, so that the weights are in memory once, in the processor's caches once,
and a replica starts without making them (docs/decisions/0019).
"""

import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final

import numpy as np
import onnxruntime as ort

from tideserve.replica.backends import Array, weights_key

_LOG: Final = logging.getLogger(__name__)
# Of less there is little to share.
MIN_BYTES: Final = 8 * 1024 * 1024
# What is made may be twice the model, and the disk is not only ours.
_ROOM: Final = 3
_MODEL: Final = "model.onnx"
_WEIGHTS: Final = "weights.bin"
# Smaller ones stay in the model's own file.
_LEAST_EXTERNAL_BYTES: Final = 1024
# Why a model's weights cannot be shared, so that nobody tries again.
_REFUSED: Final = ".refused"
_DRAFT: Final = ".draft"
# A replica died as it made them: a second death is the last.
_AGAIN: Final = ".again"
# A replica that hangs as it makes them must not keep others from loading.
WAIT_S: Final = 30.0
_LOOK_S: Final = 0.02

Open = Callable[[Path, ort.SessionOptions], ort.InferenceSession]


class _UnfitError(Exception):
    """The model cannot be shared. In words for the log."""


def open_shared(
    path: Path,
    folder: Path,
    options: Callable[[], ort.SessionOptions],
    open_session: Open,
) -> ort.InferenceSession | None:
    """A session on weights shared in `folder`, which are made where there are none; one on its own
    where they turn out to be unfit. None: this model is to be opened as usual, which also says what
    is wrong with it."""
    try:
        # A link to the folder may be turned to another version while that is read.
        path = path.parent.resolve() / path.name
        model_bytes = _size_of(path)
        if model_bytes < MIN_BYTES:
            return None
        made = folder / weights_key.name_of(path) / weights_key.key_of(path, options())
        if not (made / _MODEL).exists():
            return _make(path, made, model_bytes, options, open_session)
        return _open_made(made, options, open_session)
    except Exception as error:  # noqa: BLE001 - the system's, the runtime's: none costs the model
        _LOG.info("this replica has its weights for itself: %s", error)
        return None


def _make(
    path: Path,
    made: Path,
    model_bytes: int,
    options: Callable[[], ort.SessionOptions],
    open_session: Open,
) -> ort.InferenceSession:
    """By one replica at a time: those that start beside it wait, as long as loading would take."""
    made.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(made.parent / "lock"):
        if (made / _MODEL).exists():
            return _open_made(made, options, open_session)
        refused = made.with_suffix(_REFUSED)
        if refused.exists():
            raise _UnfitError(refused.read_text(encoding="utf-8", errors="replace"))
        draft, again = made.with_suffix(_DRAFT), made.with_suffix(_AGAIN)
        if draft.exists() and again.exists():
            _remove(draft)
            reason = "two replicas died as they made them: that takes more memory than to load"
            refused.write_text(reason, encoding="utf-8")
            raise _UnfitError(reason)
        free_bytes = shutil.disk_usage(made.parent).free
        if free_bytes < _ROOM * model_bytes:
            raise _UnfitError(
                f"expected {_ROOM * model_bytes} bytes free in {made.parent}, got {free_bytes}"
            )
        for other in made.parent.iterdir():
            # Of other files, another configuration, another runtime. Not another machine's, which
            # may have the same home: to remove what it has mapped would end its replicas.
            if other.name.startswith(weights_key.machine()) and other not in (draft, again):
                _remove(other)
        if draft.exists():  # one that died left it
            again.touch(mode=0o600)
            _remove(draft)
        draft.mkdir(mode=0o700)
        own = None
        try:
            own = _open_saving(path, draft, options, open_session)
            shared = _open_made(draft, options, open_session)
            _check_equal(own, shared)
        except Exception as error:  # noqa: BLE001 - also numpy's, of answers it cannot compare
            _remove(draft)
            # What does not load, neither saved nor as it is, tells of itself and not of sharing.
            own = own or open_session(path, options())
            refused.write_text(str(error), encoding="utf-8", errors="replace")
            _LOG.info("this replica has its weights for itself: %s", error)
            return own
        if made.name != weights_key.key_of(path, options()):
            _remove(draft)
            raise _UnfitError(f"the files in {path.parent} changed while they were read")
        draft.rename(made)
        again.unlink(missing_ok=True)
    made_bytes = _size_of(made / _MODEL)
    _LOG.info("weights are shared by replicas of this model: %d bytes in %s", made_bytes, made)
    return shared


def _open_saving(
    path: Path,
    draft: Path,
    options: Callable[[], ort.SessionOptions],
    open_session: Open,
) -> ort.InferenceSession:
    """Raises `_UnfitError` where the runtime does not save it (sparse weights, a full disk) or does
    not load it."""
    try:
        return open_session(path, _saving(options(), draft))
    except Exception as error:
        raise _UnfitError(f"ONNX Runtime does not save {path}: {error}") from error


def _saving(options: ort.SessionOptions, folder: Path) -> ort.SessionOptions:
    options.optimized_model_filepath = str(folder / _MODEL)
    for name, value in (
        ("session.optimized_model_external_initializers_file_name", _WEIGHTS),
        (
            "session.optimized_model_external_initializers_min_size_in_bytes",
            str(_LEAST_EXTERNAL_BYTES),
        ),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(name, value)
    return options


def _open_made(
    made: Path, options: Callable[[], ort.SessionOptions], open_session: Open
) -> ort.InferenceSession:
    """Raises `_UnfitError` where the runtime does not take what it made."""
    os.utime(made)  # it is in use
    as_saved = options()
    as_saved.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL  # it is done
    try:
        return open_session(made / _MODEL, as_saved)
    except Exception as error:
        raise _UnfitError(f"ONNX Runtime does not take {made}, which it made: {error}") from error


def _check_equal(own: ort.InferenceSession, shared: ort.InferenceSession) -> None:
    """Raises `_UnfitError` unless both have the same face and answer some batches alike."""
    if _face(own) != _face(shared):
        raise _UnfitError("the saved model has other inputs or outputs")
    compared = 0
    for fill in (0, 1):
        try:
            feeds = {node.name: _array(node, fill) for node in own.get_inputs()}
            expected = own.run(None, feeds)
        except Exception as error:  # noqa: BLE001 - the model's own, or numpy knows no such type
            _LOG.info("a batch of %ds tells nothing of this model: %s", fill, error)
            continue
        try:
            got = shared.run(None, feeds)
        except Exception as error:
            raise _UnfitError(f"the saved model fails where the model does not: {error}") from error
        if not all(map(_is_equal, expected, got)):
            raise _UnfitError("the saved model answers otherwise")
        compared += 1
    if not compared:
        raise _UnfitError("the saved model cannot be compared: no batch of zeros or ones works")


def _is_equal(one: Any, other: Any) -> bool:
    """To the bit, as both compute with the same weights in the same order. A model of random numbers
    cannot be compared."""
    if not isinstance(one, np.ndarray) or not isinstance(other, np.ndarray):
        return bool(one == other)
    if one.dtype != other.dtype:
        return False
    return np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def _face(session: ort.InferenceSession) -> list[list[tuple[str, str, list[Any]]]]:
    """Names, types and shapes of all that goes in and out."""
    return [
        [(node.name, node.type, node.shape) for node in nodes]
        for nodes in (
            session.get_inputs(),
            session.get_outputs(),
            session.get_overridable_initializers(),
        )
    ]


def _array(node: ort.NodeArg, fill: int) -> Array:
    """One row, where the file leaves sizes open."""
    shape = [dim if isinstance(dim, int) and dim >= 0 else 1 for dim in node.shape]
    kind = node.type.removeprefix("tensor(").removesuffix(")")
    if kind == "string":
        return np.full(shape, str(fill), dtype=object)
    names = {"float": "float32", "double": "float64"}
    return np.full(shape, fill, dtype=names.get(kind, kind))


def _size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in weights_key.files_of(path))


def _remove(path: Path) -> None:
    """Who has it mapped keeps it."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock goes with the process that has it. Raises `_UnfitError` after `WAIT_S`."""
    end_s = monotonic() + WAIT_S
    while True:
        with path.open("ab") as file:
            if _takes(file.fileno(), path):
                yield
                return
        if monotonic() >= end_s:
            raise _UnfitError(f"another replica has made them for more than {WAIT_S:g} s: {path}")
        sleep(_LOOK_S)


def _takes(file: int, path: Path) -> bool:
    """False: another replica has the lock, or somebody removed the folder meanwhile and the lock with
    it, so that others have a new one."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False
