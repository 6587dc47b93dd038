"""The core's part of one model version, and how its requests end (R1)."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Final

from tideserve.server.core.actions import (
    Action,
    Complete,
    Expire,
    Fail,
    FailureCause,
    RejectReason,
)
from tideserve.server.core.arrivals import ArrivalRate
from tideserve.server.core.leases import Lease
from tideserve.server.core.ordering import OrderKeeper
from tideserve.server.core.profile import Profile
from tideserve.server.core.profiles import Profiles
from tideserve.server.core.queue import ModelQueue
from tideserve.server.core.request import Request
from tideserve.server.core.rolling import Rolling
from tideserve.server.core.settings import BatchingMode, ModelSettings, OnLate

# Between a batch's time at the replica and its time as seen from here: the link, both ways, and
# the loop. As long as little is measured, a guess.
UNLEARNED_MARGIN_S: Final = 0.002
MARGIN_QUANTILE: Final = 0.95
_MARGIN_WINDOW: Final = 64
_MARGIN_LEAST: Final = 8
MIN_RETRY_AFTER_S: Final = 0.01
MAX_RETRY_AFTER_S: Final = 5.0
UNLEARNED_LATENCY_S: Final = 0.1


@dataclass(slots=True, eq=False)
class Model:
    """One (model, version, generation): its queue, what it learned, and when to look at it
    again (`decide_at_s`: any time up to now means at the next `assign`).

    A request ends by exactly one of these methods; each sets `done` and returns what to tell.
    """

    settings: ModelSettings
    queue: ModelQueue
    ordering: OrderKeeper | None
    profiles: Profiles
    overhead_s: Rolling = field(default_factory=lambda: Rolling(_MARGIN_WINDOW))
    arrivals: ArrivalRate = field(default_factory=ArrivalRate)
    leased_requests: int = 0
    decide_at_s: float = inf
    deaf_until_s: float = -inf
    """Until then an arrival changes nothing: all replicas compute, and it is too early to decide
    what they get next."""
    earliest_free_s: float = -inf
    """When the first replica can begin something new, as of the last decision in mode SLO."""

    @property
    def profile(self) -> Profile:
        """l(b) over all devices and lengths."""
        return self.profiles.every

    def admit(self, request: Request, now_s: float) -> RejectReason | None:
        """Queues a request, or says which bound stands in the way (R2). Answers that are held
        for the order's sake count as waiting."""
        in_time = self.settings.batch.mode is BatchingMode.SLO
        if in_time:
            self.arrivals.add(request.rows, now_s)
        if self.ordering is not None:
            held, queue = self.ordering, self.queue
            if held.held and held.held + queue.requests >= queue.settings.max_requests:
                return RejectReason.QUEUE_REQUESTS
            waiting_bytes = held.held_bytes + queue.payload_bytes + request.payload_bytes
            if held.held and waiting_bytes > queue.settings.max_bytes:
                return RejectReason.QUEUE_BYTES
        if in_time and self._is_hopeless(request, now_s):
            return RejectReason.HOPELESS
        reason = self.queue.admit(request, now_s)
        if reason is None:
            if self.ordering is not None:
                self.ordering.expect(request)
            if now_s >= self.deaf_until_s:
                self.decide_at_s = now_s
        return reason

    def learn(self, lease: Lease, device: str, latency_s: float, now_s: float) -> None:
        """A batch took so long at its replica."""
        self.profiles.observe(device, lease.row_cost, lease.rows, latency_s)
        if self.settings.batch.mode is not BatchingMode.SLO:
            return
        # Of one that was prefetched the way to the replica is not in it; when that makes the
        # margin too short nothing is prefetched in time any more, and it is measured again.
        self.overhead_s.add(max(0.0, now_s - lease.started_s - latency_s))

    def learn_warm_up(self, device: str, points: Iterable[tuple[int, float]]) -> None:
        """(rows, seconds) of a replica's own batches before it was READY: better than nothing,
        and only that."""
        self.profiles.observe_first(device, points)

    def margin_s(self) -> float:
        """What an answer needs beside its batch's time: measured."""
        if len(self.overhead_s) < _MARGIN_LEAST:
            return UNLEARNED_MARGIN_S
        return self.overhead_s.quantile(MARGIN_QUANTILE)

    def be_late(self, requests: Iterable[Request]) -> list[Action]:
        """These can meet the latency target no more: they wait behind the others, or expire."""
        actions: list[Action] = []
        for request in requests:
            if self.settings.batch.on_late is OnLate.SERVE:
                self.queue.be_late(request)
                continue
            self.queue.take(request)
            request.done = True
            actions.append(Expire(request, late=True))
            actions += self._released(request)
        return actions

    def complete(self, lease: Lease) -> list[Action]:
        """The lease's outputs came: each caller gets its rows (R4)."""
        answers: list[tuple[Request, int]] = []
        first_row = 0
        for request in lease.requests:
            if not request.done:
                answers.append((request, first_row))
            first_row += request.rows
        if self.ordering is not None:
            return [*self.ordering.complete(lease, answers)]
        for request, _ in answers:
            request.done = True
        # As Complete(...) does, in a fifth of its time.
        return [tuple.__new__(Complete, (lease, answers))]

    def fail(self, requests: Iterable[Request], cause: FailureCause, detail: str) -> list[Action]:
        """Those of `requests` without an outcome end with an error."""
        actions: list[Action] = []
        for request in requests:
            if not request.done:
                request.done = True
                actions.append(Fail(request, cause, detail))
                actions += self._released(request)
        return actions

    def expire(self, request: Request) -> list[Action]:
        """Its deadline passed while no replica had it."""
        request.done = True
        return [Expire(request), *self._released(request)]

    def expire_overdue(self, now_s: float) -> list[Action]:
        """Everything that waited too long (R7)."""
        if self.queue.next_due_s() > now_s:
            return []
        actions: list[Action] = []
        for request in self.queue.overdue(now_s):
            actions += self.expire(request)
        # Who left may have been what the others waited for.
        self.decide_at_s = now_s
        return actions

    def cancel(self, request: Request) -> list[Action]:
        """Its caller is gone: nothing is told of it, and a batch that has it drops its rows."""
        if request.done:
            return []
        request.done = True
        if request in self.queue:
            self.queue.take(request)
            self.decide_at_s = -inf
        return [*self._released(request)]

    def retry_after_s(self, ready_replicas: int) -> float:
        """About how long the queue ahead takes to clear."""
        batch_rows = max(1, self.settings.batch.max_batch_rows)
        latency_s = self.profile.latency_s(batch_rows) or UNLEARNED_LATENCY_S
        estimate_s = self.queue.rows / batch_rows * latency_s / max(1, ready_replicas)
        return min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, estimate_s))

    def _is_hopeless(self, request: Request, now_s: float) -> bool:
        """Even if it went first, no replica could answer it in time."""
        settings = self.settings.batch
        due_s = request.deadline_s
        if self.earliest_free_s <= now_s or (due_s == inf and settings.on_late is OnLate.SERVE):
            return False
        latency_s = self.profiles.least_s(request.row_cost, max(1, request.rows))
        if latency_s is None:
            return False
        if settings.on_late is OnLate.DROP and settings.target_s is not None:
            # A target that one row alone cannot meet turns nobody away.
            least_s = max(settings.target_s, latency_s)
            due_s = min(due_s, request.arrived_s + least_s)
        return self.earliest_free_s + latency_s > due_s

    def _released(self, request: Request) -> list[Complete]:
        """Answers that waited for this request's to go out first."""
        return [] if self.ordering is None else self.ordering.skip(request)
