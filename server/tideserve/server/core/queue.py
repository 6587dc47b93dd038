"""One model version's queue: bounded, by priority level, first come first served (R2)."""

from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

from tideserve.server.core.actions import Rejection, RejectReason
from tideserve.server.core.request import Request
from tideserve.server.core.settings import QueuePolicy, QueueSettings, TimeoutAction

# Due times kept beyond four for each request that waits, before the list is made anew.
MIN_DUE_ENTRIES: Final = 64


class _ByArrival:
    """First come first served."""

    __slots__ = ("_requests",)

    def __init__(self) -> None:
        self._requests: OrderedDict[int, Request] = OrderedDict()

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())

    def add(self, request: Request) -> None:
        self._requests[request.request_id] = request

    def put_back(self, request: Request) -> None:
        self.add(request)
        self._requests.move_to_end(request.request_id, last=False)

    def discard(self, request: Request) -> bool:
        return self._requests.pop(request.request_id, None) is not None


class _ByDue:
    """What is due first is served first. An arrival is mostly due last, and who is served was
    due first, so both ends of the list are where it changes."""

    __slots__ = ("_requests",)

    def __init__(self) -> None:
        self._requests: list[tuple[float, int, Request]] = []

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return (request for _, _, request in self._requests)

    def add(self, request: Request) -> None:
        insort(self._requests, (request.due_s, request.request_id, request))

    def put_back(self, request: Request) -> None:
        self.add(request)

    def discard(self, request: Request) -> bool:
        at = bisect_left(self._requests, (request.due_s, request.request_id))
        if at == len(self._requests) or self._requests[at][2] is not request:
            return False
        del self._requests[at]
        return True


class _Level:
    """One priority: those in time, then those that are late or that the queue policy delayed."""

    __slots__ = ("delayed", "on_time")

    def __init__(self, by_due: bool) -> None:
        self.on_time: _ByDue | _ByArrival = _ByDue() if by_due else _ByArrival()
        self.delayed = _ByArrival()

    def __len__(self) -> int:
        return len(self.on_time) + len(self.delayed)


class ModelQueue:
    """Owns the requests that wait. `target_s`: the latency target, if there is one. Order of service: suspects (R6), then the levels from 1,
    each in order of arrival with what was returned from a replica in front; with a latency
    target each by what is due first, and all that are late behind all that are in time."""

    def __init__(self, settings: QueueSettings, target_s: float | None = None) -> None:
        self.settings = settings
        self._target_s = target_s
        self.requests = 0
        self.rows = 0
        self.payload_bytes = 0
        self.suspects: OrderedDict[int, Request] = OrderedDict()
        self._waiting: dict[int, Request] = {}
        self._levels = [
            _Level(target_s is not None) for _ in range(max(1, settings.priority_levels))
        ]
        self._policies = [settings.policy(level) for level in range(1, len(self._levels) + 1)]
        # (due, request id) by due. Ids, so that a stale entry keeps no tensors alive.
        self._due: list[tuple[float, int]] = []

    def admit(self, request: Request, now_s: float) -> RejectReason | None:
        """Puts the request in its place, or says which bound stands in the way."""
        settings = self.settings
        level_number = self._level_of(request)
        policy = self._policies[level_number - 1]
        self._set_times(request, policy)
        if request.queue_deadline_s <= now_s:
            return RejectReason.EXPIRED
        if self.requests >= settings.max_requests:
            return RejectReason.QUEUE_REQUESTS
        if self.rows + request.rows > settings.max_rows:
            return RejectReason.QUEUE_ROWS
        if self.payload_bytes + request.payload_bytes > settings.max_bytes:
            return RejectReason.QUEUE_BYTES
        level = self._levels[level_number - 1]
        if policy.max_queue_requests is not None and len(level) >= policy.max_queue_requests:
            return RejectReason.PRIORITY_QUEUE
        request.priority = level_number
        level.on_time.add(request)
        self._enter(request)
        return None

    def limit(self, reason: RejectReason, request: Request) -> int:
        """The bound behind a rejection, for its message."""
        match reason:
            case RejectReason.QUEUE_REQUESTS:
                return self.settings.max_requests
            case RejectReason.QUEUE_ROWS:
                return self.settings.max_rows
            case RejectReason.QUEUE_BYTES:
                return self.settings.max_bytes
            case RejectReason.PRIORITY_QUEUE:
                return self.settings.policy(self._level_of(request)).max_queue_requests or 0
            case RejectReason.EXPIRED | RejectReason.HOPELESS:
                return 0

    def reject(self, request: Request, reason: RejectReason, retry_after_s: float) -> Rejection:
        """The rejection as a value."""
        return Rejection(reason, self.limit(reason, request), retry_after_s)

    def put_back(self, requests: tuple[Request, ...]) -> None:
        """Returns what a replica did not answer to the head, in the order it had. Bounds do
        not apply: it was admitted already (R1)."""
        for request in reversed(requests):
            if request.suspect:
                self.suspects[request.request_id] = request
                self.suspects.move_to_end(request.request_id, last=False)
            else:
                self._levels[request.priority - 1].on_time.put_back(request)
            self._enter(request)

    def take(self, request: Request) -> None:
        """Removes a request that waits."""
        request_id = request.request_id
        del self._waiting[request_id]
        self.requests -= 1
        self.rows -= request.rows
        self.payload_bytes -= request.payload_bytes
        level = self._levels[request.priority - 1]
        if not (level.on_time.discard(request) or level.delayed.discard(request)):
            del self.suspects[request_id]

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._waiting

    def waiting(self) -> Iterator[Request]:
        """Those that may share batches, in order of service (suspects are apart)."""
        for level in self._levels:
            yield from level.on_time
            yield from level.delayed

    def on_time(self) -> Iterator[Request]:
        """Those of all levels that are neither late nor delayed, in order of service."""
        for level in self._levels:
            yield from level.on_time

    def late(self) -> Iterator[Request]:
        """The others of all levels."""
        for level in self._levels:
            yield from level.delayed

    def be_late(self, request: Request) -> None:
        """It cannot be in time any more: it is served behind all that can."""
        level = self._levels[request.priority - 1]
        if level.on_time.discard(request):
            level.delayed.add(request)

    def overdue(self, now_s: float) -> list[Request]:
        """Removes and returns the expired (R7), and moves the delayed behind their level."""
        expired: list[Request] = []
        while self._due and self._due[0][0] <= now_s:
            request = self._waiting.get(heappop(self._due)[1])
            if request is None:
                continue
            if request.queue_deadline_s <= now_s:
                self.take(request)
                expired.append(request)
            elif request.delay_at_s <= now_s:
                self._delay(request)
        return expired

    def next_due_s(self) -> float:
        """When `overdue` next has something to do."""
        while self._due and self._due[0][1] not in self._waiting:
            heappop(self._due)
        return self._due[0][0] if self._due else inf

    def oldest_arrival_s(self) -> float | None:
        """Arrival of the oldest request that waits."""
        heads = [
            next(iter(place)).arrived_s
            for level in self._levels
            for place in (level.on_time, level.delayed)
            if place
        ]
        heads += [request.arrived_s for request in self.suspects.values()]
        return min(heads, default=None)

    def drain(self) -> list[Request]:
        """Removes and returns everything."""
        everything = [*self.suspects.values(), *self.waiting()]
        for request in everything:
            self.take(request)
        self._due.clear()
        return everything

    def _level_of(self, request: Request) -> int:
        """Unset and out-of-range priorities get the default (the service refuses the latter)."""
        if 1 <= request.priority <= len(self._levels):
            return request.priority
        return self.settings.default_priority

    def _set_times(self, request: Request, policy: QueuePolicy) -> None:
        timeout_s = policy.timeout_s
        if request.timeout_s is not None and policy.allow_timeout_override:
            # The caller may shorten the policy's wait, or set one where there is none.
            timeout_s = (
                request.timeout_s if timeout_s is None else min(timeout_s, request.timeout_s)
            )
        request.queue_deadline_s = request.deadline_s
        if timeout_s is not None:
            due_s = request.arrived_s + timeout_s
            if policy.timeout_action is TimeoutAction.DELAY:
                request.delay_at_s = due_s
            else:
                request.queue_deadline_s = min(due_s, request.deadline_s)
        if self._target_s is not None:
            request.due_s = min(request.queue_deadline_s, request.arrived_s + self._target_s)

    def _delay(self, request: Request) -> None:
        request.delay_at_s = inf
        self.be_late(request)
        self._watch(request)

    def _enter(self, request: Request) -> None:
        self._waiting[request.request_id] = request
        self.requests += 1
        self.rows += request.rows
        self.payload_bytes += request.payload_bytes
        self._watch(request)

    def _watch(self, request: Request) -> None:
        if request.queue_deadline_s == request.delay_at_s == inf:
            return
        due_s = min(request.queue_deadline_s, request.delay_at_s)
        heappush(self._due, (due_s, request.request_id))
        if len(self._due) > MIN_DUE_ENTRIES + 4 * self.requests:
            self._compact()

    def _compact(self) -> None:
        """Forgets the due times of those that no longer wait, so that the list is bounded by
        the queue (R2) however long deadlines are."""
        due = (
            (min(request.queue_deadline_s, request.delay_at_s), request_id)
            for request_id, request in self._waiting.items()
        )
        self._due = [entry for entry in due if entry[0] != inf]
        heapify(self._due)
