"""What runs first in a forked replica. Imports nothing heavy: a fork reaches it at once."""

import importlib
import logging
import os
import sys
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.launchers.identity import identity_of
from tideserve.autoscaler.launchers.record import ReplicaRecord, write_record

_COMM_CHARACTERS: Final = 15  # the kernel's limit, proc_pid_comm(5)


@dataclass(frozen=True, slots=True)
class Birth:
    """All that a replica is told. It travels through a pipe: no token on a command line or
    in an environment."""

    entry: str  # dotted name of the module with ReplicaSettings and run
    record_path: Path
    log_path: Path
    replica_id: str
    key: ModelKey | None  # None: a standby
    address: str
    token: str = field(repr=False)
    device: str
    threads: int
    cores: frozenset[int]  # empty: any
    launched_at: float  # unix seconds
    weights_folder: Path | None  # where replicas of this machine share weights


def run_replica(birth: Birth) -> None:
    """Leaves the launcher's session, records itself, then runs the replica to its end.

    Does not return: the process ends with the replica's exit code. What `run` raises ends it
    with 1 and a traceback in the log.
    """
    os.setsid()
    _redirect(birth.log_path)
    identity = identity_of(os.getpid())
    assert identity is not None, "the process that asks runs"
    write_record(
        birth.record_path,
        ReplicaRecord(
            replica_id=birth.replica_id,
            key=birth.key,
            device=birth.device,
            identity=identity,
            log_path=str(birth.log_path),
        ),
    )
    Path("/proc/self/comm").write_text(birth.replica_id[:_COMM_CHARACTERS], encoding="utf-8")
    if birth.cores:
        _run_on(birth.cores)
    device = show_device(birth.device, os.environ)
    entry = importlib.import_module(birth.entry)
    settings = entry.ReplicaSettings(
        replica_id=birth.replica_id,
        address=birth.address,
        token=birth.token,
        device=device,
        device_name=birth.device,
        threads=birth.threads,
        launched_at=birth.launched_at,
        weights_folder=birth.weights_folder,
    )
    code = entry.run(settings)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    # Past the interpreter's shutdown, which would wait for threads that a model left behind.
    os._exit(code)


def nothing() -> None:
    """A fork that only shows that there can be one."""
    os._exit(0)


def _run_on(cores: frozenset[int]) -> None:
    """Those of them that there are; with none it is the file's fault, in words."""
    usable = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, cores & usable or cores)
    except OSError as error:
        sys.exit(
            f"cores: expected CPUs of this machine, such as {min(usable)} to {max(usable)}, "
            f"got {', '.join(map(str, sorted(cores)))}: {error}"
        )


def _redirect(log_path: Path) -> None:
    """stdout and stderr go to the log, which only this user can read."""
    log_fd = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    os.close(log_fd)


def show_device(name: str, environment: MutableMapping[str, str]) -> str:
    """Leaves only this device visible to CUDA, which looks when it is first used, later than
    here. What the replica is to call it: the only GPU there is has index 0.

    INDEX counts the GPUs that were visible before.
    """
    environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    kind, _, index = name.partition(":")
    if kind != "gpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
        return name
    visible = [one for one in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    number = int(index)
    environment["CUDA_VISIBLE_DEVICES"] = visible[number] if number < len(visible) else index
    return "gpu:0"
