"""What a pass wants done. Values: the loop carries them out and logs each one's reason."""

from dataclasses import dataclass

from tideserve.autoscaler.core.fleet import ModelKey


@dataclass(frozen=True, slots=True)
class Start:
    """Announce the replica to the frontend, then launch it. `key` None: a standby."""

    replica_id: str
    key: ModelKey | None
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Assign:
    """Give a standby a model version: the frontend tells it to load."""

    replica_id: str
    key: ModelKey
    reason: str


@dataclass(frozen=True, slots=True)
class Prepare:
    """Make one that a later `Start` only has to start (a created container)."""

    replica_id: str
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell the frontend of a running replica that it does not know: adoption."""

    replica_id: str
    key: ModelKey | None
    reason: str


@dataclass(frozen=True, slots=True)
class Drain:
    """No more leases; the replica finishes its own and leaves (S4)."""

    replica_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End it now: it is lost, or does not start or leave in time."""

    replica_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Report:
    """Tell the frontend that the replica ended, then forget it at the launcher.

    `failed_starts`: that many in a row, this one included; 0: it had been READY, or was
    retired. `give_up_reason`: the model version is not started again for now.
    """

    replica_id: str
    cause: str
    log_tail: tuple[str, ...] = ()
    failed_starts: int = 0
    give_up_reason: str = ""


Action = Start | Assign | Prepare | Announce | Drain | Kill | Report
