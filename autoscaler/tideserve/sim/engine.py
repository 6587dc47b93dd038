"""The frontend's core and its replicas in virtual time: events from a heap, no clock, no IO.

One model or several, which share the scheduler and the time; what one machine's models do to each
other's batch times is not simulated.

The scheduler is `tideserve.server.core`'s own object, driven as the dispatcher drives it.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import accumulate, count
from math import inf
from typing import Final

import numpy as np

from tideserve.server.core.actions import (
    Action,
    AnswerEmpty,
    Complete,
    Dispatch,
    Expire,
    Fail,
    RefuseCall,
    ReplicaLeft,
    ReplicaLost,
    SendDrain,
)
from tideserve.server.core.assignment import Assignment
from tideserve.server.core.leases import Lease
from tideserve.server.core.outcomes import BatchDone
from tideserve.server.core.replicas import Exchange
from tideserve.server.core.request import Request
from tideserve.server.core.scheduler import Scheduler
from tideserve.sim.book import WAIT_BOUNDS_S, Book
from tideserve.sim.replica import SimReplica
from tideserve.sim.served import Served

BEAT_S: Final = 0.25
Handler = Callable[[float], None]


@dataclass(slots=True)
class Spare:
    """What standbys cost before they were given a model."""

    replica_s: float = 0.0
    starts: int = 0


@dataclass(slots=True, eq=False)
class _Numbers:
    calls: "count[int]" = field(default_factory=lambda: count(1))
    events: "count[int]" = field(default_factory=count)


class Engine:
    """Owns virtual time, the scheduler and the replicas of all models in the run, `served` by key.

    `at(time_s, handler)` puts anything else into the same run: an autoscaler's looks.
    """

    def __init__(
        self, served: Sequence[Served], seed: int, assignment: Assignment | None = None
    ) -> None:
        self.now_s = 0.0
        self.scheduler = Scheduler(assignment=assignment)
        self.generator = np.random.default_rng(seed)
        self.replicas: dict[str, SimReplica] = {}
        self.served = {one.key: one for one in served}
        self.spare = Spare()
        self.duration_s = max(one.workload.duration_s for one in served)
        self.on_ended: Callable[[SimReplica], None] = _nobody
        self._all = list(served)
        sizes = [one.workload.arrived_s.size for one in served]
        self._first_ids = list(accumulate(sizes[:-1], initial=0))
        for one, first_id in zip(served, self._first_ids, strict=True):
            self.scheduler.add_model(one.key, one.settings)
            one.first_id = first_id
        self._queues = [model.queue for model in self.scheduler.models.values()]
        self._numbers = _Numbers()
        self._asking: dict[int, SimReplica] = {}  # by the number of the open Exchange
        self._heap: list[tuple[float, int, Handler]] = []

    def at(self, time_s: float, handler: Handler) -> None:
        """Runs `handler(time_s)` then."""
        heappush(self._heap, (time_s, next(self._numbers.events), handler))

    def run(self) -> None:
        """Through all arrivals and for as long as anything that was admitted is not answered,
        at most for the run's duration once more. The books have the outcome."""
        times_s = np.concatenate([one.workload.arrived_s for one in self._all])
        # At the same time, the model that was named first goes first.
        order = np.argsort(times_s, kind="stable")
        arrived_s, request_ids = times_s[order].tolist(), order.tolist()
        self.at(BEAT_S, self._beat)
        came, total = 0, len(arrived_s)
        duration_s = self.duration_s
        while True:
            arrival_s = arrived_s[came] if came < total else inf
            wakeup_s = max(self.now_s, self.scheduler.next_wakeup_s())
            now_s = min(arrival_s, self._heap[0][0], wakeup_s)
            if now_s > duration_s and (
                now_s > 2.0 * duration_s or all(map(self.scheduler.is_idle, self.served))
            ):
                break
            self._pass_time(min(now_s, duration_s))
            self.now_s = now_s
            while came < total and arrived_s[came] <= now_s:
                self._arrive(request_ids[came], arrived_s[came])
                came += 1
            while self._heap[0][0] <= now_s:
                heappop(self._heap)[2](now_s)
            for queue in self._queues:
                if queue.next_due_s() <= now_s:
                    self._expire(now_s)
                    break
            self._perform(self.scheduler.assign(now_s))
        self._settle(duration_s)

    # --- replicas' lives ------------------------------------------------------------------

    def launch(self, replica_id: str, key: Hashable | None, device: str = "cpu") -> SimReplica:
        """From now on it is paid for, by the model `key`. None: a standby."""
        self._payer(key).starts += 1
        replica = SimReplica(replica_id, self.now_s, device, key)
        self.replicas[replica_id] = replica
        return replica

    def begin(self, replica_id: str, key: Hashable, device: str = "cpu") -> SimReplica:
        """One that is READY at once."""
        self.scheduler.members.announce(replica_id, key, self.now_s)
        replica = self.launch(replica_id, key, device)
        if self.join(replica):
            self.ready(replica)
        return replica

    def give(self, replica: SimReplica, key: Hashable) -> None:
        """A standby is this model's from now on."""
        self.spare.replica_s += self.now_s - replica.launched_s
        replica.launched_s, replica.key = self.now_s, key

    def join(self, replica: SimReplica) -> bool:
        """Its life line opens; False: the frontend does not want it any more."""
        epoch = self.scheduler.members.join(replica.replica_id, self.now_s, replica.device)
        if replica.over or epoch is None:
            self.end(replica, "it was turned away")
            return False
        replica.epoch = epoch
        return True

    def ready(self, replica: SimReplica) -> None:
        """Its model is loaded and warm."""
        if replica.over or not self.scheduler.members.ready(replica.replica_id, self.now_s):
            return
        replica.ready = True
        served = self.served[replica.key]
        served.idle += 1
        most = max(1, served.settings.batch.max_batch_rows)
        sizes = sorted({1, most} | {1 << power for power in range(most.bit_length())})
        mean_s = served.hardware.batch.mean_s
        self.scheduler.models[served.key].learn_warm_up(
            replica.device, [(rows, mean_s(rows)) for rows in sizes if rows <= most]
        )
        life_s = served.hardware.draw_life_s(self.generator)
        if life_s < inf:
            self.at(self.now_s + life_s, lambda _: self._die(replica))
        self._ask(replica, ())

    def end(self, replica: SimReplica, cause: str) -> None:
        """Its process is gone."""
        if replica.over:
            return
        if replica.ready and not replica.held:
            self.served[replica.key].idle -= 1
        replica.over = cause
        replica.held.clear()
        last_s = min(self.now_s, self.duration_s)
        self._payer(replica.key).replica_s += max(0.0, last_s - min(replica.launched_s, last_s))
        self.on_ended(replica)

    def perform(self, actions: Iterable[Action]) -> None:
        """Carries out what the core decided for somebody else's call."""
        self._perform(actions)

    def _die(self, replica: SimReplica) -> None:
        if replica.over:
            return
        self.served[replica.key].book.deaths += 1
        self.end(replica, "it died")
        self._perform(
            self.scheduler.on_life_line_closed(replica.replica_id, replica.epoch, self.now_s)
        )

    # --- events ---------------------------------------------------------------------------

    def _arrive(self, request_id: int, arrived_s: float) -> None:
        served = self._served(request_id)
        request = served.request(request_id, arrived_s)
        if self.scheduler.on_arrival(served.key, request, arrived_s) is not None:
            served.book.rejected += 1

    def _expire(self, now_s: float) -> None:
        for model in self.scheduler.models.values():
            self._perform(model.expire_overdue(now_s))

    def _beat(self, now_s: float) -> None:
        members = self.scheduler.members
        for replica in self.replicas.values():
            if replica.epoch and not replica.over:
                members.beat(replica.replica_id, replica.epoch, now_s)
        self._perform(self.scheduler.on_tick(now_s))
        self.at(now_s + BEAT_S, self._beat)

    def _compute(self, replica: SimReplica) -> None:
        replica.started_s = self.now_s
        lease = replica.held[0]
        hardware = self.served[lease.model].hardware
        time_s = hardware.draw_batch_s(lease.rows, lease.row_cost, self.generator)
        self.at(self.now_s + time_s, lambda _: self._computed(replica, time_s))

    def _computed(self, replica: SimReplica, time_s: float) -> None:
        if replica.over:
            return
        lease = replica.held.popleft()
        replica.busy_s += time_s
        served = self.served[lease.model]
        served.book.batches += 1
        served.book.rows += lease.rows
        if replica.held:
            self._compute(replica)
        else:
            served.idle += 1
        self._ask(replica, (BatchDone(lease.lease_id, time_s),))

    def _ask(self, replica: SimReplica, outcomes: tuple[BatchDone, ...]) -> None:
        replica.sequence += 1
        sequence = replica.sequence
        self._through_link(replica, lambda: self._asked(replica, sequence, outcomes))

    def _asked(self, replica: SimReplica, sequence: int, outcomes: tuple[BatchDone, ...]) -> None:
        if replica.over:
            return
        exchange = Exchange(next(self._numbers.calls), sequence, self.now_s)
        self._asking[exchange.call_id] = replica
        self._perform(
            self.scheduler.on_exchange(
                replica.replica_id, replica.epoch, exchange, outcomes, self.now_s, want=True
            )
        )
        if replica.draining:
            self._leave_idle(replica)

    def _through_link(self, replica: SimReplica, arrives: Callable[[], None]) -> None:
        """What one end sent is there a little later."""
        link_s = self.served[replica.key].hardware.link_s
        if link_s > 0.0:
            self.at(self.now_s + link_s, lambda _: arrives())
        else:
            arrives()

    def _leave_idle(self, replica: SimReplica) -> None:
        """It goes once neither it nor the way to it or from it has anything of a lease."""
        member = self.scheduler.members.get(replica.replica_id)
        if member is None or not member.leases:
            self._leave(replica)

    def _leave(self, replica: SimReplica) -> None:
        if replica.over:
            return
        self.end(replica, "exit code 0")
        self._perform(
            self.scheduler.on_life_line_closed(replica.replica_id, replica.epoch, self.now_s)
        )

    # --- actions --------------------------------------------------------------------------

    def _perform(self, actions: Iterable[Action]) -> None:
        for action in actions:
            match action:
                case Complete(lease, answers):
                    self._complete(self.served[lease.model], answers)
                case Dispatch(call_id, _, lease):
                    del self._asking[call_id]
                    replica = self.replicas[lease.replica_id]
                    self._through_link(replica, partial(self._deliver, replica, lease))
                case Expire(request):
                    self._served(request.request_id).book.expired += 1
                case Fail(request):
                    self._served(request.request_id).book.failed += 1
                case SendDrain(replica_id):
                    self._drain(self.replicas[replica_id])
                case ReplicaLost(replica_id):
                    self.end(self.replicas[replica_id], "it was lost")
                case AnswerEmpty(call_id):
                    self._answer_empty(self._asking.pop(call_id))
                case RefuseCall(call_id):
                    del self._asking[call_id]
                case ReplicaLeft():
                    pass

    def _deliver(self, replica: SimReplica, lease: Lease) -> None:
        if replica.over:
            return
        replica.held.append(lease)
        if len(replica.held) == 1:
            self.served[replica.key].idle -= 1
            self._compute(replica)
            self._ask(replica, ())

    def _answer_empty(self, replica: SimReplica) -> None:
        """After a while without work it asks again, unless it has done so already or leaves."""
        if replica in self._asking.values() or replica.over or replica.draining:
            return
        self._ask(replica, ())

    def _drain(self, replica: SimReplica) -> None:
        replica.draining = True
        self._leave_idle(replica)

    def _complete(self, served: Served, answers: list[tuple[Request, int]]) -> None:
        book, first_id = served.book, served.first_id
        for request, _ in answers:
            book.finished_s[request.request_id - first_id] = self.now_s
            wait_s = request.first_leased_s - request.arrived_s
            book.wait_counts[bisect_left(WAIT_BOUNDS_S, wait_s)] += 1
        book.succeeded += len(answers)

    # --- time -----------------------------------------------------------------------------

    def _pass_time(self, now_s: float) -> None:
        span_s = now_s - self.now_s
        if span_s > 0.0:
            for served in self._all:
                served.pass_idle(span_s)

    def _settle(self, duration_s: float) -> None:
        """Those that still run are paid for until the end."""
        for replica in self.replicas.values():
            if not replica.over:
                self._payer(replica.key).replica_s += max(0.0, duration_s - replica.launched_s)
        for served in self._all:
            served.settle()

    def _served(self, request_id: int) -> Served:
        return self._all[bisect_right(self._first_ids, request_id) - 1]

    def _payer(self, key: Hashable | None) -> Book | Spare:
        return self.spare if key is None else self.served[key].book


def _nobody(_: SimReplica) -> None:
    """Nobody wants to hear of it."""
