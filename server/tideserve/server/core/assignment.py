"""Which replica gets which batch, decided when everything that happened is known."""

from collections.abc import Hashable, Iterable
from math import inf
from typing import Final

from tideserve.server.core.actions import Action, Dispatch
from tideserve.server.core.batching import Form, Wait, choose
from tideserve.server.core.leases import Lease
from tideserve.server.core.model import Model
from tideserve.server.core.replicas import Replica
from tideserve.server.core.request import Request

# A batch for a replica that still computes is decided this long before it should be done.
PREFETCH_LEAD_S: Final = 0.002


class Assignment:
    """Owns the numbering of leases. Work goes to replicas with empty hands first, among
    these to the lowest number, so that spare replicas show as idle."""

    def __init__(self, first_lease_id: int) -> None:
        self._next_lease_id = first_lease_id

    def assign(
        self, key: Hashable, model: Model, replicas: Iterable[Replica], now_s: float
    ) -> list[Action]:
        """Hands out what waits for one model; sets `decide_at_s` where waiting is better."""
        model.decide_at_s = inf
        if not model.queue.requests:
            return []
        actions = model.expire_overdue(now_s)
        model.decide_at_s = inf
        candidates = [
            replica
            for replica in replicas
            if replica.waiting is not None and replica.model == key and replica.has_room()
        ]
        if len(candidates) > 1:
            candidates.sort(key=_preference)
        for replica in candidates:
            if not model.queue.requests:
                break
            dispatch = self._assign_replica(model, replica, now_s)
            if dispatch is not None:
                actions.append(dispatch)
        return actions

    def _assign_replica(self, model: Model, replica: Replica, now_s: float) -> Dispatch | None:
        if model.queue.suspects:
            # One that still holds work gets no more, so that its hands are soon empty (R6).
            if replica.leases:
                return None
            suspect = next(iter(model.queue.suspects.values()))
            return self._give(model, replica, (suspect,), suspect.rows, now_s, sole=True)
        settings = model.settings.batch
        cap_rows = settings.max_batch_rows
        if replica.batch_cap_rows is not None:
            cap_rows = min(cap_rows, replica.batch_cap_rows)
        decision = choose(model.queue.waiting(), settings, cap_rows, now_s)
        match decision:
            case Wait(until_s):
                model.decide_at_s = min(model.decide_at_s, until_s)
                return None
            case Form(requests, rows, full):
                if replica.leases and not full:
                    free_at_s = _free_at_s(model, replica) - PREFETCH_LEAD_S
                    if free_at_s > now_s:
                        model.decide_at_s = min(model.decide_at_s, free_at_s)
                        return None
                return self._give(model, replica, requests, rows, now_s, sole=False)

    def _give(
        self,
        model: Model,
        replica: Replica,
        requests: tuple[Request, ...],
        rows: int,
        now_s: float,
        *,
        sole: bool,
    ) -> Dispatch:
        exchange = replica.waiting
        assert exchange is not None
        assert replica.model is not None
        for request in requests:
            model.queue.take(request)
            if request.first_leased_s == 0.0:
                request.first_leased_s = now_s
        lease = Lease(
            lease_id=self._next_lease_id,
            model=replica.model,
            replica_id=replica.replica_id,
            requests=requests,
            rows=rows,
            given_s=now_s,
            started_s=now_s,
            sole=sole,
            call_id=exchange.call_id,
            prefetched=bool(replica.leases),
        )
        self._next_lease_id += 1
        replica.leases[lease.lease_id] = lease
        replica.last_lease = lease
        replica.waiting = None
        model.leased_requests += len(requests)
        return Dispatch(exchange.call_id, exchange.sequence, lease, replica.last_dropped)


def _preference(replica: Replica) -> tuple[int, int]:
    return len(replica.leases), replica.number


def _free_at_s(model: Model, replica: Replica) -> float:
    """When the batch in its hands should be done; -inf if nothing is learned."""
    lease = next(iter(replica.leases.values()))
    learned_s = model.profile.latency_s(lease.rows)
    return -inf if learned_s is None else lease.started_s + learned_s
