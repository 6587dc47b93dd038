"""The queue and lease state machine: events in, actions out, no IO (C1).

The dispatcher calls the `on_` methods for what came in, then `assign` once, and carries out
the actions in order. `next_wakeup_s` says when to call `on_tick` and `assign` though nothing
came in; `on_tick` is to be called a few times a second besides (see `Watchdog`). Numbers in
brackets are the design's invariants. Who decides what: `Model` ends requests, `Assignment`
forms leases, `settlement` ends them, `Membership` knows lives, `watchdog` judges silence.
"""

from collections.abc import Hashable, Iterable
from math import inf
from typing import Final

from tideserve.server.core.actions import (
    Action,
    AnswerEmpty,
    Dispatch,
    FailureCause,
    RefuseCall,
    Rejection,
    ReplicaLeft,
    ReplicaLost,
    SendDrain,
)
from tideserve.server.core.assignment import Assignment
from tideserve.server.core.membership import Membership
from tideserve.server.core.model import Model
from tideserve.server.core.ordering import OrderKeeper
from tideserve.server.core.outcomes import Outcome
from tideserve.server.core.profiles import Profiles
from tideserve.server.core.queue import ModelQueue
from tideserve.server.core.replicas import Exchange, Replica, ReplicaState
from tideserve.server.core.request import Request
from tideserve.server.core.settings import BatchingMode, ModelSettings
from tideserve.server.core.settlement import (
    ReturnCause,
    give_back,
    give_back_all,
    settle,
    take_lease,
)
from tideserve.server.core.watchdog import Watchdog, forgive, verdict

EXCHANGE_WAIT_S: Final = 10.0


class Scheduler:
    """Owns every queue, lease and replica record.

    `first_id`: where epochs and lease ids begin. A frontend that starts anew passes a larger
    number than the one before, so that no call of that life fits this one. `assignment`: another
    rule of batching than the core's own.
    """

    def __init__(self, first_id: int = 1, assignment: Assignment | None = None) -> None:
        self.models: dict[Hashable, Model] = {}
        self.members = Membership(first_id)
        self._assignment = assignment or Assignment(first_id)
        self._watchdog = Watchdog()

    # --- models ---------------------------------------------------------------------------

    def add_model(self, key: Hashable, settings: ModelSettings) -> None:
        """Opens a queue, once for each key."""
        assert key not in self.models, f"{key} has a queue already"
        batch = settings.batch
        self.models[key] = Model(
            settings,
            ModelQueue(settings.queue, batch.target_s),
            OrderKeeper() if batch.preserve_ordering else None,
            Profiles(by_device=batch.mode is BatchingMode.SLO, row_costs=batch.row_costs),
        )

    def remove_model(self, key: Hashable, detail: str) -> list[Action]:
        """Closes a queue; what still waits or runs fails as unavailable."""
        actions = self.fail_queued(key, detail)
        model = self.models[key]
        for replica in self.members.of_model(key):
            for lease in list(replica.leases.values()):
                take_lease(model, replica, lease, lease.given_s)
                actions += model.fail(lease.requests, FailureCause.UNAVAILABLE, detail)
        del self.models[key]
        return actions

    def fail_queued(self, key: Hashable, detail: str) -> list[Action]:
        """Nothing will serve this model: what waits fails now instead of at its deadline."""
        model = self.models[key]
        return model.fail(model.queue.drain(), FailureCause.UNAVAILABLE, detail)

    def is_idle(self, key: Hashable) -> bool:
        """Nothing waits and nothing runs."""
        model = self.models[key]
        return model.queue.requests == 0 and model.leased_requests == 0

    # --- requests -------------------------------------------------------------------------

    def on_arrival(self, key: Hashable, request: Request, now_s: float) -> Rejection | None:
        """Admits a request (R2) or says why not. Rows below 1 or over max_batch_size are the
        service's to refuse (R3)."""
        model = self.models[key]
        reason = model.admit(request, now_s)
        if reason is None:
            return None
        ready = sum(replica.state is ReplicaState.READY for replica in self.members.of_model(key))
        return model.queue.reject(request, reason, model.retry_after_s(ready))

    def on_cancel(self, key: Hashable, request: Request) -> list[Action]:
        """The caller is gone: the request leaves the queue (R7), or its rows are dropped when
        its batch returns. Batch mates notice nothing (R1)."""
        model = self.models.get(key)
        return [] if model is None else model.cancel(request)

    # --- replicas (their lives are Membership's) ------------------------------------------

    def on_drain(self, replica_id: str, now_s: float, reason: str) -> list[Action]:
        """No more leases; those it holds it finishes (S4). Its waiting Exchange is answered
        at once. One that has not joined yet will be refused when it does."""
        replica = self.members.get(replica_id)
        if replica is None or replica.state in (ReplicaState.DRAINING, ReplicaState.LOST):
            return []
        replica.enter(ReplicaState.DRAINING, now_s, reason)
        if not replica.joined:
            return []
        return [SendDrain(replica_id), *_answer_empty(replica)]

    def on_life_line_closed(self, replica_id: str, epoch: int, now_s: float) -> list[Action]:
        """The Join call ended: a draining replica with empty hands has left, others died."""
        replica = self.members.living(replica_id, epoch)
        if replica is None:
            return []
        return self.on_ended(replica_id, now_s, "its connection broke")

    def on_ended(self, replica_id: str, now_s: float, reason: str) -> list[Action]:
        """The replica is no more: one that was draining with empty hands has left, whether it had
        joined or not; others died."""
        replica = self.members.get(replica_id)
        if replica is None or replica.state is ReplicaState.LOST:
            return []
        if replica.state is ReplicaState.DRAINING and not replica.leases:
            actions = _answer_empty(replica)
            self.members.leave(replica)
            return [*actions, ReplicaLeft(replica_id)]
        return self.on_lost(replica_id, now_s, reason)

    def on_lost(
        self, replica_id: str, now_s: float, reason: str, *, death: bool = True
    ) -> list[Action]:
        """The replica is gone or as good as gone, and its leases return to the queue (R5).

        The one that was computing is suspect if this was a `death` (R6). It was none if we or
        a launcher ended the replica, nor if it was DRAINING: then its end was wanted.
        """
        replica = self.members.get(replica_id)
        if replica is None or replica.state is ReplicaState.LOST:
            return []
        death = death and replica.state is not ReplicaState.DRAINING
        actions = _answer_empty(replica)
        replica.last_lease = None
        returned, replica.attributed = give_back_all(self.models, replica, now_s, death=death)
        self.members.lose(replica, now_s, reason)
        return [*actions, *returned, ReplicaLost(replica_id, reason, replica.attributed)]

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
        """Settles outcomes and queues the replica's wish for a lease; `assign` fulfils it.

        A new number acknowledges the answer to the one before. The same number again is
        answered again, its outcomes being settled already; an older one is refused (15.3).
        """
        replica = self.members.living(replica_id, epoch)
        if replica is None:
            return [RefuseCall(exchange.call_id, "this life of the replica is over: join again")]
        replica.last_beat_s = now_s
        last = replica.last_sequence
        if exchange.sequence < max(1, last):
            return [
                RefuseCall(
                    exchange.call_id,
                    f"expected Exchange {last} or {last + 1}, got {exchange.sequence}",
                )
            ]
        actions = _answer_empty(replica)
        if exchange.sequence == last:
            lease = replica.last_lease
            if lease is not None and lease.lease_id in replica.leases:
                # The replica may have it from the first answer, whatever becomes of this one:
                # only its outcome or the life's end returns it.
                lease.call_id = None
                dispatch = Dispatch(exchange.call_id, last, lease, replica.last_dropped)
                return [*actions, dispatch]
        else:
            replica.last_sequence = exchange.sequence
            replica.last_lease = None
            dropped: list[int] = []
            for outcome in outcomes:
                actions += settle(self.models, replica, outcome, dropped, now_s)
            replica.last_dropped = tuple(dropped)
        replica.waiting = exchange
        if not want or replica.state is not ReplicaState.READY:
            return actions + _answer_empty(replica)
        model = self.models.get(replica.model)
        if model is not None:
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
        model = self.models[lease.model]
        replica.last_lease = None
        take_lease(model, replica, lease, now_s)
        return give_back(model, lease, ReturnCause.UNDELIVERED, now_s)

    # --- time -----------------------------------------------------------------------------

    def on_tick(self, now_s: float) -> list[Action]:
        """What time alone decides: expiry, unanswered Exchanges, silent and hung replicas."""
        actions: list[Action] = []
        for model in self.models.values():
            actions += model.expire_overdue(now_s)
        stall_s = self._watchdog.stall_s(now_s)
        for replica in self.members.all():
            if not replica.joined:
                continue
            if stall_s > 0.0:
                forgive(replica, stall_s, now_s)
            reason = verdict(replica, self.models, now_s)
            if reason is not None:
                actions += self.on_lost(replica.replica_id, now_s, reason)
            elif replica.waiting is not None and (
                now_s - replica.waiting.since_s >= EXCHANGE_WAIT_S
            ):
                actions += _answer_empty(replica)
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
                actions += self._assignment.assign(key, model, self.members.all(), now_s)
        return actions


def _answer_empty(replica: Replica) -> list[Action]:
    """Ends the Exchange that waits, if one does."""
    exchange = replica.waiting
    if exchange is None:
        return []
    replica.waiting = None
    drain = replica.state is ReplicaState.DRAINING
    return [AnswerEmpty(exchange.call_id, exchange.sequence, drain, replica.last_dropped)]
