"""Launchers start replicas, list those they started, and end those that do not leave."""

from dataclasses import dataclass, field
from typing import Protocol

from tideserve.autoscaler.core.fleet import Exit, ModelKey


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What to start. `address` is the frontend's, `device` "cpu" or "gpu:INDEX".

    `backends` are those of all wanted models, for a launcher whose replicas share imports.
    """

    replica_id: str
    key: ModelKey
    address: str
    token: str = field(repr=False)
    device: str = "cpu"
    threads: int = 1
    backends: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Handle:
    """A started replica. `exit` None: it runs. `where` is for people: "pid 123"."""

    replica_id: str
    key: ModelKey
    device: str
    where: str
    exit: Exit | None = None


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
