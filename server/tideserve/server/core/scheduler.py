"""The queue and lease state machine: events in, actions out, no IO (C1).

Everything that decides what happens to a request is here; numbers in brackets are the
design's invariants. The dispatcher calls the `on_` methods for what came in, then `assign`
once, and carries out the actions in order. `next_wakeup_s` says when to call `on_tick`.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

from tideserve.server.core.actions import (
    Action,
    AnswerEmpty,
    Complete,
    Dispatch,
    Expire,
    Fail,
    FailureCause,
    RefuseCall,
    Rejection,
    ReplicaLeft,
    ReplicaLost,
    SendDrain,
)
from tideserve.server.core.batching import Form, Wait, choose
from tideserve.server.core.leases import Lease, max_batch_time_s
from tideserve.server.core.membership import Membership
from tideserve.server.core.ordering import OrderKeeper
from tideserve.server.core.outcomes import BatchDone, BatchFailed, Outcome
from tideserve.server.core.profile import Profile
from tideserve.server.core.queue import ModelQueue
from tideserve.server.core.replicas import Exchange, Replica, ReplicaState
from tideserve.server.core.request import Request
from tideserve.server.core.settings import ModelSettings

EXCHANGE_WAIT_S: Final = 10.0
BEAT_TIMEOUT_S: Final = 1.0
# A replica that imports or loads may hold its interpreter for long.
STARTING_BEAT_TIMEOUT_S: Final = 30.0
# A gap between ticks this long is our own stall (a suspended machine): nobody's beats could
# have been read, so nobody is lost for it.
OWN_STALL_S: Final = 0.5
# A request that was the sole work of so many replicas that died fails (R6).
MAX_SOLE_DEATHS: Final = 2
# A batch for a replica that still computes is decided this long before it should be done.
PREFETCH_LEAD_S: Final = 0.002
MIN_RETRY_AFTER_S: Final = 0.01
MAX_RETRY_AFTER_S: Final = 5.0


@dataclass(slots=True, eq=False)
class Model:
    """The core's part of one (model, version, generation)."""

    settings: ModelSettings
    queue: ModelQueue
    profile: Profile = field(default_factory=Profile)
    leased_requests: int = 0
    decide_at_s: float = inf
    ordering: OrderKeeper | None = None


class Scheduler:
    """Owns every queue, lease and replica record."""

    def __init__(self) -> None:
        self.models: dict[Hashable, Model] = {}
        self.members = Membership()
        self._leases = 0
        self._last_tick_s: float | None = None

    # --- models ---------------------------------------------------------------------------

    def add_model(self, key: Hashable, settings: ModelSettings) -> None:
        """Opens a queue."""
        ordering = OrderKeeper() if settings.batch.preserve_ordering else None
        self.models[key] = Model(settings, ModelQueue(settings.queue), ordering=ordering)

    def remove_model(self, key: Hashable, detail: str) -> list[Action]:
        """Closes a queue; what still waits or runs fails as unavailable."""
        actions = self.fail_queued(key, detail)
        model = self.models[key]
        for replica in self.members.of_model(key):
            for lease in list(replica.leases.values()):
                self._take_lease(replica, lease)
                actions += self._fail_all(model, lease.requests, FailureCause.UNAVAILABLE, detail)
        del self.models[key]
        return actions

    def fail_queued(self, key: Hashable, detail: str) -> list[Action]:
        """Nothing will serve this model: what waits fails now instead of at its deadline."""
        model = self.models[key]
        return self._fail_all(model, model.queue.drain(), FailureCause.UNAVAILABLE, detail)

    def is_idle(self, key: Hashable) -> bool:
        """Nothing waits and nothing runs."""
        model = self.models[key]
        return model.queue.requests == 0 and model.leased_requests == 0

    # --- requests -------------------------------------------------------------------------

    def on_arrival(self, key: Hashable, request: Request, now_s: float) -> Rejection | None:
        """Admits a request (R2) or says why not. Rows over max_batch_size are the service's
        to refuse (R3)."""
        model = self.models[key]
        reason = model.queue.admit(request, now_s)
        if reason is None:
            if model.ordering is not None:
                model.ordering.expect(request)
            model.decide_at_s = now_s
            return None
        return model.queue.reject(request, reason, self._retry_after_s(key, model))

    def on_cancel(self, key: Hashable, request: Request) -> list[Action]:
        """The caller is gone: the request leaves the queue (R7), or its rows are dropped when
        its batch returns. Batch mates notice nothing (R1)."""
        if request.done:
            return []
        request.done = True
        model = self.models.get(key)
        if model is None:
            return []
        if request in model.queue:
            model.queue.take(request)
        return self._released(model, request)

    # --- replicas (their lives are Membership's) -------------------------------------------------------------------------

    def on_drain(self, replica_id: str, now_s: float, reason: str) -> list[Action]:
        """No more leases (S4). Its waiting Exchange is answered at once."""
        replica = self.members.get(replica_id)
        if replica is None or replica.state in (ReplicaState.DRAINING, ReplicaState.LOST):
            return []
        joined = replica.joined
        replica.enter(ReplicaState.DRAINING, now_s, reason)
        if not joined:
            return []
        actions: list[Action] = [SendDrain(replica_id)]
        return actions + self._answer_empty(replica)

    def on_life_line_closed(self, replica_id: str, epoch: int, now_s: float) -> list[Action]:
        """The Join call ended: a draining replica with empty hands has left, others died."""
        replica = self.members.living(replica_id, epoch)
        if replica is None:
            return []
        if replica.state is ReplicaState.DRAINING and not replica.leases:
            actions = self._answer_empty(replica)
            self.members.forget(replica_id)
            return [*actions, ReplicaLeft(replica_id)]
        return self.on_lost(replica_id, now_s, "its connection broke")

    def on_lost(
        self, replica_id: str, now_s: float, reason: str, *, death: bool = True
    ) -> list[Action]:
        """The replica is gone or as good as gone. Its leases return to the queue (R5); the one
        that was computing is suspect if this was a `death` (R6), not if we or a launcher
        ended it."""
        replica = self.members.get(replica_id)
        if replica is None or replica.state is ReplicaState.LOST:
            return []
        self.members.lose(replica, now_s, reason)
        actions = self._answer_empty(replica)
        leases = list(replica.leases.values())
        # From the youngest, so that put_back leaves the queue's head in the old order.
        for at, lease in reversed(list(enumerate(leases))):
            self._take_lease(replica, lease)
            suspect = death and at == 0
            sole = suspect and len(leases) == 1 and len(lease.requests) == 1
            actions += self._return(lease, now_s, suspect=suspect, sole=sole, ran=True)
        replica.attributed = any(
            isinstance(action, Fail) and action.cause is FailureCause.KILLS_REPLICAS
            for action in actions
        )
        return [*actions, ReplicaLost(replica_id, reason, replica.attributed)]

    # --- exchanges ------------------------------------------------------------------------

    def on_exchange(
        self,
        replica_id: str,
        epoch: int,
        exchange: Exchange,
        outcomes: Iterable[Outcome],
        now_s: float,
        *,
        want: bool,
    ) -> list[Action]:
        """Settles outcomes and queues the replica's wish for a lease; `assign` fulfils it."""
        replica = self.members.living(replica_id, epoch)
        if replica is None:
            return [RefuseCall(exchange.call_id, "this life of the replica is over: join again")]
        replica.last_beat_s = now_s
        if exchange.sequence < replica.last_sequence:
            return [
                RefuseCall(
                    exchange.call_id,
                    f"Exchange {exchange.sequence} comes after {replica.last_sequence}",
                )
            ]
        actions = self._answer_empty(replica)
        if exchange.sequence == replica.last_sequence:
            return actions + self._repeat(replica, exchange)
        replica.last_sequence = exchange.sequence
        if replica.last_lease is not None:
            replica.last_lease.call_id = -1
            replica.last_lease = None
        dropped: list[int] = []
        for outcome in outcomes:
            actions += self._settle(replica, outcome, dropped, now_s)
        exchange = replace(exchange, dropped_lease_ids=tuple(dropped))
        replica.waiting = exchange
        if not want or replica.state is not ReplicaState.READY:
            actions += self._answer_empty(replica)
        elif replica.model is not None and (model := self.models.get(replica.model)) is not None:
            model.decide_at_s = now_s
        return actions

    def on_exchange_gone(self, replica_id: str, call_id: int, now_s: float) -> list[Action]:
        """The call broke before or while it was answered: it waits no more, and a lease that
        it carried and that nobody acknowledged returns unmarked (15.3)."""
        replica = self.members.get(replica_id)
        if replica is None:
            return []
        if replica.waiting is not None and replica.waiting.call_id == call_id:
            replica.waiting = None
        lease = replica.last_lease
        if lease is None or lease.call_id != call_id or lease.lease_id not in replica.leases:
            return []
        self._take_lease(replica, lease)
        replica.last_lease = None
        return self._return(lease, now_s)

    # --- time -----------------------------------------------------------------------------

    def on_tick(self, now_s: float) -> list[Action]:
        """What time alone decides: expiry, unanswered Exchanges, silent and hung replicas."""
        actions: list[Action] = []
        for model in self.models.values():
            if model.queue.next_due_s() <= now_s:
                for request in model.queue.overdue(now_s):
                    actions += self._expire(model, request)
        stall_s = 0.0 if self._last_tick_s is None else now_s - self._last_tick_s
        self._last_tick_s = now_s
        for replica in self.members.all():
            if stall_s > OWN_STALL_S:
                replica.last_beat_s += stall_s
                self._shift_leases(replica, stall_s)
            actions += self._check(replica, now_s)
        return actions

    def next_wakeup_s(self) -> float:
        """When time alone next forms a batch or expires a request; beats, hung batches and
        unanswered Exchanges are coarse and wait for the dispatcher's own tick."""
        wakeup_s = inf
        for model in self.models.values():
            wakeup_s = min(wakeup_s, model.queue.next_due_s(), model.decide_at_s)
        return wakeup_s

    def assign(self, now_s: float) -> list[Action]:
        """Matches waiting requests and waiting replicas, once all events at hand are in: what
        forms a batch is decided as late as can be."""
        actions: list[Action] = []
        for key, model in self.models.items():
            if model.decide_at_s <= now_s:
                model.decide_at_s = inf
                self._assign_model(key, model, now_s, actions)
        return actions

    # --- inside ---------------------------------------------------------------------------

    def _assign_model(
        self, key: Hashable, model: Model, now_s: float, actions: list[Action]
    ) -> None:
        if not model.queue.requests:
            return
        if model.queue.next_due_s() <= now_s:
            for request in model.queue.overdue(now_s):
                actions += self._expire(model, request)
        candidates = sorted(
            (
                replica
                for replica in self.members.all()
                if replica.model == key and replica.has_room()
            ),
            key=lambda replica: (len(replica.leases), replica.number),
        )
        for replica in candidates:
            if not model.queue.requests:
                return
            self._assign_replica(model, replica, now_s, actions)

    def _assign_replica(
        self, model: Model, replica: Replica, now_s: float, actions: list[Action]
    ) -> None:
        suspects = model.queue.suspects
        if suspects:
            # One that still holds work gets no more, so that its hands are soon empty (R6).
            if not replica.leases:
                suspect = next(iter(suspects.values()))
                actions.append(self._give(model, replica, (suspect,), now_s, sole=True))
            return
        settings = model.settings.batch
        cap_rows = min(settings.max_batch_rows, replica.batch_cap_rows or settings.max_batch_rows)
        decision = choose(model.queue.waiting(), settings, cap_rows, now_s)
        match decision:
            case Wait(until_s):
                model.decide_at_s = min(model.decide_at_s, until_s)
            case Form(requests, _, full):
                free_at_s = self._free_at_s(model, replica) - PREFETCH_LEAD_S
                if not full and free_at_s > now_s:
                    model.decide_at_s = min(model.decide_at_s, free_at_s)
                    return
                actions.append(self._give(model, replica, requests, now_s, sole=False))

    def _free_at_s(self, model: Model, replica: Replica) -> float:
        """When the batch in its hands should be done; -inf if none or nothing is learned."""
        if not replica.leases:
            return -inf
        lease = next(iter(replica.leases.values()))
        learned_s = model.profile.latency_s(lease.rows)
        return -inf if learned_s is None else lease.started_s + learned_s

    def _give(
        self,
        model: Model,
        replica: Replica,
        requests: tuple[Request, ...],
        now_s: float,
        *,
        sole: bool,
    ) -> Dispatch:
        exchange = replica.waiting
        assert exchange is not None
        assert replica.model is not None
        self._leases += 1
        rows = 0
        for request in requests:
            model.queue.take(request)
            rows += request.rows
            if request.first_leased_s == 0.0:
                request.first_leased_s = now_s
        lease = Lease(
            self._leases,
            replica.model,
            replica.replica_id,
            requests,
            rows,
            now_s,
            now_s,
            sole,
            exchange.call_id,
            prefetched=bool(replica.leases),
        )
        replica.leases[lease.lease_id] = lease
        replica.last_lease = lease
        replica.waiting = None
        model.leased_requests += len(requests)
        return Dispatch(exchange.call_id, exchange.sequence, lease, exchange.dropped_lease_ids)

    def _repeat(self, replica: Replica, exchange: Exchange) -> list[Action]:
        """The same number again: the same lease if it is still held, else a new wish."""
        lease = replica.last_lease
        if lease is not None and lease.lease_id in replica.leases:
            lease.call_id = exchange.call_id
            return [Dispatch(exchange.call_id, exchange.sequence, lease, ())]
        replica.waiting = exchange
        if replica.state is not ReplicaState.READY:
            return self._answer_empty(replica)
        if replica.model in self.models:
            self.models[replica.model].decide_at_s = -inf
        return []

    def _answer_empty(self, replica: Replica) -> list[Action]:
        exchange = replica.waiting
        if exchange is None:
            return []
        replica.waiting = None
        drain = replica.state is ReplicaState.DRAINING
        return [AnswerEmpty(exchange.call_id, exchange.sequence, drain, exchange.dropped_lease_ids)]

    def _settle(
        self, replica: Replica, outcome: Outcome, dropped: list[int], now_s: float
    ) -> list[Action]:
        lease = replica.leases.get(outcome.lease_id)
        if lease is None:
            dropped.append(outcome.lease_id)
            return []
        self._take_lease(replica, lease)
        if replica.leases:
            next(iter(replica.leases.values())).started_s = now_s
        model = self.models[lease.model]
        match outcome:
            case BatchDone(_, latency_s):
                model.profile.observe(lease.rows, latency_s)
                return self._complete(model, lease)
            case BatchFailed(_, FailureCause.OUT_OF_MEMORY, _) if len(lease.requests) > 1:
                replica.batch_cap_rows = max(1, lease.rows // 2)
                model.decide_at_s = now_s
                return self._return(lease, now_s)
            case BatchFailed(_, cause, detail):
                return self._fail_all(model, lease.requests, cause, detail)

    def _complete(self, model: Model, lease: Lease) -> list[Action]:
        answers: list[tuple[Request, int]] = []
        first_row = 0
        for request in lease.requests:
            if not request.done:
                request.done = True
                answers.append((request, first_row))
            first_row += request.rows
        complete = Complete(lease, answers)
        return [complete] if model.ordering is None else model.ordering.complete(complete)

    def _return(
        self,
        lease: Lease,
        now_s: float,
        *,
        suspect: bool = False,
        sole: bool = False,
        ran: bool = False,
    ) -> list[Action]:
        """A lease that will not be answered: its requests wait again, or end. `ran`: the
        model may have seen it, so only retryable models get it again (R5)."""
        model = self.models[lease.model]
        actions: list[Action] = []
        again: list[Request] = []
        for request in lease.requests:
            if request.done:
                continue
            request.sole_deaths += sole
            if request.queue_deadline_s <= now_s:
                actions += self._expire(model, request)
            elif request.sole_deaths >= MAX_SOLE_DEATHS:
                actions += self._fail_all(model, (request,), FailureCause.KILLS_REPLICAS, "")
            elif ran and not model.settings.lease.retryable:
                actions += self._fail_all(model, (request,), FailureCause.NOT_RETRYABLE, "")
            else:
                request.suspect = request.suspect or suspect
                again.append(request)
        model.queue.put_back(tuple(again))
        model.decide_at_s = now_s
        return actions

    def _take_lease(self, replica: Replica, lease: Lease) -> None:
        del replica.leases[lease.lease_id]
        self.models[lease.model].leased_requests -= len(lease.requests)

    def _fail_all(
        self, model: Model, requests: Iterable[Request], cause: FailureCause, detail: str
    ) -> list[Action]:
        actions: list[Action] = []
        for request in requests:
            if not request.done:
                request.done = True
                actions += [Fail(request, cause, detail), *self._released(model, request)]
        return actions

    def _expire(self, model: Model, request: Request) -> list[Action]:
        request.done = True
        return [Expire(request), *self._released(model, request)]

    def _released(self, model: Model, request: Request) -> list[Action]:
        """Answers that waited for this request's to go out first."""
        return [] if model.ordering is None else model.ordering.skip(request)

    def _shift_leases(self, replica: Replica, stall_s: float) -> None:
        for lease in replica.leases.values():
            lease.started_s += stall_s

    def _check(self, replica: Replica, now_s: float) -> list[Action]:
        if not replica.joined:
            return []
        if replica.waiting is not None and now_s - replica.waiting.since_s >= EXCHANGE_WAIT_S:
            return self._answer_empty(replica)
        limit_s = (
            STARTING_BEAT_TIMEOUT_S if replica.state is ReplicaState.STARTING else BEAT_TIMEOUT_S
        )
        if now_s - replica.last_beat_s > limit_s:
            return self.on_lost(replica.replica_id, now_s, f"no sign of life for {limit_s:g} s")
        if replica.leases:
            lease = next(iter(replica.leases.values()))
            model = self.models[lease.model]
            limit_s = max_batch_time_s(model.settings.lease, model.profile, lease.rows)
            if now_s - lease.started_s > limit_s:
                return self.on_lost(
                    replica.replica_id,
                    now_s,
                    f"a batch of {lease.rows} rows took more than {limit_s:g} s",
                )
        return []

    def _retry_after_s(self, key: Hashable, model: Model) -> float:
        """About how long the queue ahead takes to clear."""
        replicas = sum(
            replica.model == key and replica.state is ReplicaState.READY
            for replica in self.members.all()
        )
        batch_rows = max(1, model.settings.batch.max_batch_rows)
        latency_s = model.profile.latency_s(batch_rows) or 0.1
        estimate_s = model.queue.rows / batch_rows * latency_s / max(1, replicas)
        return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, estimate_s))
