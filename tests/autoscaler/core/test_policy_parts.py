"""The parts that a decision is made from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.autoscaler.core.loads import PROFILE, UNIX_S
from tideserve.autoscaler.core.capacity import Capacity, capacity, erlang_c, replicas_for
from tideserve.autoscaler.core.fleet import ModelKey, Replica, ReplicaState
from tideserve.autoscaler.core.forecast import DAY_S, HISTORY, DayTable, Growth
from tideserve.autoscaler.core.load import Histogram, Load
from tideserve.autoscaler.core.marginal import FORGET_S, Gains
from tideserve.autoscaler.core.placement import Demand, place
from tideserve.autoscaler.core.schedule import is_active
from tideserve.autoscaler.core.settings import Device, Schedule
from tideserve.autoscaler.core.startup import DEFAULT_S, KEPT, StartUps
from tideserve.autoscaler.core.window import SPAN_S, LoadWindow, quantile_of

# --- window -----------------------------------------------------------------------------------


def window(*loads: Load) -> LoadWindow:
    found = LoadWindow()
    for load in loads:
        found = found.push(load)
    return found


def test_rates_are_of_the_loads_that_are_so_far_apart() -> None:
    found = window(*(Load(float(at), arrivals=10.0 * at) for at in range(10)))
    assert found.request_rate(4.0) == 10.0
    assert found.request_rate(100.0) == 10.0
    assert window(Load(0.0)).request_rate(4.0) is None


def test_a_window_is_new_until_there_is_something_to_compare_with() -> None:
    assert not LoadWindow().is_new
    assert window(Load(0.0)).is_new
    assert not window(Load(0.0), Load(1.0)).is_new
    assert window(Load(0.0), Load(1.0), Load(2.0 + SPAN_S)).is_new


def test_a_surge_is_what_no_accident_explains() -> None:
    calm = window(Load(0.0), Load(1.0, arrivals=4.0))
    assert calm.surge_rate((1.0,)) == 0.0
    stormy = window(Load(0.0), Load(1.0, arrivals=100.0))
    assert stormy.surge_rate((1.0,)) == 80.0


@given(st.lists(st.floats(0.001, 10.0), max_size=200))
def test_a_window_is_bounded_in_time_and_number(gaps: list[float]) -> None:
    found, at_s = LoadWindow(), 0.0
    for gap in gaps:
        at_s += gap
        found = found.push(Load(at_s))
    assert len(found.loads) <= SPAN_S / 0.1 + 2
    assert found.covers_s() <= SPAN_S + 10.0
    assert [load.at_s for load in found.loads] == sorted(load.at_s for load in found.loads)


@given(st.lists(st.integers(0, 100), min_size=4, max_size=4), st.floats(0.01, 0.99))
def test_a_quantile_lies_within_the_bounds(counts: list[int], quantile: float) -> None:
    new = Histogram((0.1, 0.5, 1.0), tuple(float(count) for count in counts))
    found = quantile_of(new, Histogram(), quantile)
    if sum(counts) == 0:
        assert found is None
    else:
        assert found is not None
        assert 0.0 <= found <= 1.0


def test_buckets_of_another_version_are_not_compared() -> None:
    new, old = Histogram((0.1,), (1.0, 0.0)), Histogram((0.2,), (1.0, 0.0))
    assert quantile_of(new, old, 0.5) is None


def test_rows_of_a_request_are_learned() -> None:
    assert window(Load(0.0)).rows_per_request() == 1.0
    found = window(Load(0.0), Load(1.0, succeeded=100.0, rows=400.0))
    assert found.rows_per_request() == 4.0


# --- capacity ---------------------------------------------------------------------------------


def test_the_largest_batch_within_the_target_counts() -> None:
    # With one replica a batch may wait for another one: l(b) (1 + 1/1) <= target.
    assert capacity(PROFILE, 0.12, 1) == Capacity(4, 0.06)
    assert capacity(PROFILE, 0.12, 1000) == Capacity(8, 0.1)
    assert capacity(PROFILE, None, 1) == Capacity(8, 0.1)
    # No batch meets it: as many rows as can be.
    assert capacity(PROFILE, 0.001, 1) == Capacity(8, 0.1)
    assert capacity((), 0.1, 1) is None


@pytest.mark.parametrize(
    # Erlang's formula: https://en.wikipedia.org/wiki/Erlang_(unit)#Erlang_C_formula
    ("servers", "offered", "expected"),
    [(1, 0.5, 0.5), (2, 1.0, 1 / 3), (3, 2.0, 4 / 9), (10, 5.0, 0.036105)],
)
def test_erlang_c(servers: int, offered: float, expected: float) -> None:
    assert erlang_c(servers, offered) == pytest.approx(expected, rel=1e-3)


def test_single_rows_need_room_for_their_queue_and_batches_do_not() -> None:
    single = Capacity(1, 0.1)
    assert replicas_for(8.0, single, quantile=0.95, wait_target_s=10.0) == 1
    assert replicas_for(8.0, single, quantile=0.95, wait_target_s=0.05) > 1
    assert replicas_for(79.0, Capacity(8, 0.1), quantile=0.95, wait_target_s=0.001) == 1
    assert replicas_for(80.0, Capacity(8, 0.1), quantile=0.95, wait_target_s=0.001) == 1
    assert replicas_for(81.0, Capacity(8, 0.1), quantile=0.95, wait_target_s=0.001) == 2
    assert replicas_for(0.0, single, quantile=0.95, wait_target_s=0.1) == 0


# --- forecast ---------------------------------------------------------------------------------


def test_growth_is_learned_from_what_followed_and_is_bounded() -> None:
    steady = Growth()
    for second in range(100):
        steady = steady.push(50.0, 2.0, float(second), 0.9)
    assert steady.ratio == 1.0
    waves = Growth()
    for second in range(100):
        waves = waves.push(10.0 if second % 10 < 5 else 20.0, 5.0, float(second), 0.9)
    assert waves.ratio == 2.0
    wild = Growth()
    for second in range(2000):
        wild = wild.push(1.0 if second % 2 else 1000.0, 2.0, float(second), 0.9)
    assert wild.ratio == 3.0
    assert len(wild.rates) == HISTORY


@pytest.mark.parametrize(("quantile", "ratio"), [(0.0, 1.0), (0.5, 1.0), (0.7, 2.0), (1.0, 2.0)])
def test_the_quantile_says_which_share_of_the_growth_is_prepared_for(
    quantile: float, ratio: float
) -> None:
    # In two of five seconds the rate doubles within the two that follow.
    growth = Growth()
    for second in range(100):
        growth = growth.push(10.0 if second % 5 < 4 else 20.0, 2.0, float(second), quantile)
    assert growth.ratio == ratio


def test_few_moments_and_few_requests_say_nothing() -> None:
    young = Growth()
    for second in range(20):
        young = young.push(10.0 * (second + 1), 2.0, float(second), 0.9)
    assert young.ratio == 1.0


def test_the_day_s_table_knows_what_the_day_before_had() -> None:
    table = DayTable()
    for quarter in range(96 + 1):
        rate = 100.0 if quarter == 40 else 5.0
        table = table.push(rate, UNIX_S - UNIX_S % DAY_S + quarter * 900.0)
    next_day = UNIX_S - UNIX_S % DAY_S + DAY_S
    assert table.expected(next_day + 39 * 900.0, 60.0) == 5.0
    # A start-up that ends in the busy quarter counts on it.
    assert table.expected(next_day + 40 * 900.0 - 30.0, 60.0) == 100.0
    assert DayTable().expected(next_day, 1e9) == 0.0


# --- schedules, start-ups ---------------------------------------------------------------------


def test_a_schedule_is_active_from_its_time_for_its_duration() -> None:
    # UNIX_S is 22:13:20 UTC, a Tuesday.
    at_22 = Schedule("0 22 * * *", 900.0, 2)
    assert is_active(at_22, UNIX_S)
    assert is_active(at_22, UNIX_S - 800.0)
    assert not is_active(at_22, UNIX_S - 801.0)
    assert not is_active(at_22, UNIX_S + 101.0)
    assert not is_active(Schedule("0 22 * * 0", 900.0, 2), UNIX_S)


def test_start_ups_are_counted_once_and_the_slow_ones_are_expected() -> None:
    assert StartUps().expected_s() == DEFAULT_S
    found = StartUps()
    for number in range(100):
        replica = Replica(
            f"r{number}",
            ModelKey("m", 1, "g"),
            ReplicaState.READY,
            startup_s=(("launch", 0.5), ("load", 5.0 if number % 10 == 0 else 0.5)),
        )
        found = found.push([replica])
        found = found.push([replica])
    assert len(found.durations_s) == KEPT
    assert found.expected_s() == 5.5


# --- marginal gain ----------------------------------------------------------------------------


def gains_of(rates: dict[int, float]) -> tuple[Gains, float]:
    found, now_s = Gains(), 0.0
    for ready, rate in rates.items():
        for _ in range(12):
            found = found.push(ready, rate, backlogged=True, now_s=now_s)
            now_s += 1.0
    return found, now_s


def test_a_replica_that_adds_nothing_is_found_remembered_and_tried_again_later() -> None:
    found, now_s = gains_of({1: 100.0, 2: 195.0, 3: 197.0})
    assert found.cap == 2
    assert found.push(2, 195.0, backlogged=False, now_s=now_s).cap == 2
    assert found.push(2, 195.0, backlogged=False, now_s=now_s + FORGET_S).cap is None


def test_replicas_that_add_something_are_kept() -> None:
    assert gains_of({1: 100.0, 2: 190.0, 3: 270.0})[0].cap is None


# --- placement --------------------------------------------------------------------------------

A, B, C = (ModelKey(name, 1, "g") for name in "abc")


def test_priorities_go_first_and_every_minimum_before_any_more() -> None:
    demands = [
        Demand(A, 5, least=1, priority=2, rows_per_s=10.0, asked_rows_per_s=50.0),
        Demand(B, 5, least=0, priority=1, rows_per_s=10.0, asked_rows_per_s=50.0),
    ]
    assert place(demands, [Device(slots=4)]) == {A: 1, B: 3}


def test_among_equals_the_one_that_misses_most_is_served() -> None:
    demands = [
        Demand(A, 5, rows_per_s=10.0, asked_rows_per_s=20.0),
        Demand(B, 5, rows_per_s=100.0, asked_rows_per_s=300.0),
    ]
    assert place(demands, [Device(slots=4)]) == {A: 1, B: 3}
    assert place(demands, [Device(slots=99)]) == {A: 5, B: 5}


def test_memory_of_devices_bounds_what_fits() -> None:
    demands = [Demand(A, 5, memory_bytes=4), Demand(B, 5, memory_bytes=1)]
    given_ = place(demands, [Device("gpu:0", 9, 8), Device("gpu:1", 9, 3)])
    assert 4 * given_[A] + given_[B] <= 11
    assert given_[A] <= 2


@given(
    st.lists(
        st.builds(
            Demand,
            key=st.sampled_from([A, B, C]),
            desired=st.integers(0, 9),
            least=st.integers(0, 3),
            priority=st.integers(1, 3),
            rows_per_s=st.floats(0, 100),
            asked_rows_per_s=st.floats(0, 1000),
            memory_bytes=st.integers(0, 5),
        ),
        max_size=3,
        unique_by=lambda demand: demand.key,
    ),
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), min_size=1, max_size=3),
)
def test_no_more_than_desired_and_no_more_than_the_devices_have(
    demands: list[Demand], sizes: list[tuple[int, int]]
) -> None:
    devices = [Device(f"gpu:{at}", slots, memory) for at, (slots, memory) in enumerate(sizes)]
    given_ = place(demands, devices)
    assert given_.keys() == {demand.key for demand in demands}
    assert all(given_[demand.key] <= demand.desired for demand in demands)
    assert sum(given_.values()) <= sum(device.slots for device in devices)
    if all(device.memory_bytes for device in devices):
        used = sum(given_[demand.key] * demand.memory_bytes for demand in demands)
        assert used <= sum(device.memory_bytes for device in devices)
