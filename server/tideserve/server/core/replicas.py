"""A replica as the core sees it, and the numbering of its Exchanges (15.3)."""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from tideserve.server.core.leases import Lease
from tideserve.server.core.memory_limit import MemoryLimit

# One that computes and one that is prefetched behind it.
MAX_HELD_LEASES = 2


class ReplicaState(Enum):
    """See DESIGN section 13."""

    STARTING = "STARTING"
    STANDBY = "STANDBY"
    READY = "READY"
    DRAINING = "DRAINING"
    LOST = "LOST"


class Exchange(NamedTuple):
    """An Exchange call: its answer's address, its number, and when it came."""

    call_id: int
    sequence: int
    since_s: float


@dataclass(slots=True, eq=False)
class Replica:
    """One announced or joined replica. `number` orders replicas by announcement: work goes
    to the lowest idle one, so that spare replicas show as idle."""

    replica_id: str
    number: int
    model: Hashable | None
    state: ReplicaState
    state_since_s: float
    device: str = ""
    epoch: int = 0
    joined: bool = False
    was_ready: bool = False
    attributed: bool = False
    reason: str = ""
    last_beat_s: float = 0.0
    leases: OrderedDict[int, Lease] = field(default_factory=OrderedDict)
    """By age: the first one computes."""
    waiting: Exchange | None = None
    last_sequence: int = 0
    last_lease: Lease | None = None
    """What the last answered Exchange carried, for a repeat of its number."""
    last_dropped: tuple[int, ...] = ()
    """Outcomes that the last number brought for leases no longer held."""
    memory: MemoryLimit = field(default_factory=MemoryLimit)

    @property
    def batch_cap_rows(self) -> int | None:
        """None: as many as the model has."""
        return self.memory.cap_rows

    def enter(self, state: ReplicaState, now_s: float, reason: str = "") -> None:
        """Changes the state."""
        self.state = state
        self.state_since_s = now_s
        self.reason = reason

    def runs_sole(self) -> bool:
        """It holds a suspect, which must stay alone."""
        return bool(self.leases) and next(iter(self.leases.values())).sole

    def has_room(self) -> bool:
        """It waits for a lease and may hold one more."""
        return (
            self.state is ReplicaState.READY
            and self.waiting is not None
            and len(self.leases) < MAX_HELD_LEASES
            and not self.runs_sole()
        )
