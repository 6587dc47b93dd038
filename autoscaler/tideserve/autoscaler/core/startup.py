"""Tc: how long a replica takes from its launch to READY, as measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tideserve.autoscaler.core.fleet import Replica, ReplicaState

QUANTILE: Final = 0.95
KEPT: Final = 50
# While nothing was measured.
DEFAULT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class StartUps:
    """The last `KEPT` start-ups, oldest first. `seen`: READY replicas already counted."""

    durations_s: tuple[float, ...] = ()
    seen: frozenset[str] = frozenset()

    def push(self, replicas: Iterable[Replica]) -> "StartUps":
        """With those that became READY since."""
        ready = {
            replica.replica_id: sum(seconds for _, seconds in replica.startup_s)
            for replica in replicas
            if replica.state is ReplicaState.READY and replica.startup_s
        }
        new = [ready[name] for name in sorted(ready.keys() - self.seen)]
        if not new and ready.keys() == self.seen:
            return self
        return StartUps((*self.durations_s, *new)[-KEPT:], frozenset(ready))

    def expected_s(self) -> float:
        """A high percentile of them."""
        if not self.durations_s:
            return DEFAULT_S
        ordered = sorted(self.durations_s)
        return ordered[min(len(ordered) - 1, int(QUANTILE * len(ordered)))]
