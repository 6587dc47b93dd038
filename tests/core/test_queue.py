"""ModelQueue: bounds (R2), order of service, timeouts."""

from itertools import count
from math import inf

import pytest

from tideserve.server.core.actions import RejectReason
from tideserve.server.core.queue import MIN_DUE_ENTRIES, ModelQueue
from tideserve.server.core.request import Request
from tideserve.server.core.settings import QueuePolicy, QueueSettings, TimeoutAction

_ids = count(1)


def make(
    rows: int = 1,
    payload_bytes: int = 1,
    *,
    arrived_s: float = 0.0,
    priority: int = 0,
    deadline_s: float = inf,
    timeout_s: float | None = None,
) -> Request:
    return Request(next(_ids), rows, payload_bytes, "a", arrived_s, priority, deadline_s, timeout_s)


@pytest.mark.parametrize(
    ("settings", "reason", "limit"),
    [
        (QueueSettings(max_requests=2), RejectReason.QUEUE_REQUESTS, 2),
        (QueueSettings(max_rows=7), RejectReason.QUEUE_ROWS, 7),
        (QueueSettings(max_bytes=25), RejectReason.QUEUE_BYTES, 25),
        (
            QueueSettings(default_policy=QueuePolicy(max_queue_requests=2)),
            RejectReason.PRIORITY_QUEUE,
            2,
        ),
    ],
)
def test_what_would_pass_a_bound_is_rejected_and_changes_nothing(
    settings: QueueSettings, reason: RejectReason, limit: int
) -> None:
    queue = ModelQueue(settings)
    waiting = [make(3, 10), make(3, 10)]
    assert [queue.admit(request, 0.0) for request in waiting] == [None, None]
    late = make(3, 10)
    assert queue.admit(late, 0.0) is reason
    assert queue.limit(reason, late) == limit
    assert list(queue.waiting()) == waiting
    assert (queue.requests, queue.rows, queue.payload_bytes) == (2, 6, 20)
    queue.take(waiting[0])
    assert queue.admit(make(3, 10), 0.0) is None


def test_a_level_has_its_own_bound() -> None:
    queue = ModelQueue(
        QueueSettings(
            priority_levels=2,
            priority_policies=((1, QueuePolicy(max_queue_requests=1)),),
        )
    )
    assert queue.admit(make(priority=1), 0.0) is None
    assert queue.admit(make(priority=1), 0.0) is RejectReason.PRIORITY_QUEUE
    assert queue.admit(make(priority=2), 0.0) is None


def test_levels_are_served_from_one_and_unset_takes_the_default() -> None:
    queue = ModelQueue(QueueSettings(priority_levels=3, default_priority=2))
    low, unset, high, unset2 = make(priority=3), make(), make(priority=1), make()
    for request in (low, unset, high, unset2):
        assert queue.admit(request, 0.0) is None
    assert list(queue.waiting()) == [high, unset, unset2, low]


def test_returned_requests_come_before_those_of_their_own_level_only() -> None:
    queue = ModelQueue(QueueSettings(priority_levels=2, default_priority=1))
    high1, low1, high2, low2 = (make(priority=level) for level in (1, 2, 1, 2))
    for request in (high1, low1):
        queue.admit(request, 0.0)
        queue.take(request)
    for request in (high2, low2):
        queue.admit(request, 0.0)
    queue.put_back((high1, low1))
    assert list(queue.waiting()) == [high1, high2, low1, low2]


def test_put_back_passes_the_bounds_since_it_was_admitted() -> None:
    queue = ModelQueue(QueueSettings(max_requests=1))
    first, second = make(), make()
    queue.admit(first, 0.0)
    queue.take(first)
    queue.admit(second, 0.0)
    queue.put_back((first,))
    assert queue.requests == 2
    assert queue.admit(make(), 0.0) is RejectReason.QUEUE_REQUESTS


def test_suspects_are_apart_in_order_and_counted() -> None:
    queue = ModelQueue(QueueSettings())
    first, second, plain = make(), make(), make()
    for request in (first, second, plain):
        queue.admit(request, 0.0)
    for request in (first, second):
        queue.take(request)
        request.suspect = True
    queue.put_back((first, second))
    assert list(queue.suspects.values()) == [first, second]
    assert list(queue.waiting()) == [plain]
    assert queue.requests == 3
    assert queue.oldest_arrival_s() == 0.0
    assert queue.drain() == [first, second, plain]
    assert (queue.requests, queue.rows, queue.payload_bytes) == (0, 0, 0)
    assert queue.oldest_arrival_s() is None


def test_the_deadline_is_the_earliest_of_caller_timeout_and_policy() -> None:
    policy = QueuePolicy(timeout_s=3.0)
    queue = ModelQueue(QueueSettings(default_policy=policy))
    cases = [
        (make(arrived_s=10.0), 13.0),
        (make(arrived_s=10.0, deadline_s=12.0), 12.0),
        (make(arrived_s=10.0, timeout_s=1.0), 11.0),
        (make(arrived_s=10.0, timeout_s=5.0), 13.0),
    ]
    for request, due_s in cases:
        assert queue.admit(request, 10.0) is None
        assert request.queue_deadline_s == due_s
    assert queue.next_due_s() == 11.0


def test_a_timeout_counts_only_where_the_policy_allows_it() -> None:
    queue = ModelQueue(QueueSettings(default_policy=QueuePolicy(allow_timeout_override=False)))
    request = make(timeout_s=1.0)
    queue.admit(request, 0.0)
    assert request.queue_deadline_s == inf


def test_a_deadline_that_has_passed_is_not_admitted() -> None:
    queue = ModelQueue(QueueSettings())
    assert queue.admit(make(deadline_s=5.0), 5.0) is RejectReason.EXPIRED
    assert queue.requests == 0


def test_overdue_takes_exactly_those_whose_time_has_come() -> None:
    queue = ModelQueue(QueueSettings())
    soon, later, never = make(deadline_s=1.0), make(deadline_s=2.0), make()
    for request in (later, soon, never):
        queue.admit(request, 0.0)
    assert queue.overdue(0.5) == []
    assert queue.overdue(1.0) == [soon]
    assert queue.next_due_s() == 2.0
    assert queue.overdue(9.0) == [later]
    assert list(queue.waiting()) == [never]
    assert queue.next_due_s() == inf


def test_the_delay_action_moves_behind_the_level_and_the_deadline_still_holds() -> None:
    queue = ModelQueue(
        QueueSettings(
            priority_levels=2,
            default_policy=QueuePolicy(TimeoutAction.DELAY, timeout_s=1.0),
        )
    )
    delayed = make(priority=1, deadline_s=5.0)
    queue.admit(delayed, 0.0)
    fresh, low = make(arrived_s=0.9, priority=1), make(arrived_s=0.9, priority=2)
    queue.admit(fresh, 0.9)
    queue.admit(low, 0.9)
    assert queue.overdue(1.0) == []
    assert list(queue.waiting()) == [fresh, delayed, low]
    assert queue.overdue(2.0) == []
    assert queue.overdue(5.0) == [delayed]


def test_due_times_are_bounded_by_the_queue_and_never_lost() -> None:
    queue = ModelQueue(QueueSettings())
    kept = [make(deadline_s=50.0 + number) for number in range(10)]
    for request in kept:
        queue.admit(request, 0.0)
    for _ in range(5_000):
        passing = make(deadline_s=1000.0)
        queue.admit(passing, 0.0)
        queue.take(passing)
        assert len(queue._due) <= MIN_DUE_ENTRIES + 4 * (queue.requests + 1)
    assert queue.overdue(100.0) == kept


def test_a_delayed_request_keeps_its_deadline_when_due_times_are_made_anew() -> None:
    policy = QueuePolicy(TimeoutAction.DELAY, timeout_s=1.0)
    queue = ModelQueue(QueueSettings(default_policy=policy))
    request = make(deadline_s=3.0)
    queue.admit(request, 0.0)
    for _ in range(200):  # leased and returned: an entry each time
        queue.take(request)
        queue.put_back((request,))
        assert queue.overdue(0.5) == []
    assert queue.overdue(1.5) == []
    assert queue.overdue(3.0) == [request]
