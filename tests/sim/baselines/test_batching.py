"""Published batching rules of other servers, by hand-computed sequences on a real scheduler."""

from collections.abc import Callable
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.core.world import START_S, World
from tideserve.server.core.actions import Dispatch, Expire, FailureCause
from tideserve.server.core.assignment import Assignment
from tideserve.server.core.outcomes import BatchDone, BatchFailed
from tideserve.server.core.request import Request
from tideserve.server.core.settings import (
    BatchingMode,
    BatchSettings,
    ModelSettings,
    OnLate,
)
from tideserve.sim.arrivals import Poisson
from tideserve.sim.baselines.batching import (
    ClipperAssignment,
    ClipperSettings,
    FixedAssignment,
    FixedSettings,
    NexusAssignment,
    NexusSettings,
)
from tideserve.sim.hardware import BatchTimes, Hardware
from tideserve.sim.scenario import Scenario, run_fixed

MS = 1e-3
# l(b) = 4 + b ms.
PROFILE = ((1, 5 * MS), (16, 20 * MS))


def clipper(target_s: float = 5 * MS, **changes: float) -> ClipperAssignment:
    return ClipperAssignment(ClipperSettings(target_s, **changes))  # type: ignore[arg-type]


def fixed(batch_rows: int = 3, timeout_s: float = 10 * MS) -> FixedAssignment:
    return FixedAssignment(FixedSettings(batch_rows, timeout_s))


def nexus(target_s: float = 24 * MS) -> NexusAssignment:
    return NexusAssignment(NexusSettings(target_s))


Rule = Callable[[], Assignment]
RULES: list[Rule] = [lambda: clipper(1.0), fixed, nexus]


def make(
    assignment: Assignment,
    *replicas: str,
    max_batch_rows: int = 16,
    on_late: OnLate = OnLate.SERVE,
    mode: BatchingMode = BatchingMode.EAGER,
    max_lease_bytes: int = 1000,
    preferred_rows: tuple[int, ...] = (),
) -> World:
    """Replicas wait for work."""
    target_s = 24 * MS if mode is BatchingMode.SLO else None
    batch = BatchSettings(
        mode,
        max_batch_rows,
        preferred_rows,
        max_lease_bytes=max_lease_bytes,
        target_s=target_s,
        on_late=on_late,
    )
    world = World({"m": ModelSettings(batch=batch)}, assignment)
    for replica in replicas:
        world.start(replica, "m")
        world.exchange(replica)
    return world


def arrive(world: World, requests: int = 1, rows: int = 1, signature: str = "a") -> list[Request]:
    came = [world.arrive("m", rows, signature) for _ in range(requests)]
    return [request for request in came if isinstance(request, Request)]


def profiled(world: World) -> World:
    world.scheduler.models["m"].learn_warm_up("", PROFILE)
    return world


def batches(world: World) -> list[int]:
    """Rows of every lease so far."""
    return [action.lease.rows for action in world.log if isinstance(action, Dispatch)]


def batch(world: World) -> list[Request]:
    """The last lease's."""
    last = [action for action in world.log if isinstance(action, Dispatch)][-1]
    return list(last.lease.requests)


def expired(world: World) -> list[Request]:
    return [action.request for action in world.log if isinstance(action, Expire)]


def finish(world: World, took_s: float = 0.0, replica: str = "r0") -> None:
    """After that time the replica's batch is done, and it asks for the next one. What it says
    of its time is always l(b)."""
    if took_s:
        world.advance(took_s)
    lease = world.players[replica].leases[0]
    world.exchange(replica, [BatchDone(lease.lease_id, (4 + lease.rows) * MS)])


def busy(assignment: Assignment, **options: OnLate | int) -> World:
    """r0 computes one row, so that what arrives waits."""
    world = profiled(make(assignment, "r0", **options))  # type: ignore[arg-type]
    arrive(world, signature="first")
    if not batches(world):
        world.advance(11 * MS)
    assert batches(world) == [1]
    return world


# --- Clipper -------------------------------------------------------------------------------


def test_clipper_adds_one_row_within_the_objective_and_takes_a_tenth_beyond() -> None:
    """b rows take b ms of 5. The maximum after each batch: 2, 3, 4, 5, 6, 5.4, 6.4, 5.76, 6.76,
    6.084, 5.4756."""
    world = make(clipper(), "r0")
    arrive(world, 60)
    for _ in range(11):
        finish(world, batches(world)[-1] * MS)
    assert batches(world) == [1, 2, 3, 4, 5, 6, 5, 6, 5, 6, 6, 5]


def test_clipper_steps_are_settings() -> None:
    """After each batch: 4, 7, 3.5, 6.5, 3.25."""
    world = make(clipper(additive_rows=3, backoff=0.5), "r0")
    arrive(world, 60)
    for _ in range(5):
        finish(world, batches(world)[-1] * MS)
    assert batches(world) == [1, 4, 7, 3, 6, 3]


def test_clipper_does_not_grow_by_batches_that_were_not_full() -> None:
    world = make(clipper(), "r0")
    for _ in range(4):
        arrive(world)
        finish(world, 1 * MS)
    arrive(world, 5)
    finish(world, 1 * MS)
    assert batches(world) == [1, 1, 1, 1, 1, 2]


def test_clipper_counts_the_batch_and_not_its_wait() -> None:
    world = make(clipper(), "r0")
    arrive(world, 8)
    finish(world, 5 * MS)
    finish(world, 5 * MS)
    assert batches(world) == [1, 2, 3]


def test_clipper_takes_no_more_than_the_model_allows() -> None:
    world = make(clipper(), "r0", max_batch_rows=2)
    arrive(world, 10)
    for _ in range(3):
        finish(world, 1 * MS)
    assert batches(world) == [1, 2, 2, 2]
    # Nor does what it learned go beyond: 2 to 1.8.
    finish(world, 6 * MS)
    assert batches(world)[-1] == 1


def test_clipper_gives_each_replica_a_maximum_of_its_own() -> None:
    world = make(clipper(), "r0", "r1")
    arrive(world, 20)
    for _ in range(3):
        world.advance(1 * MS)
        finish(world, replica="r0")
    world.advance(3 * MS)
    finish(world, replica="r1")
    assert batches(world) == [1, 1, 2, 3, 4, 1]


def test_clipper_fills_up_with_whole_requests() -> None:
    """Of two rows each; maxima 1 to 4. The first one is larger than the maximum."""
    world = make(clipper(), "r0")
    arrive(world, 10, rows=2)
    for _ in range(3):
        finish(world, 1 * MS)
    assert batches(world) == [2, 2, 2, 4]


def test_clipper_learns_nothing_from_what_came_back() -> None:
    world = make(clipper(), "r0")
    arrive(world, 10)
    finish(world, 1 * MS)
    finish(world, 1 * MS)
    lease = world.players["r0"].leases[0]
    world.advance(1 * MS)
    world.exchange("r0", [BatchFailed(lease.lease_id, FailureCause.OUT_OF_MEMORY, "")])
    world.scheduler.members.all()[0].memory.cap_rows = None
    finish(world, 1 * MS)
    assert batches(world) == [1, 2, 3, 1, 4]
    # One that leaves has no next maximum, and another one knows nothing.
    world.drain("r0")
    finish(world, 1 * MS)
    arrive(world, 10)
    world.start("r1", "m")
    world.exchange("r1")
    assert batches(world)[-1] == 1
    world.lose("r1", death=False)
    world.start("r1", "m")
    world.exchange("r1")
    assert batches(world)[-1] == 1
    finish(world, 1 * MS, "r1")
    assert batches(world)[-1] == 2


def test_clipper_drops_nobody() -> None:
    world = busy(clipper(), on_late=OnLate.DROP)
    first, *_ = arrive(world, 2)
    world.advance(1.0)
    finish(world)
    assert batch(world) == [first]
    assert expired(world) == []


# --- a fixed size --------------------------------------------------------------------------


def test_fixed_goes_at_its_own_size() -> None:
    world = make(fixed(), "r0", mode=BatchingMode.WINDOW, preferred_rows=(2,))
    arrive(world, 2)
    assert batches(world) == []
    assert world.scheduler.next_wakeup_s() == START_S + 10 * MS
    arrive(world)
    assert batches(world) == [3]


def test_fixed_goes_when_the_oldest_has_waited_for_the_timeout() -> None:
    world = make(fixed(), "r0")
    arrive(world)
    world.advance(4 * MS)
    arrive(world)
    world.advance(5 * MS)
    assert batches(world) == []
    world.advance(world.scheduler.next_wakeup_s() - world.now_s)
    assert world.now_s == pytest.approx(START_S + 10 * MS, abs=1e-9)
    assert batches(world) == [2]


def test_fixed_leaves_the_rest_to_wait() -> None:
    world = busy(fixed())
    finish(world)
    world.start("r1", "m")
    world.exchange("r1")
    arrive(world, 7)
    assert batches(world) == [1, 3, 3]
    assert world.scheduler.models["m"].queue.requests == 1


def test_fixed_gives_a_free_replica_what_timed_out_while_it_computed() -> None:
    world = busy(fixed())
    arrive(world, 2)
    world.advance(20 * MS)
    assert batches(world) == [1]
    finish(world)
    assert batches(world) == [1, 2]


def test_fixed_does_not_split_requests() -> None:
    world = make(fixed(), "r0")
    arrive(world, 2, rows=2)
    assert batches(world) == [2]


def test_fixed_is_bounded_by_what_fits_the_replica() -> None:
    world = make(fixed(batch_rows=8), "r0")
    arrive(world, 8)
    lease = world.players["r0"].leases[0]
    world.exchange("r0", [BatchFailed(lease.lease_id, FailureCause.OUT_OF_MEMORY, "")])
    assert batches(world) == [8, 4]


# --- Nexus ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target_ms", "rows"), [(24.0, 8), (23.9, 7), (10.0, 1), (6.0, 1), (1000.0, 16)]
)
def test_nexus_aims_at_half_the_target_a_batch(target_ms: float, rows: int) -> None:
    world = busy(nexus(target_ms * MS))
    arrive(world, 40)
    finish(world)
    assert batches(world) == [1, rows]


def test_nexus_takes_no_more_than_fits_the_replica() -> None:
    world = profiled(make(nexus(), "r0"))
    arrive(world)
    arrive(world, 20)
    finish(world)
    lease = world.players["r0"].leases[0]
    world.exchange("r0", [BatchFailed(lease.lease_id, FailureCause.OUT_OF_MEMORY, "")])
    assert batches(world) == [1, 8, 4]


def test_nexus_does_not_wait_for_more() -> None:
    world = profiled(make(nexus(), "r0"))
    arrive(world)
    assert batches(world) == [1]


@pytest.mark.parametrize("on_late", OnLate)
def test_nexus_drops_whoever_cannot_have_the_whole_window(on_late: OnLate) -> None:
    """4 have 10 ms left, enough for the 8 ms of their own batch; one of 8 rows takes 12 ms."""
    world = busy(nexus(), on_late=on_late)
    old = arrive(world, 4)
    world.advance(14 * MS)
    young = arrive(world, 9)
    finish(world)
    assert batch(world) == young[:8]
    if on_late is OnLate.DROP:
        assert expired(world) == old
    else:
        # One is in time and goes first, and they are served when nobody is.
        finish(world, 12 * MS)
        assert batch(world) == young[8:]
        finish(world, 5 * MS)
        assert batch(world) == old
        assert expired(world) == []


def test_nexus_narrows_its_window_to_what_is_left() -> None:
    """7 rows take 11 ms, one more than the first has; 6 take the 10 ms of the second."""
    world = busy(nexus(), on_late=OnLate.DROP)
    old = arrive(world, 4)
    world.advance(14 * MS)
    young = arrive(world, 3)
    finish(world)
    assert expired(world) == old[:1]
    assert batch(world) == [*old[1:], *young]


def test_nexus_serves_the_late_in_batches_of_its_size() -> None:
    world = busy(nexus())
    arrive(world, 20)
    world.advance(25 * MS)
    finish(world)
    finish(world, 12 * MS)
    finish(world, 12 * MS)
    assert batches(world) == [1, 8, 8, 4]


def test_nexus_waits_for_nobody_once_all_are_dropped() -> None:
    world = busy(nexus(), on_late=OnLate.DROP)
    old = [*arrive(world, 3), *arrive(world, 3, signature="b")]
    world.advance(20 * MS)
    finish(world)
    assert expired(world) == old
    assert batches(world) == [1]
    assert world.scheduler.next_wakeup_s() == inf
    arrive(world)
    assert batches(world) == [1, 1]


def test_nexus_slides_over_one_signature_at_a_time() -> None:
    world = busy(nexus(), on_late=OnLate.DROP)
    old = arrive(world, 1, signature="b")
    world.advance(20 * MS)
    young = [request for _ in range(9) for request in arrive(world) + arrive(world, signature="c")]
    finish(world)
    assert expired(world) == old
    assert batch(world) == young[:16:2]


def test_nexus_minds_a_deadline_before_the_target() -> None:
    world = busy(nexus(), on_late=OnLate.DROP)
    hurried = world.arrive("m", deadline_in_s=6 * MS)
    other = arrive(world)
    world.advance(1 * MS)
    finish(world)
    assert expired(world) == [hurried]
    assert batch(world) == other


def test_nexus_takes_all_that_waits_until_something_is_learned() -> None:
    world = make(nexus())
    arrive(world, 20)
    world.advance(0.1)
    world.start("r0", "m")
    world.exchange("r0")
    assert batches(world) == [16]


# --- all of them ---------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=["clipper", "fixed", "nexus"])
def test_the_lowest_numbered_free_replica_goes_first(rule: Rule) -> None:
    world = make(rule(), "r0", "r1", "r2")
    arrive(world, 3)
    given = [action.lease.replica_id for action in world.log if isinstance(action, Dispatch)]
    assert given == ["r0", "r1", "r2"][: len(given)]
    assert given


@pytest.mark.parametrize("rule", RULES, ids=["clipper", "fixed", "nexus"])
def test_nobody_gets_a_batch_ahead(rule: Rule) -> None:
    world = busy(rule())
    world.exchange("r0")
    arrive(world, 20)
    world.advance(11 * MS)
    assert batches(world) == [1]
    finish(world)
    assert len(batches(world)) == 2


@pytest.mark.parametrize("rule", RULES, ids=["clipper", "fixed", "nexus"])
@pytest.mark.parametrize("mode", [BatchingMode.EAGER, BatchingMode.SLO])
def test_r6_suspects_run_alone_and_before_the_others(rule: Rule, mode: BatchingMode) -> None:
    world = profiled(make(rule(), "r0", mode=mode))
    arrive(world, 3)
    if batches(world) == [1]:
        finish(world, 1 * MS)
    shared = batch(world)
    assert len(shared) >= 2
    arrive(world, 4)
    world.lose("r0", death=True)
    for replica in ("r1", "r2"):
        world.start(replica, "m")
        world.exchange(replica)
    leases = [action.lease for action in world.log if isinstance(action, Dispatch)][-2:]
    assert [lease.requests for lease in leases] == [(request,) for request in shared[:2]]
    assert all(lease.sole for lease in leases)


@pytest.mark.parametrize("rule", RULES, ids=["clipper", "fixed", "nexus"])
def test_r3_a_batch_has_one_signature_and_bounded_bytes(rule: Rule) -> None:
    """Requests of 10 bytes, two of which fit."""
    world = busy(rule(), max_lease_bytes=25)
    arrive(world, 4)
    arrive(world, 4, signature="b")
    world.advance(11 * MS)
    for _ in range(4):
        finish(world)
    assert batches(world) == [1, 2, 2, 2, 2]


@pytest.mark.parametrize("rule", RULES, ids=["clipper", "fixed", "nexus"])
def test_a_model_without_a_batch_dimension_gets_one_request_at_a_time(
    rule: Rule,
) -> None:
    world = busy(rule(), max_batch_rows=0)
    arrive(world, 3)
    for _ in range(3):
        finish(world)
    assert batches(world) == [1, 1, 1, 1]


STEPS = st.lists(
    st.sampled_from(
        ["arrive", "large", "other", "cancel", "finish", "fail", "die", "stop", "wait"]
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(
    rule=st.sampled_from(RULES),
    mode=st.sampled_from(BatchingMode),
    on_late=st.sampled_from(OnLate),
    steps=STEPS,
)
def test_r1_every_request_has_exactly_one_outcome(
    rule: Rule, mode: BatchingMode, on_late: OnLate, steps: list[str]
) -> None:
    """World holds that none has two, and the core's other invariants, at each step."""
    world = make(rule(), "r0", "r1", mode=mode, on_late=on_late, max_batch_rows=4)
    for number, step in enumerate(steps):
        replica = next(iter(world.players))
        leases = world.players[replica].leases
        match step:
            case "arrive":
                arrive(world, 3)
            case "large":
                arrive(world, rows=3)
            case "other":
                arrive(world, signature="b")
            case "cancel" if world.requests:
                world.cancel(world.requests[max(world.requests)])
            case "finish" if leases:
                finish(world, 6 * MS, replica)
            case "fail" if leases:
                failed = BatchFailed(leases[0].lease_id, FailureCause.OUT_OF_MEMORY, "")
                world.exchange(replica, [failed])
            case "die" | "stop":
                world.lose(replica, death=step == "die")
                world.start(f"next{number}", "m")
                world.exchange(f"next{number}")
            case "wait":
                world.advance(11 * MS)
    world.serve_all()
    assert set(world.outcomes) == set(world.requests)


@pytest.mark.parametrize(
    ("assignment", "least"), [(clipper(12 * MS), 0.9), (fixed(8), 0.9), (nexus(25 * MS), 0.9)]
)
def test_they_serve_in_the_simulator(assignment: Assignment, least: float) -> None:
    """At 0.4 of what two replicas can do in time, where all of them are at ease."""
    times = BatchTimes.linear(1 * MS, 4 * MS)
    scenario = Scenario(
        Poisson(0.4 * 2 * 12 / times.mean_s(12)).times_s(1.0, np.random.default_rng(1)),
        1.0,
        25 * MS,
        Hardware(times),
        32,
        BatchingMode.EAGER,
    )
    run = run_fixed(scenario, 2, seed=1, assignment=assignment)
    assert run.book.succeeded == len(scenario.arrived_s)
    assert run.figures.attainment >= least
