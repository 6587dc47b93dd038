"""Which replicas there are: announced, joined, READY; and which life a call belongs to."""

from collections.abc import Hashable
from typing import Final

from tideserve.server.core.replicas import Replica, ReplicaState

# Records of LOST replicas kept for whoever asks why, until their launcher reports the exit.
MAX_LOST_RECORDS: Final = 64


class Membership:
    """Owns the replica records and hands out epochs.

    An epoch names one Join of one replica: calls that carry another one come from an earlier
    life and are refused.
    """

    def __init__(self, first_epoch: int) -> None:
        self._replicas: dict[str, Replica] = {}
        self._announced = 0
        self._next_epoch = first_epoch

    def all(self) -> list[Replica]:
        """Every record, LOST ones included, by announcement."""
        return list(self._replicas.values())

    def of_model(self, model: Hashable) -> list[Replica]:
        """Those that have or load this model version."""
        return [replica for replica in self._replicas.values() if replica.model == model]

    def get(self, replica_id: str) -> Replica | None:
        """The record of an id."""
        return self._replicas.get(replica_id)

    def living(self, replica_id: str, epoch: int) -> Replica | None:
        """The replica, if this epoch is its present life."""
        replica = self._replicas.get(replica_id)
        if replica is None or not replica.joined or replica.epoch != epoch:
            return None
        return replica

    def announce(self, replica_id: str, model: Hashable | None, now_s: float) -> None:
        """A launcher will start this replica, or has adopted it. A known one stays as it is;
        an id that is LOST begins a new life."""
        known = self._replicas.get(replica_id)
        if known is not None and known.state is not ReplicaState.LOST:
            return
        self._announced += 1
        self._replicas.pop(replica_id, None)
        self._replicas[replica_id] = Replica(
            replica_id, self._announced, model, ReplicaState.STARTING, now_s
        )

    def join(self, replica_id: str, now_s: float, device: str = "") -> int | None:
        """A life line opened: the epoch of this life; None for an id that was not announced,
        is LOST or DRAINING, or still has an open life line."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.joined or replica.state is not ReplicaState.STARTING:
            return None
        replica.epoch = self._next_epoch
        self._next_epoch += 1
        replica.joined = True
        replica.device = device
        replica.last_beat_s = now_s
        if replica.model is None:
            replica.enter(ReplicaState.STANDBY, now_s)
        return replica.epoch

    def assign(self, replica_id: str, model: Hashable, now_s: float) -> bool:
        """A standby gets a model; False if it is none."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.state is not ReplicaState.STANDBY:
            return False
        replica.model = model
        replica.enter(ReplicaState.STARTING, now_s)
        return True

    def ready(self, replica_id: str, now_s: float) -> bool:
        """Its model is loaded; False if it has not joined or was not STARTING one."""
        replica = self._replicas.get(replica_id)
        if (
            replica is None
            or not replica.joined
            or replica.model is None
            or replica.state is not ReplicaState.STARTING
        ):
            return False
        replica.was_ready = True
        replica.enter(ReplicaState.READY, now_s)
        return True

    def beat(self, replica_id: str, epoch: int, now_s: float) -> bool:
        """Proof of life; False for a life that is over."""
        replica = self.living(replica_id, epoch)
        if replica is None:
            return False
        replica.last_beat_s = now_s
        return True

    def lose(self, replica: Replica, now_s: float, reason: str) -> None:
        """Marks it LOST and forgets the oldest of too many LOST ones."""
        replica.enter(ReplicaState.LOST, now_s, reason)
        replica.joined = False
        lost = [id_ for id_, other in self._replicas.items() if other.state is ReplicaState.LOST]
        for replica_id in lost[:-MAX_LOST_RECORDS]:
            del self._replicas[replica_id]

    def leave(self, replica: Replica) -> None:
        """It left with empty hands; nothing is to be kept of it."""
        assert not replica.leases, f"{replica.replica_id} leaves with leases"
        replica.joined = False
        del self._replicas[replica.replica_id]

    def forget(self, replica_id: str) -> None:
        """Drops the record of a replica whose process has ended. One whose life line is open
        stays until that closes: it may hold leases (R1)."""
        replica = self._replicas.get(replica_id)
        if replica is not None and not replica.joined:
            del self._replicas[replica_id]
