"""Mode SLO: what waits, what goes, and who is late."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.core.batching import Form, Wait
from tideserve.server.core.request import Request
from tideserve.server.core.settings import BatchingMode, BatchSettings
from tideserve.server.core.slo import MAX_DEFERRAL, Choice, Outlook, choose_in_time

NOW_S = 10.0
TARGET_S = 0.025
# l(b) = 1.053 b + 5.072 ms, as in the figures.
TABLE_S = [0.0, *(0.001053 * rows + 0.005072 for rows in range(1, 33))]
SETTINGS = BatchSettings(BatchingMode.SLO, 32, target_s=TARGET_S)
EIGHT = Outlook(TABLE_S, TARGET_S, replicas=8, idle=1, start_s=NOW_S)
IDS = count(1)


def came(ago_s: float, rows: int = 1, signature: str = "a", priority: int = 1) -> Request:
    return Request(
        request_id=next(IDS),
        rows=rows,
        payload_bytes=rows,
        signature=signature,
        arrived_s=NOW_S - ago_s,
        priority=priority,
        due_s=NOW_S - ago_s + TARGET_S,
    )


def choose(
    on_time: list[Request],
    outlook: Outlook = EIGHT,
    late: tuple[Request, ...] = (),
    cap_rows: int = 32,
) -> Choice:
    return choose_in_time(on_time, late, SETTINGS, cap_rows, outlook, NOW_S)


def formed(choice: Choice) -> tuple[Request, ...]:
    assert isinstance(choice.decision, Form)
    assert choice.decision.rows == sum(request.rows for request in choice.decision.requests)
    return choice.decision.requests


def test_the_best_size_leaves_time_for_one_batch_ahead_of_n() -> None:
    assert EIGHT.best_rows == 16
    assert replace(EIGHT, replicas=1).best_rows == 7
    assert replace(EIGHT, target_s=0.001).best_rows == 1


def test_the_size_that_keeps_up_grows_with_the_rate_up_to_the_best() -> None:
    assert EIGHT.keep_up_rows() == 1
    assert replace(EIGHT, rows_per_s=0.9 * 5839).keep_up_rows() == 11
    assert replace(EIGHT, rows_per_s=1e6).keep_up_rows() == 16


def test_a_batch_waits_for_more_until_its_cap() -> None:
    choice = choose([came(0.001), came(0.0)])
    assert choice.decision == Wait(NOW_S - 0.001 + MAX_DEFERRAL * TABLE_S[16] / 8)


def test_a_batch_goes_when_one_row_more_would_make_its_first_request_late() -> None:
    hurried, other = came(0.0), came(0.0)
    hurried.due_s = NOW_S + TABLE_S[3] + 0.0001
    decision = choose([hurried, other]).decision
    assert isinstance(decision, Wait)
    assert decision.until_s == pytest.approx(NOW_S + 0.0001, abs=1e-9)
    hurried.due_s = NOW_S + TABLE_S[3]
    assert formed(choose([hurried, other])) == (hurried, other)


def test_one_replica_alone_does_not_wait() -> None:
    waiting = [came(0.0)]
    assert formed(choose(waiting, replace(EIGHT, replicas=1))) == tuple(waiting)


def test_a_full_batch_goes_at_once() -> None:
    waiting = [came(0.0) for _ in range(4)]
    assert formed(choose(waiting, cap_rows=4)) == tuple(waiting)


def test_what_even_alone_would_be_late_is_left_out() -> None:
    hopeless = came(TARGET_S - TABLE_S[1] + 0.001)
    choice = choose([hopeless, came(0.0)])
    assert choice.late == [hopeless]
    assert isinstance(choice.decision, Wait)


def test_in_overload_the_head_is_left_out_for_a_batch_that_keeps_up() -> None:
    """30 wait, each 0.1 ms after the one before; the head could only share a batch of 16."""
    waiting = [came(0.0059 - at * 0.0001) for at in range(40)]
    busy = replace(EIGHT, rows_per_s=7000.0, next_free_s=(NOW_S + 0.003, NOW_S + 0.006))
    choice = choose(waiting, busy)
    batch = formed(choice)
    assert choice.late == waiting[: len(choice.late)]
    assert len(choice.late) > 0
    assert 15 <= len(batch) <= 17
    head = batch[0]
    assert head.due_s + 1e-9 >= NOW_S + TABLE_S[len(batch)]


def test_in_a_burst_without_overload_nobody_is_left_out() -> None:
    waiting = [came(0.0059 - at * 0.0001) for at in range(40)]
    calm = replace(EIGHT, idle=4, next_free_s=(NOW_S, NOW_S, NOW_S))
    choice = choose(waiting, calm)
    assert choice.late == []
    assert formed(choice)[0] is waiting[0]


def test_a_replica_that_is_free_later_takes_what_it_can_still_answer() -> None:
    waiting = [came(0.010)]
    later = replace(EIGHT, idle=0, start_s=NOW_S + 0.012)
    assert choose(waiting, later).late == waiting
    assert formed(choose(waiting, replace(later, start_s=NOW_S + 0.0085))) == tuple(waiting)


def test_signatures_wait_apart() -> None:
    rare, due = came(0.0, signature="b"), came(TARGET_S - TABLE_S[2], signature="a")
    assert formed(choose([due, rare])) == (due,)
    assert formed(choose([rare, due])) == (due,)


def test_lower_levels_fill_up_what_the_highest_leaves() -> None:
    high = [came(0.004, priority=1) for _ in range(10)]
    low = [came(0.004, priority=2) for _ in range(30)]
    batch = formed(choose([*high, *low], replace(EIGHT, rows_per_s=7000.0)))
    assert batch[:10] == tuple(high)
    assert batch[10:] == tuple(low[: len(batch) - 10])
    assert len(batch) == 15


def test_late_ones_ride_along_where_nobody_else_is_late_for_it() -> None:
    behind = tuple(came(1.0) for _ in range(40))
    going = came(MAX_DEFERRAL * TABLE_S[16] / 8)
    batch = formed(choose([going], late=behind))
    assert batch[0] is going
    assert going.due_s + 1e-9 >= NOW_S + TABLE_S[len(batch)]
    assert going.due_s < NOW_S + TABLE_S[len(batch) + 1]
    other = formed(choose([going], late=(came(1.0, signature="b"),)))
    assert other == (going,)


def test_late_ones_are_served_when_nothing_in_time_waits_or_a_replica_is_to_spare() -> None:
    behind = tuple(came(1.0) for _ in range(40))
    assert formed(choose([], late=behind)) == behind[:16]
    fresh = came(0.0)
    assert isinstance(choose([fresh], late=behind).decision, Wait)
    assert formed(choose([fresh], replace(EIGHT, idle=2), late=behind)) == behind[:16]
    assert choose([], replace(EIGHT, idle=0, start_s=NOW_S + 0.01), late=behind).decision is None


def test_slack_for_the_link_makes_batches_go_earlier() -> None:
    waiting = [came(0.003) for _ in range(12)]
    assert isinstance(choose(waiting).decision, Wait)
    assert formed(choose(waiting, replace(EIGHT, slack_s=-0.004))) == tuple(waiting)


def test_without_a_batch_dimension_each_goes_alone() -> None:
    settings = BatchSettings(BatchingMode.SLO, 0, target_s=TARGET_S)
    outlook = replace(EIGHT, table_s=TABLE_S[:2])
    waiting = [came(0.0), came(0.0)]
    choice = choose_in_time(waiting, (), settings, 0, outlook, NOW_S)
    assert formed(choice) == (waiting[0],)


@given(
    ages_s=st.lists(st.floats(0.0, 0.03), max_size=60),
    rows=st.lists(st.integers(1, 6), min_size=60, max_size=60),
    priorities=st.lists(st.integers(1, 2), min_size=60, max_size=60),
    late_rows=st.lists(st.integers(1, 6), max_size=20),
    idle=st.integers(0, 3),
    start_in_s=st.sampled_from([0.0, 0.002]),
    rate=st.sampled_from([0.0, 3000.0, 7000.0]),
    cap_rows=st.integers(6, 32),
    next_free=st.lists(st.floats(0.0, 0.02), max_size=3),
)
def test_r1_r3_everyone_is_in_one_place_and_whoever_goes_in_time_is_in_time(
    ages_s: list[float],
    rows: list[int],
    priorities: list[int],
    late_rows: list[int],
    idle: int,
    start_in_s: float,
    rate: float,
    cap_rows: int,
    next_free: list[float],
) -> None:
    on_time = [
        came(age_s, row_count, priority=priority)
        for age_s, row_count, priority in zip(ages_s, rows, priorities, strict=False)
    ]
    on_time.sort(key=lambda request: (request.priority, request.due_s))
    behind = tuple(came(1.0, row_count) for row_count in late_rows)
    outlook = replace(
        EIGHT,
        idle=idle,
        start_s=NOW_S + start_in_s,
        rows_per_s=rate,
        next_free_s=tuple(NOW_S + free_s for free_s in sorted(next_free)),
    )
    choice = choose(on_time, outlook, behind, cap_rows)
    batch = choice.decision.requests if isinstance(choice.decision, Form) else ()
    gone = [request.request_id for request in (*batch, *choice.late)]
    assert len(gone) == len(set(gone))
    assert set(gone) <= {request.request_id for request in (*on_time, *behind)}
    assert sum(request.rows for request in batch) <= cap_rows
    in_time = [request for request in batch if request not in behind]
    if in_time:
        done_s = outlook.start_s + TABLE_S[sum(request.rows for request in batch)]
        assert min(request.due_s for request in in_time) + 1e-6 >= done_s
    if isinstance(choice.decision, Wait):
        assert NOW_S < choice.decision.until_s < inf


def long(ago_s: float, row_cost: int) -> Request:
    request = came(ago_s, signature=f"of {row_cost}")
    request.row_cost = row_cost
    return request


def test_long_rows_are_decided_by_their_own_times() -> None:
    slow = replace(EIGHT, table_s=[2.0 * seconds for seconds in TABLE_S])
    outlook = replace(EIGHT, by_cost=lambda cost: slow if cost == 64 else EIGHT)
    # 14 ms are left: enough for one row that takes 6 ms, not for one that takes 12 and waits 3.
    assert choose([long(0.0, 16)], outlook).decision is not None
    assert choose([long(0.011, 64)], outlook).late == []
    assert choose([long(0.013, 64)], outlook).late != []
    assert choose([long(0.013, 16)], outlook).late == []
    # A batch of them is as large as their times allow, and their cost.
    waiting = [long(0.002, 64) for _ in range(40)]
    rows = len(formed(choose(waiting, outlook)))
    assert slow.table_s[rows] <= TARGET_S - 0.002 < slow.table_s[rows + 1]
    dear = replace(SETTINGS, max_batch_cost=128)
    chosen = choose_in_time(waiting, (), dear, 32, outlook, NOW_S)
    assert len(formed(chosen)) == 2


def test_lower_levels_fill_an_overload_up_from_where_most_of_them_fit() -> None:
    """The oldest of them are nearly out of time: one of these would make it a batch of a few."""
    high = [came(0.001, priority=1) for _ in range(2)]
    urgent = [came(0.018, priority=2) for _ in range(3)]
    easy = [came(0.003, priority=2) for _ in range(30)]
    batch = formed(choose([*high, *urgent, *easy], replace(EIGHT, rows_per_s=7000.0)))
    assert set(high) <= set(batch)
    assert not set(urgent) & set(batch)
    assert len(batch) >= 14
    assert TABLE_S[len(batch)] <= TARGET_S - 0.003


def test_lower_levels_fill_up_one_after_the_other() -> None:
    """The lowest has the longest run, and gets what the one above it leaves."""
    high = [came(0.001, priority=1) for _ in range(2)]
    middle = [came(0.003, priority=2) for _ in range(4)]
    low = [came(0.003, priority=3) for _ in range(40)]
    batch = formed(choose([*high, *middle, *low], replace(EIGHT, rows_per_s=7000.0)))
    assert batch[:6] == (*high, *middle)
    assert batch[6:] == tuple(low[: len(batch) - 6])
    assert TABLE_S[len(batch)] <= TARGET_S - 0.003 < TABLE_S[len(batch) + 1]


def test_late_ones_of_other_signatures_are_looked_past_only_so_far() -> None:
    def strangers() -> Iterator[Request]:
        while True:
            yield came(1.0, signature="b")

    going = came(MAX_DEFERRAL * TABLE_S[16] / 8)
    assert formed(choose_in_time([going], strangers(), SETTINGS, 32, EIGHT, NOW_S)) == (going,)


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("largest", [16, 256])
def test_a_decision_in_an_overload_costs_little_more_than_a_look_at_each_request(
    levels: int, largest: int
) -> None:
    """Each batch of a frontend in an overload is such a decision."""
    table_s = [0.0, *(0.005 + 0.02 * rows / largest for rows in range(1, largest + 1))]
    settings = BatchSettings(BatchingMode.SLO, largest, target_s=0.028)
    waiting = [
        came(0.0 if level == 1 else 0.008 - 0.008 * at / largest, priority=level)
        for level in range(1, levels + 1)
        for at in range(4 * largest // levels)
    ]
    for at, request in enumerate(waiting):
        if levels == 1:
            request.due_s = NOW_S + 0.0255 + 0.02 * at / len(waiting)
    outlook = replace(
        EIGHT,
        table_s=table_s,
        target_s=0.028,
        rows_per_s=1.3 * 8 * largest / 0.025,
        next_free_s=(NOW_S + 0.003, NOW_S + 0.006, NOW_S + 0.009),
    )
    calls = 0

    def tell(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(tell)
    try:
        choice = choose_in_time(waiting, (), settings, largest, outlook, NOW_S)
    finally:
        sys.setprofile(None)
    assert len(formed(choice)) > largest / 2
    assert calls < 30 * len(waiting)
