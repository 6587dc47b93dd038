"""A simulated replica: what it holds, and what it is doing."""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf

from tideserve.server.core.leases import Lease


@dataclass(slots=True, eq=False)
class SimReplica:
    """`key`: its model, None: a standby. `launched_s`: from then on that model pays for it.
    `started_s`: when its current batch began. `epoch` 0: it has not joined."""

    replica_id: str
    launched_s: float
    device: str = "cpu"
    key: Hashable | None = None
    epoch: int = 0
    sequence: int = 0
    held: deque[Lease] = field(default_factory=deque)
    started_s: float = 0.0
    busy_s: float = 0.0
    ready: bool = False
    dies_s: float = inf
    startup_s: float = 0.0
    draining: bool = False
    over: str = ""
    """How it ended; empty while it runs."""
