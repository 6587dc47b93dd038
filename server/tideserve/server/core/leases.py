"""Leases: a batch given to a replica, and how long it may take."""

from collections.abc import Hashable
from typing import Any, Final

from tideserve.server.core.profile import Profile
from tideserve.server.core.request import Request
from tideserve.server.core.settings import LeaseSettings

UNLEARNED_BATCH_TIME_S: Final = 60.0
LEARNED_BATCH_TIME_FACTOR: Final = 10.0
MIN_LEARNED_BATCH_TIME_S: Final = 5.0


class Lease:
    """`requests` in batch order. `started_s` is when the replica could begin: on delivery,
    or when the lease before it was answered. `sole`: a suspect's, the replica gets nothing beside
    it. `call_id`: the Exchange that carried it; None: it was carried by several."""

    # No dataclass: as `Request`.
    __slots__ = (
        "call_id",
        "given_s",
        "lease_id",
        "model",
        "output_bytes",
        "outputs",
        "prefetched",
        "replica_id",
        "requests",
        "row_cost",
        "rows",
        "sole",
        "started_s",
    )

    def __init__(
        self,
        lease_id: int,
        model: Hashable,
        replica_id: str,
        requests: tuple[Request, ...],
        rows: int,
        row_cost: int,
        given_s: float,
        started_s: float,
        call_id: int | None,
        *,
        sole: bool,
        prefetched: bool,
    ) -> None:
        self.lease_id = lease_id
        self.model = model
        self.replica_id = replica_id
        self.requests = requests
        self.rows = rows
        self.row_cost = row_cost
        self.given_s = given_s
        self.started_s = started_s
        self.call_id = call_id
        self.sole = sole
        self.prefetched = prefetched
        self.outputs: Any = None
        """The dispatcher's: what came for it, opaque here."""
        self.output_bytes = 0
        """Of these."""


def max_batch_time_s(settings: LeaseSettings, profile: Profile, rows: int) -> float:
    """How long a batch may compute before its replica counts as hung (15.2)."""
    if settings.max_batch_time_s is not None:
        return settings.max_batch_time_s
    learned_s = profile.latency_s(rows)
    if learned_s is None:
        return UNLEARNED_BATCH_TIME_S
    return max(MIN_LEARNED_BATCH_TIME_S, LEARNED_BATCH_TIME_FACTOR * learned_s)
