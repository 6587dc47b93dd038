"""Replicas as processes of this machine, forked from a server with the imports made.

multiprocessing's forkserver imports numpy, protobuf and the backends' libraries once; a
replica is a fork of it, so that it starts in milliseconds and shares those pages. It must stay
import-only: forking after an ONNX Runtime session or a CUDA context exists breaks the child.

A replica is a session of its own, writes to its own log file and leaves a record of itself
in the state folder, so it outlives the launcher and the forkserver, and a later launcher on
the same folder adopts it.
"""

import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.forkserver import read_signed
from multiprocessing.popen_forkserver import Popen
from pathlib import Path
from types import ModuleType
from typing import Final

from tideserve.autoscaler.core.fleet import Exit
from tideserve.autoscaler.errors import LaunchError, NoSuchReplicaError, StateDirError
from tideserve.autoscaler.launchers import Handle, ReplicaSpec, weights
from tideserve.autoscaler.launchers.child import Birth, nothing, run_replica
from tideserve.autoscaler.launchers.deaths import DeathWatch
from tideserve.autoscaler.launchers.identity import (
    has_ended,
    identity_of,
    kill_session,
    open_pidfd,
)
from tideserve.autoscaler.launchers.record import read_record

_LOG: Final = logging.getLogger(__name__)
REPLICA_ENTRY: Final = "tideserve.replica.__main__"
# Imported by the forkserver where they are installed; imports only.
PRELOAD: Final = (
    "tideserve.autoscaler.launchers.child",
    "numpy",
    "google.protobuf",
    "onnxruntime",
    "tideserve.v1.methods",
    REPLICA_ENTRY,
    "tideserve.autoscaler.launchers.freeze",  # the last
)
# Backends whose imports are too big to make for nothing (torch: seconds, 200 MB).
BACKEND_PRELOAD: Final = {"pytorch": "torch"}
_TAIL_LINES: Final = 20
_TAIL_BYTES: Final = 16 * 1024
_LINE_BYTES: Final = 512
_MAX_TAIL_BYTES: Final = 4 * 1024 * 1024
_WARM_UP_S: Final = 60.0
_CLOSE_S: Final = 5.0  # then the thread ends with the process
_EXIT_CODE_WAIT_S: Final = 1.0  # the forkserver reaps within milliseconds


@dataclass(frozen=True, slots=True)
class ProcessSettings:
    """`entry` names the module with a replica's `ReplicaSettings` and `run`. Of replicas
    that have ended the newest `kept_logs` log files stay. They dial `local_address` where there
    is one, else the address of their `ReplicaSpec`, and share weights in `weights_folder`, if any."""

    state_dir: Path
    entry: str = REPLICA_ENTRY
    preload: tuple[str, ...] = PRELOAD
    kept_logs: int = 50
    local_address: str | None = None
    weights_folder: Path | None = None


@dataclass(slots=True)
class _Child:
    handle: Handle
    pid: int
    pidfd: int | None  # None: it ended before it could be looked at
    popen: Popen | None  # None: adopted, its exit code went to another parent
    record_path: Path
    log_path: Path


class ProcessLauncher:
    """Owns the table of replica processes on one state folder. Used from one thread; `log` from
    any.

    `on_exit` is called as soon as a process ends, from a thread of its own or within `start`.
    """

    def __init__(self, settings: ProcessSettings, on_exit: Callable[[], None]) -> None:
        self._settings = settings
        self._records_dir = settings.state_dir / "records"
        self._logs_dir = settings.state_dir / "logs"
        self._on_exit = on_exit
        self._deaths = DeathWatch(on_exit)
        self._children: dict[str, _Child] = {}
        self._context = multiprocessing.get_context("forkserver")
        self._preloaded = False
        self._warming: threading.Thread | None = None
        self._warm = threading.Event()

    def open(self) -> None:
        """Makes the folders, adopts what runs. Raises `StateDirError`."""
        try:
            self._make_folders()
        except OSError as error:
            raise StateDirError(
                f"cannot make the state folder {self._settings.state_dir}: {error}; "
                f"name another with --state-dir"
            ) from error
        if self._settings.weights_folder is not None:
            weights.prune(self._settings.weights_folder, time.time())
        self._deaths.start()
        for path in sorted(self._records_dir.glob("*.json")):
            self._adopt(path)

    def close(self) -> None:
        """Stops watching. The replicas go on."""
        if self._warming is not None:
            self._warming.join(_CLOSE_S)
        self._deaths.close()
        for child in self._children.values():
            _release(child)
        self._children.clear()

    def warm(self, backends: frozenset[str]) -> bool:
        """Starts the forkserver, whose imports take seconds, without waiting for it: True once it
        has made them. `on_exit` is called then."""
        if self._warming is None:
            self._preload(backends)
            self._warming = threading.Thread(
                target=self._warm_up, name="forkserver-warm-up", daemon=True
            )
            self._warming.start()
        return self._warm.is_set()

    def start(self, spec: ReplicaSpec) -> Handle:
        """Forks a replica; one that comes before `warm` is done waits for it."""
        if self._warming is not None:
            self._warming.join()
        self._preload(spec.backends)
        try:
            self._make_folders()  # somebody may have tidied up
            self._prune_logs()
        except OSError as error:
            raise LaunchError(
                f"the state folder {self._settings.state_dir} cannot be used: {error}"
            ) from error
        record_path = self._records_dir / f"{spec.replica_id}.json"
        log_path = self._logs_dir / f"{spec.replica_id}.log"
        birth = Birth(
            entry=self._settings.entry,
            record_path=record_path,
            log_path=log_path,
            replica_id=spec.replica_id,
            key=spec.key,
            address=self._settings.local_address or spec.address,
            token=spec.token,
            device=spec.device,
            threads=len(spec.cores) or spec.threads,
            cores=spec.cores,
            launched_at=time.time(),
            weights_folder=self._settings.weights_folder,
        )
        process = self._context.Process(target=run_replica, args=(birth,), name=spec.replica_id)
        try:
            # Not Process.start(), which lists the process among those that multiprocessing
            # joins when this one exits: replicas outlive their launcher.
            with _no_main_module():
                popen = Popen(process)
        except (OSError, EOFError) as error:
            # The forkserver died just now; the next start makes a new one. Not tried again
            # with this name: a fork without a handle might run under it.
            raise LaunchError(f"the forkserver did not start a process: {error!r}") from error
        identity = identity_of(popen.pid)
        pidfd = open_pidfd(identity) if identity is not None else None
        handle = Handle(spec.replica_id, spec.key, spec.device, f"pid {popen.pid}")
        child = _Child(handle, popen.pid, pidfd, popen, record_path, log_path)
        self._children[spec.replica_id] = child
        if pidfd is not None:
            self._deaths.watch(pidfd)
        else:
            # It ended before it could be looked at.
            self._on_exit()
        return handle

    def list(self) -> list[Handle]:
        for child in self._children.values():
            if child.handle.exit is None and (child.pidfd is None or has_ended(child.pidfd)):
                child.handle = replace(child.handle, exit=_exit_of(child))
        return [child.handle for child in self._children.values()]

    def kill(self, handle: Handle) -> None:
        child = self._children.get(handle.replica_id)
        if child is None:
            return
        if child.pidfd is not None and not has_ended(child.pidfd):
            kill_session(child.pidfd, child.pid)
            return
        del self._children[handle.replica_id]
        child.record_path.unlink(missing_ok=True)
        child.record_path.with_suffix(".draft").unlink(missing_ok=True)
        _release(child)

    def log(self, replica_id: str, tail_lines: int) -> tuple[str, ...]:
        """Of one that runs, or ended and is among the newest `kept_logs`."""
        child = self._children.get(replica_id)
        path = self._logs_dir / f"{replica_id}.log"
        if child is not None:
            path = child.log_path
        elif replica_id != Path(replica_id).name or not path.is_file():
            raise NoSuchReplicaError(f"no log of a replica {replica_id!r} is kept here")
        return log_tail(path, tail_lines)

    def _adopt(self, path: Path) -> None:
        record = read_record(path)
        pidfd = open_pidfd(record.identity) if record is not None else None
        if record is None or pidfd is None:
            path.unlink(missing_ok=True)
            return
        handle = Handle(
            replica_id=record.replica_id,
            key=record.key,
            device=record.device,
            where=f"pid {record.identity.pid}",
        )
        self._children[record.replica_id] = _Child(
            handle, record.identity.pid, pidfd, None, path, Path(record.log_path)
        )
        self._deaths.watch(pidfd)
        _LOG.info("adopted replica %s, %s", handle.replica_id, handle.where)

    def _preload(self, backends: frozenset[str]) -> None:
        """Tells the forkserver what to import. Too late once it runs: then a backend that
        came later is imported by each replica."""
        if self._preloaded:
            return
        extra = [module for backend, module in BACKEND_PRELOAD.items() if backend in backends]
        # Libraries before the modules that use them: the forkserver goes on past a module
        # that is not installed.
        self._context.set_forkserver_preload([*extra, *self._settings.preload])
        self._preloaded = True

    def _warm_up(self) -> None:
        """A first fork, of nothing: it begins when the forkserver's imports are made."""
        process = self._context.Process(target=nothing, name="warm-up")
        try:
            with _no_main_module():
                popen = Popen(process)
        except (OSError, EOFError) as error:
            _LOG.warning("the forkserver could not be warmed: %r; a start tries again", error)
        else:
            multiprocessing.connection.wait([popen.sentinel], _WARM_UP_S)
            popen.close()
        self._warm.set()
        self._on_exit()

    def _make_folders(self) -> None:
        for folder in (self._settings.state_dir, self._records_dir, self._logs_dir):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _prune_logs(self) -> None:
        in_use = {child.log_path for child in self._children.values()}
        ended = [path for path in self._logs_dir.glob("*.log") if path not in in_use]
        ended.sort(key=lambda path: path.stat().st_mtime)
        for path in ended[: max(0, len(ended) - self._settings.kept_logs)]:
            path.unlink(missing_ok=True)


def log_tail(path: Path, lines: int = _TAIL_LINES) -> tuple[str, ...]:
    """The last lines of a log that may be missing or hold any bytes."""
    tail_bytes = min(_MAX_TAIL_BYTES, max(_TAIL_BYTES, lines * _LINE_BYTES))
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            begin = max(0, size - tail_bytes)
            file.seek(begin)
            data = file.read(tail_bytes)
    except FileNotFoundError:
        return ()
    if begin:  # within a line, most likely: not shown, unless there is no other
        data = data.partition(b"\n")[2] or data
    text = data.decode("utf-8", errors="replace")
    return tuple(text.splitlines()[-lines:]) if lines > 0 else ()


def cause_of(code: int | None) -> str:
    """An exit code as multiprocessing gives it, negative for a signal, in words."""
    if code is None:
        return "ended, exit code unknown"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _exit_of(child: _Child) -> Exit:
    return Exit(cause_of(_exit_code(child.popen)), log_tail(child.log_path))


def _exit_code(popen: Popen | None) -> int | None:
    """None: nobody can tell, for the process was adopted or the forkserver died first.

    Popen.poll() is not asked: it takes the forkserver's death for the replica's.
    """
    if popen is None:
        return None
    if not multiprocessing.connection.wait([popen.sentinel], _EXIT_CODE_WAIT_S):
        return None
    try:
        return int(read_signed(popen.sentinel))
    except EOFError:
        return None


def _release(child: _Child) -> None:
    if child.pidfd is not None:
        os.close(child.pidfd)
        child.pidfd = None
    if child.popen is not None:
        child.popen.close()


@contextmanager
def _no_main_module() -> Iterator[None]:
    """Hides the main module while a process is started.

    Else every replica would run the launcher's main script again (multiprocessing's "Safe
    importing of main module"): command line libraries, for nothing.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
