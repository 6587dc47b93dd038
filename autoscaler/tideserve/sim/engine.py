"""The frontend's core and its replicas in virtual time: events from a heap, no clock, no IO.

The scheduler is `tideserve.server.core`'s own object, driven as the dispatcher drives it.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from math import inf
from typing import Final

import numpy as np
from numpy.typing import NDArray

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
from tideserve.server.core.settings import ModelSettings
from tideserve.sim.book import WAIT_BOUNDS_S, Book
from tideserve.sim.hardware import Hardware
from tideserve.sim.replica import SimReplica

BEAT_S: Final = 0.25
Handler = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests by their arrival, in seconds from 0. `deadline_s`: callers give up so long after
    it. `rows`: of each request; None: one."""

    arrived_s: NDArray[np.float64]
    duration_s: float
    deadline_s: float = inf
    rows: NDArray[np.int64] | None = None


@dataclass(slots=True, eq=False)
class _Numbers:
    calls: "count[int]" = field(default_factory=lambda: count(1))
    events: "count[int]" = field(default_factory=count)


class Engine:
    """Owns virtual time, the scheduler and the replicas of one model, `key`.

    `at(time_s, handler)` puts anything else into the same run: an autoscaler's looks.
    """

    def __init__(
        self,
        key: object,
        settings: ModelSettings,
        hardware: Hardware,
        workload: Workload,
        seed: int,
        assignment: Assignment | None = None,
    ) -> None:
        self.key = key
        self.now_s = 0.0
        self.scheduler = Scheduler(assignment=assignment)
        self.scheduler.add_model(key, settings)
        self.model = self.scheduler.models[key]
        self.hardware = hardware
        self.generator = np.random.default_rng(seed)
        self.replicas: dict[str, SimReplica] = {}
        self.book = Book(workload.arrived_s, workload.rows)
        self.arrivals = 0
        self.on_ended: Callable[[SimReplica], None] = _nobody
        self._workload = workload
        self._rows = None if workload.rows is None else workload.rows.tolist()
        self._numbers = _Numbers()
        self._asking: dict[int, SimReplica] = {}  # by the number of the open Exchange
        self._heap: list[tuple[float, int, Handler]] = []
        self._idle = 0

    def at(self, time_s: float, handler: Handler) -> None:
        """Runs `handler(time_s)` then."""
        heappush(self._heap, (time_s, next(self._numbers.events), handler))

    def run(self) -> Book:
        """Through all arrivals and for as long as anything that was admitted is not answered,
        at most for the workload's duration once more."""
        arrived_s = self._workload.arrived_s.tolist()
        self.at(BEAT_S, self._beat)
        total = len(arrived_s)
        duration_s = self._workload.duration_s
        while True:
            arrival_s = arrived_s[self.arrivals] if self.arrivals < total else inf
            wakeup_s = max(self.now_s, self.scheduler.next_wakeup_s())
            now_s = min(arrival_s, self._heap[0][0], wakeup_s)
            if now_s > duration_s and (
                self.scheduler.is_idle(self.key) or now_s > 2.0 * duration_s
            ):
                break
            self._pass_time(min(now_s, duration_s))
            self.now_s = now_s
            while self.arrivals < total and arrived_s[self.arrivals] <= now_s:
                self._arrive(self.arrivals, arrived_s[self.arrivals])
                self.arrivals += 1
            while self._heap[0][0] <= now_s:
                heappop(self._heap)[2](now_s)
            if self.model.queue.next_due_s() <= now_s:
                self._perform(self.model.expire_overdue(now_s))
            self._perform(self.scheduler.assign(now_s))
        self._settle(duration_s)
        return self.book

    # --- replicas' lives ------------------------------------------------------------------

    def launch(self, replica_id: str, device: str = "cpu") -> SimReplica:
        """From now on it is paid for."""
        self.book.starts += 1
        replica = self.replicas[replica_id] = SimReplica(replica_id, self.now_s, device)
        return replica

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
        self._idle += 1
        most = max(1, self.model.settings.batch.max_batch_rows)
        sizes = sorted({1, most} | {1 << power for power in range(most.bit_length())})
        mean_s = self.hardware.batch.mean_s
        self.model.learn_warm_up(
            replica.device, [(rows, mean_s(rows)) for rows in sizes if rows <= most]
        )
        life_s = self.hardware.draw_life_s(self.generator)
        if life_s < inf:
            self.at(self.now_s + life_s, lambda _: self._die(replica))
        self._ask(replica, ())

    def end(self, replica: SimReplica, cause: str) -> None:
        """Its process is gone."""
        if replica.over:
            return
        if replica.ready and not replica.held:
            self._idle -= 1
        replica.over = cause
        replica.held.clear()
        last_s = min(self.now_s, self._workload.duration_s)
        self.book.replica_s += max(0.0, last_s - min(replica.launched_s, last_s))
        self.on_ended(replica)

    def perform(self, actions: Iterable[Action]) -> None:
        """Carries out what the core decided for somebody else's call."""
        self._perform(actions)

    def _die(self, replica: SimReplica) -> None:
        if replica.over:
            return
        self.book.deaths += 1
        self.end(replica, "it died")
        self._perform(
            self.scheduler.on_life_line_closed(replica.replica_id, replica.epoch, self.now_s)
        )

    # --- events ---------------------------------------------------------------------------

    def _arrive(self, number: int, arrived_s: float) -> None:
        rows = 1 if self._rows is None else self._rows[number]
        request = Request(number, rows, 1, "", arrived_s, 0, arrived_s + self._workload.deadline_s)
        if self.scheduler.on_arrival(self.key, request, arrived_s) is not None:
            self.book.rejected += 1

    def _beat(self, now_s: float) -> None:
        members = self.scheduler.members
        for replica in self.replicas.values():
            if replica.epoch and not replica.over:
                members.beat(replica.replica_id, replica.epoch, now_s)
        self._perform(self.scheduler.on_tick(now_s))
        self.at(now_s + BEAT_S, self._beat)

    def _compute(self, replica: SimReplica) -> None:
        replica.started_s = self.now_s
        time_s = self.hardware.batch.draw_s(replica.held[0].rows, self.generator)
        self.at(self.now_s + time_s, lambda _: self._computed(replica, time_s))

    def _computed(self, replica: SimReplica, time_s: float) -> None:
        if replica.over:
            return
        lease = replica.held.popleft()
        replica.busy_s += time_s
        self.book.batches += 1
        self.book.rows += lease.rows
        if replica.held:
            self._compute(replica)
        else:
            self._idle += 1
        self._ask(replica, (BatchDone(lease.lease_id, time_s),))

    def _ask(self, replica: SimReplica, outcomes: tuple[BatchDone, ...]) -> None:
        replica.sequence += 1
        sequence = replica.sequence
        self._through_link(lambda: self._asked(replica, sequence, outcomes))

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

    def _through_link(self, arrives: Callable[[], None]) -> None:
        """What one end sent is there a little later."""
        link_s = self.hardware.link_s
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
                case Complete(_, answers):
                    self._complete(answers)
                case Dispatch(call_id, _, lease):
                    del self._asking[call_id]
                    replica = self.replicas[lease.replica_id]
                    self._through_link(partial(self._deliver, replica, lease))
                case Expire():
                    self.book.expired += 1
                case Fail():
                    self.book.failed += 1
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
            self._idle -= 1
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

    def _complete(self, answers: list[tuple[Request, int]]) -> None:
        book = self.book
        for request, _ in answers:
            book.finished_s[request.request_id] = self.now_s
            wait_s = request.first_leased_s - request.arrived_s
            book.wait_counts[bisect_left(WAIT_BOUNDS_S, wait_s)] += 1
        book.succeeded += len(answers)

    # --- time -----------------------------------------------------------------------------

    def _pass_time(self, now_s: float) -> None:
        span_s = now_s - self.now_s
        if span_s > 0.0:
            idle = self.book.idle_at_least
            idle[self._idle] = idle.get(self._idle, 0.0) + span_s

    def _settle(self, duration_s: float) -> None:
        """Those that still run are paid for until the end."""
        for replica in self.replicas.values():
            if not replica.over:
                self.book.replica_s += max(0.0, duration_s - replica.launched_s)
        idle = self.book.idle_at_least
        most = max(idle, default=0)
        self.book.idle_at_least = {
            least: sum(seconds for so_many, seconds in idle.items() if so_many >= least)
            for least in range(1, most + 1)
        }


def _nobody(_: SimReplica) -> None:
    """Nobody wants to hear of it."""
