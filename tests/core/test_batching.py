"""choose: which requests form the next batch (R3) and when it goes."""

from itertools import count

import pytest

from tideserve.server.core.batching import MAX_SCAN, Form, Wait, choose
from tideserve.server.core.request import Request
from tideserve.server.core.settings import BatchingMode, BatchSettings

_ids = count(1)


def make(rows: int = 1, signature: str = "a", arrived_s: float = 0.0, size: int = 1) -> Request:
    return Request(next(_ids), rows, size, signature, arrived_s)


def eager(**settings: int) -> BatchSettings:
    return BatchSettings(max_batch_rows=settings.get("rows", 8), max_lease_bytes=100)


def window(preferred: tuple[int, ...] = ()) -> BatchSettings:
    return BatchSettings(BatchingMode.WINDOW, 8, preferred, max_queue_delay_s=1.0)


def taken(decision: Form | Wait) -> list[int]:
    assert isinstance(decision, Form)
    assert decision.rows == sum(request.rows for request in decision.requests)
    return [request.request_id for request in decision.requests]


def ids(*requests: Request) -> list[int]:
    return [request.request_id for request in requests]


def test_eager_takes_what_waits_up_to_the_cap() -> None:
    waiting = [make(3), make(4), make(1), make(1)]
    decision = choose(waiting, eager(), 8, 0.0)
    assert taken(decision) == ids(*waiting[:3])
    assert isinstance(decision, Form)
    assert decision.full


def test_a_request_that_does_not_fit_ends_the_batch_and_is_not_passed_over() -> None:
    waiting = [make(3), make(6), make(1)]
    assert taken(choose(waiting, eager(), 8, 0.0)) == ids(waiting[0])


def test_a_batch_holds_the_heads_signature_only() -> None:
    a1, b, a2 = make(signature="a"), make(signature="b"), make(signature="a")
    decision = choose([a1, b, a2], eager(), 8, 0.0)
    assert taken(decision) == ids(a1, a2)
    assert decision == Form((a1, a2), 2, full=False)


def test_a_batch_stays_below_max_lease_bytes_and_a_larger_request_travels_alone() -> None:
    waiting = [make(size=60), make(size=40), make(size=1)]
    assert taken(choose(waiting, eager(), 8, 0.0)) == ids(*waiting[:2])
    huge = [make(size=1000), make(size=1)]
    assert taken(choose(huge, eager(), 8, 0.0)) == ids(huge[0])


def test_a_request_larger_than_a_replicas_cap_travels_alone() -> None:
    waiting = [make(6), make(1)]
    assert taken(choose(waiting, eager(), 2, 0.0)) == ids(waiting[0])


@pytest.mark.parametrize("mode", list(BatchingMode))
def test_without_a_batch_dimension_every_request_travels_alone(mode: BatchingMode) -> None:
    waiting = [make(), make()]
    settings = BatchSettings(mode, 0, max_queue_delay_s=1.0)
    assert taken(choose(waiting, settings, 0, 0.0)) == ids(waiting[0])


def test_a_scan_for_mates_is_bounded() -> None:
    head, mate = make(signature="rare"), make(signature="rare")
    others = [make(signature="b") for _ in range(MAX_SCAN)]
    assert taken(choose([head, *others, mate], eager(), 8, 0.0)) == ids(head)


def test_a_window_waits_for_its_oldest_then_goes() -> None:
    waiting = [make(arrived_s=5.0), make(arrived_s=4.8)]
    assert choose(waiting, window(), 8, 5.5) == Wait(5.8)
    assert taken(choose(waiting, window(), 8, 5.8)) == ids(*waiting)


def test_a_full_window_goes_at_once() -> None:
    waiting = [make(4), make(4), make(1)]
    assert taken(choose(waiting, window(), 8, 0.0)) == ids(*waiting[:2])


def test_the_largest_preferred_size_goes_at_once() -> None:
    waiting = [make(2), make(2), make(2), make(1)]
    assert taken(choose(waiting, window((4, 6)), 8, 0.0)) == ids(*waiting[:3])
    assert choose(waiting[:1], window((4, 6)), 8, 0.0) == Wait(1.0)
    assert taken(choose(waiting[:1], window((4, 6)), 8, 1.0)) == ids(waiting[0])


def test_in_a_window_signatures_wait_apart() -> None:
    rare = make(signature="rare", arrived_s=0.5)
    many = [make(4, arrived_s=0.6) for _ in range(2)]
    assert taken(choose([rare, *many], window(), 8, 0.7)) == ids(*many)
    assert choose([rare, many[0]], window(), 8, 0.7) == Wait(1.5)


def test_the_window_of_a_signature_behind_the_head_counts_as_well() -> None:
    urgent, old = make(arrived_s=2.0), make(signature="b", arrived_s=1.5)
    assert choose([urgent, old], window(), 8, 2.1) == Wait(2.5)
    assert taken(choose([urgent, old], window(), 8, 2.5)) == ids(old)


def long(row_cost: int, signature: str, rows: int = 1) -> Request:
    request = make(rows, signature)
    request.row_cost = row_cost
    return request


def test_a_batch_of_long_rows_has_fewer_of_them() -> None:
    settings = BatchSettings(max_batch_rows=8, max_batch_cost=64)
    short = [long(8, "short") for _ in range(10)]
    assert len(taken(choose(short, settings, 8, 0.0))) == 8
    longer = [long(16, "long") for _ in range(10)]
    decision = choose(longer, settings, 8, 0.0)
    assert len(taken(decision)) == 4
    assert isinstance(decision, Form)
    assert decision.full
    too_long = [long(100, "too long", rows=2), long(100, "too long")]
    assert taken(choose(too_long, settings, 8, 0.0)) == ids(too_long[0])


def test_a_window_is_full_at_the_cost_of_its_rows() -> None:
    settings = BatchSettings(BatchingMode.WINDOW, 8, max_queue_delay_s=1.0, max_batch_cost=64)
    assert isinstance(choose([long(16, "a") for _ in range(3)], settings, 8, 0.0), Wait)
    assert len(taken(choose([long(16, "a") for _ in range(4)], settings, 8, 0.0))) == 4
