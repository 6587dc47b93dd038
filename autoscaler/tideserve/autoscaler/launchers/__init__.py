"""Launchers start replicas, list those they started, and end those that do not leave."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from tideserve.autoscaler.core.fleet import Exit, ModelKey


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What to start. `address` is the frontend's, `device` "cpu" or "gpu:INDEX".

    `key` None: a standby, or one to prepare. `backends` are those of all wanted models, for a
    launcher whose replicas share imports. `cores`: the CPUs it may run on; empty: any.
    `memory_bytes` 0: not limited.
    """

    replica_id: str
    key: ModelKey | None
    address: str
    token: str = field(repr=False)
    device: str = "cpu"
    threads: int = 1
    backends: frozenset[str] = frozenset()
    cores: frozenset[int] = frozenset()
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Handle:
    """A started replica. `exit` None: it runs. `where` is for people: "pid 123".

    `key` None: a standby, or a launcher that does not know. `prepared`: not started yet.
    """

    replica_id: str
    key: ModelKey | None
    device: str
    where: str
    exit: Exit | None = None
    prepared: bool = False


class Launcher(Protocol):
    """One engine that can run replicas."""

    def start(self, spec: ReplicaSpec) -> Handle:
        """Starts a replica, which `list` shows from now on. Raises `LaunchError`."""

    def list(self) -> list[Handle]:
        """All replicas that were started and not killed, by earlier autoscalers too.

        One that ended stays, with its exit, until `kill`.
        """

    def kill(self, handle: Handle) -> None:
        """Ends the replica if it runs; forgets it if it has ended. Unknown ones are ignored."""

    def log(self, replica_id: str, tail_lines: int) -> tuple[str, ...]:
        """The last lines that it wrote. Raises `NoSuchReplicaError` for one it never had."""


@runtime_checkable
class Preparer(Protocol):
    """A launcher that can make a replica ahead of its start."""

    def prepare(self, spec: ReplicaSpec) -> Handle:
        """Makes it, not started: `list` shows it `prepared`, `start` starts it. Raises
        `LaunchError`."""
