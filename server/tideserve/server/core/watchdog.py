"""The two clocks of a replica (15.2): is it alive, and does its batch hang?"""

from typing import Final

from tideserve.server.core.leases import max_batch_time_s
from tideserve.server.core.replicas import Replica, ReplicaState
from tideserve.server.core.settlement import Models

BEAT_TIMEOUT_S: Final = 1.0
# A replica that imports or loads may hold its interpreter for long.
STARTING_BEAT_TIMEOUT_S: Final = 30.0
# A gap between checks this long is our own stall (a suspended machine): nobody's beats could
# have been read, so it counts as the time between two beats and nobody is lost for it.
OWN_STALL_S: Final = 0.5
STALL_COUNTS_AS_S: Final = 0.25


class Watchdog:
    """Owns the time of the last check, to know its own stalls. It wants to be asked well
    within `OWN_STALL_S`: who asks less often finds nobody silent."""

    def __init__(self) -> None:
        self._checked_s: float | None = None

    def stall_s(self, now_s: float) -> float:
        """How much of the time since the last check is to be forgiven."""
        gap_s = 0.0 if self._checked_s is None else now_s - self._checked_s
        self._checked_s = now_s
        return gap_s - STALL_COUNTS_AS_S if gap_s > OWN_STALL_S else 0.0


def forgive(replica: Replica, stall_s: float, now_s: float) -> None:
    """Moves the replica's clocks on by a stall of ours."""
    replica.last_beat_s = min(now_s, replica.last_beat_s + stall_s)
    for lease in replica.leases.values():
        lease.started_s = min(now_s, lease.started_s + stall_s)


def verdict(replica: Replica, models: Models, now_s: float) -> str | None:
    """Why the replica counts as LOST; None if it does not."""
    limit_s = STARTING_BEAT_TIMEOUT_S if replica.state is ReplicaState.STARTING else BEAT_TIMEOUT_S
    if now_s - replica.last_beat_s > limit_s:
        return f"no sign of life for {limit_s:g} s"
    if replica.leases:
        lease = next(iter(replica.leases.values()))
        model = models[lease.model]
        limit_s = max_batch_time_s(
            model.settings.lease, model.profiles.of(lease.row_cost), lease.rows
        )
        if now_s - lease.started_s > limit_s:
            return f"a batch of {lease.rows} rows took more than {limit_s:g} s"
    return None
