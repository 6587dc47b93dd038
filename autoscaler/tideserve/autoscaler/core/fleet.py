"""What the autoscaler sees: models and replicas at the frontend, instances at the launcher."""

from dataclasses import dataclass
from enum import Enum


class ReplicaState(Enum):
    """As the frontend tells it. STARTING: announced, or joined and loading."""

    STARTING = "STARTING"
    STANDBY = "STANDBY"
    READY = "READY"
    DRAINING = "DRAINING"
    LOST = "LOST"


@dataclass(frozen=True, slots=True, order=True)
class ModelKey:
    """One version of a model in one generation of its files."""

    name: str
    version: int
    generation: str

    def __str__(self) -> str:
        return f"{self.name!r} version {self.version}"


@dataclass(frozen=True, slots=True)
class Model:
    """A model version at the frontend. Not `wanted`: it retires, its replicas are drained.
    `instances`: replicas that its own configuration asks for. `served`: it is READY to clients,
    also without a replica. `held_requests` wait in its queue."""

    key: ModelKey
    wanted: bool = True
    backend: str = ""
    latency_target_s: float | None = None
    instances: int = 1
    served: bool = False
    held_requests: int = 0


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica at the frontend. `key` None: a standby. `pid` 0: it has not joined.

    `was_ready`: at some time. `death_attributed`: a request that kills replicas did it (R6).
    `startup_s`: launch to READY, by phase, as far as it has come. `busy_s`: a counter.
    """

    replica_id: str
    key: ModelKey | None
    state: ReplicaState
    state_age_s: float = 0.0
    pid: int = 0
    device: str = "cpu"
    leases: int = 0
    was_ready: bool = False
    death_attributed: bool = False
    reason: str = ""
    startup_s: tuple[tuple[str, float], ...] = ()
    busy_s: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The frontend at one moment. `epoch` names its life: another one, and it restarted."""

    epoch: int
    models: tuple[Model, ...] = ()
    replicas: tuple[Replica, ...] = ()
    stopping: bool = False


@dataclass(frozen=True, slots=True)
class Exit:
    """How an instance ended, in words ("exit code 1"), and the last lines of its log."""

    cause: str
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Instance:
    """A process or container that a launcher started. `exit` None: it runs.

    `key` None: a standby, or one whose model only the frontend knows. `prepared`: made and
    not started yet; `Start` with its id and device starts it.
    """

    replica_id: str
    key: ModelKey | None
    device: str = "cpu"
    exit: Exit | None = None
    prepared: bool = False


@dataclass(frozen=True, slots=True)
class Observed:
    """All that a pass decides on. `snapshot` None: the frontend is not heard of now (S2)."""

    snapshot: Snapshot | None
    instances: tuple[Instance, ...] = ()
