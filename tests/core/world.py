"""A scheduler with everything around it, and the design's invariants checked at each step.

`World` plays the dispatcher and the replicas: it numbers calls and Exchanges, carries out
actions, and keeps its own books to hold the core's against.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from math import inf

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
from tideserve.server.core.assignment import Assignment
from tideserve.server.core.leases import Lease
from tideserve.server.core.membership import MAX_LOST_RECORDS
from tideserve.server.core.outcomes import BatchDone, Outcome
from tideserve.server.core.queue import MIN_DUE_ENTRIES
from tideserve.server.core.replicas import MAX_HELD_LEASES, Exchange, ReplicaState
from tideserve.server.core.request import Request
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.core.settings import ModelSettings, OnLate

START_S = 100.0


@dataclass
class Player:
    """A replica's own view: what it holds and which call it has open."""

    replica_id: str
    epoch: int
    sequence: int = 0
    leases: list[Lease] = field(default_factory=list)
    call_id: int | None = None
    told_to_drain: bool = False


class World:
    """Owns the clock and the books. Every method ends with `turn`, as the dispatcher's do."""

    def __init__(
        self, models: dict[str, ModelSettings], assignment: Assignment | None = None
    ) -> None:
        self.now_s = START_S
        self.scheduler = Scheduler(assignment=assignment)
        for key, settings in models.items():
            self.scheduler.add_model(key, settings)
        self.requests: dict[int, Request] = {}
        self.model_of: dict[int, str] = {}
        self.outcomes: dict[int, str] = {}
        self.players: dict[str, Player] = {}
        self.open_calls: dict[int, str] = {}
        self.caller_of: dict[int, str] = {}
        self.lease_ids: list[int] = []
        self.deaths_laid_to_requests = 0
        self.fail_next_delivery = False
        self.log: list[Action] = []
        self.next_request_id = 1
        self._most_queued: Counter[Hashable] = Counter()
        self._calls = 0
        self._answered: Counter[int] = Counter()

    # --- events ---------------------------------------------------------------------------

    def arrive(
        self,
        model: str,
        rows: int = 1,
        signature: Hashable = "a",
        *,
        priority: int = 0,
        deadline_in_s: float = inf,
        timeout_s: float | None = None,
        payload_bytes: int = 10,
    ) -> Request | Rejection:
        request = Request(
            request_id=self.next_request_id,
            rows=rows,
            payload_bytes=payload_bytes,
            signature=signature,
            arrived_s=self.now_s,
            priority=priority,
            deadline_s=self.now_s + deadline_in_s,
            timeout_s=timeout_s,
        )
        self.next_request_id += 1
        rejection = self.scheduler.on_arrival(model, request, self.now_s)
        if rejection is None:
            self.requests[request.request_id] = request
            self.model_of[request.request_id] = model
            self._check_bounds(model)
        self.turn()
        return request if rejection is None else rejection

    def cancel(self, request: Request) -> None:
        if request.request_id not in self.outcomes:
            self.outcomes[request.request_id] = "cancelled"
        actions = self.scheduler.on_cancel(self.model_of[request.request_id], request)
        self.perform(actions)
        self.turn()

    def start(self, replica_id: str, model: str) -> None:
        """Announce, join and become READY."""
        members = self.scheduler.members
        members.announce(replica_id, model, self.now_s)
        epoch = members.join(replica_id, self.now_s)
        assert epoch is not None
        assert members.ready(replica_id, self.now_s)
        self.players[replica_id] = Player(replica_id, epoch)
        self.turn()

    def exchange(
        self,
        replica_id: str,
        outcomes: Iterable[Outcome] = (),
        *,
        step: int = 1,
        want: bool = True,
    ) -> int:
        """The replica's next Exchange (`step` 1), a repeat (0) or an older one (-1)."""
        player = self.players[replica_id]
        self._calls += 1
        call_id = self._calls
        sequence = player.sequence + step
        if step >= 0:
            player.sequence = sequence
            player.call_id = call_id
        self.open_calls[call_id] = self.caller_of[call_id] = replica_id
        outcomes = list(outcomes)
        if step > 0:
            ended = {outcome.lease_id for outcome in outcomes}
            player.leases = [lease for lease in player.leases if lease.lease_id not in ended]
        exchange = Exchange(call_id, sequence, self.now_s)
        self.perform(
            self.scheduler.on_exchange(
                replica_id, player.epoch, exchange, outcomes, self.now_s, want=want
            )
        )
        self.turn()
        return call_id

    def lose_call(self, call_id: int) -> None:
        """The Exchange's connection broke while it waited."""
        replica_id = self.open_calls.pop(call_id)
        self._answered[call_id] += 1
        self.perform(self.scheduler.on_exchange_gone(replica_id, call_id, self.now_s))
        self.turn()

    def drain(self, replica_id: str) -> None:
        self.perform(self.scheduler.on_drain(replica_id, self.now_s, "drained"))
        self.turn()

    def close_life_line(self, replica_id: str) -> None:
        player = self.players.pop(replica_id)
        self.perform(self.scheduler.on_life_line_closed(replica_id, player.epoch, self.now_s))
        self.turn()

    def lose(self, replica_id: str, *, death: bool) -> None:
        self.players.pop(replica_id)
        self.perform(self.scheduler.on_lost(replica_id, self.now_s, "gone", death=death))
        self.turn()

    def advance(self, dt_s: float, *, silent: Iterable[str] = ()) -> None:
        """Time passes in ticks of at most 0.2 s; all but the silent replicas beat."""
        silent = set(silent)
        end_s = self.now_s + dt_s
        while True:
            self.now_s = min(end_s, self.now_s + 0.2)
            self.beat(silent)
            self.turn(tick=True)
            if self.now_s >= end_s:
                return

    def suspend(self, dt_s: float) -> None:
        """The machine slept: a gap without ticks, and nobody could beat."""
        self.now_s += dt_s
        self.turn(tick=True)

    def beat(self, silent: Iterable[str] = ()) -> None:
        for player in self.players.values():
            if player.replica_id not in silent:
                self.scheduler.members.beat(player.replica_id, player.epoch, self.now_s)

    def serve_all(self) -> None:
        """A good replica for each model answers everything that is left."""
        for number, model in enumerate(self.scheduler.models):
            replica_id = f"good{number}"
            self.start(replica_id, str(model))
        for _ in range(10_000):
            if all(self.scheduler.is_idle(key) for key in self.scheduler.models):
                return
            for replica_id in list(self.players):
                player = self.players.get(replica_id)
                if player is None:
                    continue
                record = self.scheduler.members.get(replica_id)
                done = [BatchDone(lease.lease_id, 0.01) for lease in player.leases[:1]]
                if record is not None and record.waiting is not None and not done:
                    continue
                # What was delivered to a replica that forgot it comes again by a repeat.
                forgot = record is not None and record.leases and not done
                self.exchange(replica_id, done, step=0 if forgot else 1)
            self.advance(0.05)
        raise AssertionError("a request is never served")

    # --- the dispatcher -------------------------------------------------------------------

    def turn(self, *, tick: bool = False) -> None:
        if tick or self.scheduler.next_wakeup_s() <= self.now_s:
            self.perform(self.scheduler.on_tick(self.now_s))
        self.perform(self.scheduler.assign(self.now_s))
        # A delivery that failed asks for another look, as the dispatcher's next turn would.
        self.perform(self.scheduler.assign(self.now_s))
        self.check()

    def perform(self, actions: Iterable[Action]) -> None:  # noqa: C901  one flat table
        for action in actions:
            self.log.append(action)
            match action:
                case Dispatch():
                    self._on_dispatch(action)
                case Complete():
                    self._on_complete(action)
                case Expire(request, late):
                    assert late or request.queue_deadline_s <= self.now_s
                    batch = self.scheduler.models[self.model_of[request.request_id]].settings.batch
                    assert not late or batch.on_late is OnLate.DROP
                    self._end(request, "expired")
                case Fail(request, cause, _):
                    self._end(request, cause.value)
                case AnswerEmpty(call_id, _, drain, _):
                    replica_id = self._answer(call_id)
                    player = self.players.get(replica_id)
                    if player is not None:
                        player.told_to_drain |= drain
                        if player.call_id == call_id:
                            player.call_id = None
                case RefuseCall(call_id, _):
                    self._answer(call_id)
                case SendDrain(replica_id):
                    record = self.scheduler.members.get(replica_id)
                    assert record is not None
                    assert record.state is ReplicaState.DRAINING
                case ReplicaLost(replica_id, _, attributed):
                    self.players.pop(replica_id, None)
                    self.deaths_laid_to_requests += attributed
                case ReplicaLeft(replica_id):
                    self.players.pop(replica_id, None)

    def _on_dispatch(self, action: Dispatch) -> None:
        lease = action.lease
        assert self._answer(action.call_id) == lease.replica_id
        record = self.scheduler.members.get(lease.replica_id)
        assert record is not None
        player = self.players[lease.replica_id]
        player.call_id = None
        repeated = lease.lease_id in self.lease_ids
        if not repeated:
            self.lease_ids.append(lease.lease_id)
            self._check_fresh_lease(lease)
        if self.fail_next_delivery:
            self.fail_next_delivery = False
            self.perform(
                self.scheduler.on_exchange_gone(lease.replica_id, action.call_id, self.now_s)
            )
            return
        if lease not in player.leases:
            player.leases.append(lease)

    def _check_fresh_lease(self, lease: Lease) -> None:
        """R3, R5, R6, R7."""
        record = self.scheduler.members.get(lease.replica_id)
        assert record is not None
        assert record.state is ReplicaState.READY, "R5: only READY replicas get leases"
        settings = self.scheduler.models[lease.model].settings.batch
        assert lease.rows == sum(request.rows for request in lease.requests)
        if settings.max_batch_rows == 0:
            assert len(lease.requests) == 1, "R3: no batch dimension"
        else:
            assert lease.rows <= settings.max_batch_rows, "R3: rows"
        assert len({request.signature for request in lease.requests}) == 1, "R3: signature"
        if len(lease.requests) > 1:
            total = sum(request.payload_bytes for request in lease.requests)
            assert total <= settings.max_lease_bytes, "15.10: lease bytes"
        assert len(record.leases) <= MAX_HELD_LEASES
        for request in lease.requests:
            assert not request.done, "R7: it has an outcome or was cancelled"
            assert request.request_id not in self.outcomes
            assert request.queue_deadline_s > self.now_s, "R7: expired"
            if request.suspect:
                assert lease.sole, "R6: a suspect runs alone"
        if lease.sole:
            assert len(lease.requests) == 1
            assert list(record.leases) == [lease.lease_id], "R6: beside nothing else"
        elif record.leases:
            first = next(iter(record.leases.values()))
            assert first is lease or not first.sole, "R6: nothing behind a suspect"

    def _on_complete(self, action: Complete) -> None:
        settings = self.scheduler.models[action.lease.model].settings
        first_rows = {}
        first_row = 0
        for request in action.lease.requests:
            first_rows[request.request_id] = first_row
            first_row += request.rows
        for request, at in action.answers:
            assert first_rows[request.request_id] == at, "R4: the caller's own rows"
            self._end(request, "answered")
            if settings.batch.preserve_ordering:
                earlier = [
                    other
                    for other in range(1, request.request_id)
                    if self.model_of.get(other) == self.model_of[request.request_id]
                ]
                assert all(other in self.outcomes for other in earlier), "answers out of order"

    def _end(self, request: Request, outcome: str) -> None:
        assert request.request_id not in self.outcomes, (
            f"R1: request {request.request_id} was {self.outcomes[request.request_id]}, "
            f"now {outcome}"
        )
        assert request.done
        self.outcomes[request.request_id] = outcome

    def _answer(self, call_id: int) -> str:
        self._answered[call_id] += 1
        assert self._answered[call_id] == 1, "one answer to one Exchange"
        return self.open_calls.pop(call_id)

    # --- invariants -----------------------------------------------------------------------

    def check(self) -> None:
        self._check_calls()
        for key in self.scheduler.models:
            self._check_model(key)
        self._check_liveness()

    def _check_calls(self) -> None:
        members = self.scheduler.members.all()
        waiting = {record.waiting.call_id for record in members if record.waiting is not None}
        assert waiting == set(self.open_calls), "an Exchange waits that the core does not know"
        lost = [record for record in members if record.state is ReplicaState.LOST]
        assert len(lost) <= MAX_LOST_RECORDS
        for record in members:
            assert len(record.leases) <= MAX_HELD_LEASES
            if record.state is ReplicaState.LOST:
                assert not record.leases
                assert record.waiting is None
                assert record.last_lease is None
            if record.waiting is not None:
                assert record.state is ReplicaState.READY

    def _check_model(self, key: Hashable) -> None:
        model = self.scheduler.models[key]
        queue = model.queue
        places: Counter[int] = Counter()
        queued = [*queue.suspects.values(), *queue.waiting()]
        for request in queued:
            assert not request.done
            assert request in queue
            assert (request.request_id in queue.suspects) == request.suspect
            places[request.request_id] += 1
        assert queue.requests == len(queued)
        assert queue.rows == sum(request.rows for request in queued)
        assert queue.payload_bytes == sum(request.payload_bytes for request in queued)
        leased = 0
        for record in self.scheduler.members.all():
            for lease in record.leases.values():
                if lease.model == key:
                    leased += len(lease.requests)
                    places.update(
                        request.request_id for request in lease.requests if not request.done
                    )
        assert model.leased_requests == leased
        held = 0 if model.ordering is None else model.ordering.held
        open_ids = [
            request_id
            for request_id in self.requests
            if self.model_of[request_id] == key and request_id not in self.outcomes
        ]
        missing = [request_id for request_id in open_ids if places[request_id] == 0]
        assert len(missing) == held, "R1: a request is nowhere"
        assert all(count == 1 for count in places.values()), "R1: a request is in two places"
        most = self._most_queued[key] = max(self._most_queued[key], queue.requests)
        assert len(queue._due) <= MIN_DUE_ENTRIES + 4 * most, "R2: due times"
        if model.ordering is not None:
            assert len(model.ordering) == len(open_ids)

    def _check_bounds(self, key: Hashable) -> None:
        """R2, right after an admission: what is put back later may pass the bounds."""
        model = self.scheduler.models[key]
        queue, bounds = model.queue, model.settings.queue
        held = 0 if model.ordering is None else model.ordering.held
        assert queue.requests + held <= bounds.max_requests, "R2: held answers"
        assert queue.requests <= bounds.max_requests, "R2: requests"
        assert queue.rows <= bounds.max_rows, "R2: rows"
        assert queue.payload_bytes <= bounds.max_bytes, "R2: bytes"

    def _check_liveness(self) -> None:
        wakeup_s = self.scheduler.next_wakeup_s()
        assert wakeup_s > self.now_s, "it would be woken again at once, for ever"
        for record in self.scheduler.members.all():
            idle = (
                record.state is ReplicaState.READY
                and record.waiting is not None
                and not record.leases
            )
            if idle and record.model is not None:
                queue = self.scheduler.models[record.model].queue
                assert not queue.suspects, "a suspect waits though a replica has empty hands"
                assert not queue.requests or wakeup_s < inf, "nobody will look at the queue again"


def kills(outcomes: dict[int, str]) -> list[int]:
    """Requests that failed for killing replicas."""
    return [
        id_ for id_, outcome in outcomes.items() if outcome == FailureCause.KILLS_REPLICAS.value
    ]
