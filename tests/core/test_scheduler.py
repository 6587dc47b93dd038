"""Scheduler: what single events lead to. Sequences are in transcripts/, any order of events
in test_invariants."""

import pytest

from tests.core.world import World
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
    RejectReason,
    ReplicaLost,
)
from tideserve.server.core.leases import (
    MIN_LEARNED_BATCH_TIME_S,
    UNLEARNED_BATCH_TIME_S,
    max_batch_time_s,
)
from tideserve.server.core.outcomes import BatchDone, BatchFailed
from tideserve.server.core.profile import Profile
from tideserve.server.core.replicas import Exchange, Replica
from tideserve.server.core.request import Request
from tideserve.server.core.scheduler import Scheduler
from tideserve.server.core.settings import (
    BatchingMode,
    BatchSettings,
    LeaseSettings,
    ModelSettings,
    QueueSettings,
)


def make(
    *,
    max_batch_rows: int = 4,
    lease: LeaseSettings | None = None,
    queue: QueueSettings | None = None,
    mode: BatchingMode = BatchingMode.EAGER,
    delay_s: float = 0.0,
    preserve_ordering: bool = False,
) -> World:
    batch = BatchSettings(
        mode, max_batch_rows, max_queue_delay_s=delay_s, preserve_ordering=preserve_ordering
    )
    return World({"m": ModelSettings(queue or QueueSettings(), batch, lease or LeaseSettings())})


def arrive(world: World, rows: int = 1, **options: float) -> Request:
    request = world.arrive("m", rows, **options)  # type: ignore[arg-type]
    assert isinstance(request, Request)
    return request


def record(world: World, replica_id: str) -> Replica:
    replica = world.scheduler.members.get(replica_id)
    assert replica is not None
    return replica


def of_kind(world: World, kind: type[Action]) -> list[Action]:
    return [action for action in world.log if isinstance(action, kind)]


def held(world: World, replica_id: str) -> list[int]:
    return [lease.lease_id for lease in world.players[replica_id].leases]


# --- requests ------------------------------------------------------------------------------


def test_a_rejection_says_the_bound_and_when_to_try_again() -> None:
    world = make(queue=QueueSettings(max_requests=8))
    for _ in range(8):
        arrive(world)
    world.scheduler.models["m"].profile.observe(4, 1.0)
    rejection = world.arrive("m")
    assert rejection == Rejection(RejectReason.QUEUE_REQUESTS, 8, retry_after_s=2.0)
    world.start("r1", "m")
    world.start("r2", "m")
    assert world.arrive("m") == Rejection(RejectReason.QUEUE_REQUESTS, 8, retry_after_s=1.0)


def test_a_deadline_that_passes_while_a_replica_has_it_changes_nothing() -> None:
    world = make()
    world.start("r1", "m")
    world.exchange("r1")
    request = arrive(world, deadline_in_s=0.1)
    world.advance(0.5)
    world.exchange("r1", [BatchDone(held(world, "r1")[0], 0.5)])
    assert world.outcomes == {request.request_id: "answered"}


def test_what_expired_since_the_last_tick_reaches_no_replica() -> None:
    world = make()
    request = arrive(world, deadline_in_s=0.1)
    world.start("r1", "m")
    world.now_s += 0.2
    player = world.players["r1"]
    scheduler = world.scheduler
    scheduler.on_exchange(
        "r1", player.epoch, Exchange(1, 1, world.now_s), (), world.now_s, want=True
    )
    assert scheduler.assign(world.now_s) == [Expire(request)]


def test_a_lease_that_returns_after_the_deadline_expires() -> None:
    world = make()
    world.start("r1", "m")
    world.exchange("r1")
    request = arrive(world, deadline_in_s=0.1)
    world.advance(0.5)
    world.lose("r1", death=False)
    assert world.outcomes == {request.request_id: "expired"}


def test_cancelling_twice_or_after_the_answer_does_nothing() -> None:
    world = make()
    request = arrive(world)
    world.start("r1", "m")
    world.exchange("r1")
    world.exchange("r1", [BatchDone(1, 0.1)])
    world.cancel(request)
    world.cancel(request)
    assert world.outcomes == {request.request_id: "answered"}


def test_when_the_last_suspect_is_cancelled_the_others_go_on() -> None:
    world = make(max_batch_rows=1)
    suspect = arrive(world)
    world.start("r1", "m")
    world.exchange("r1")
    world.close_life_line("r1")
    world.start("busy", "m")
    good = arrive(world)
    world.drain("busy")  # so that the suspect stays in the queue
    world.start("r2", "m")
    assert suspect.suspect
    world.cancel(suspect)
    world.exchange("r2")
    assert [lease.requests for lease in world.players["r2"].leases] == [(good,)]


def test_what_only_waits_for_a_suspect_to_leave_is_looked_at_again() -> None:
    world = make(max_batch_rows=1)
    arrive(world)
    world.start("r1", "m")
    world.exchange("r1")
    world.exchange("r1")  # asks for one more
    world.start("r2", "m")
    suspect = arrive(world)  # prefetched by r1 behind its own
    assert held(world, "r1") == [1, 2]
    world.exchange("r2")
    world.exchange("r1")
    world.lose("r1", death=True)
    assert held(world, "r2") == [3]
    world.exchange("r2")
    # r2 runs the suspect; the other waits, and goes when r2's hands are empty.
    assert world.scheduler.models["m"].queue.requests == 1
    world.exchange("r2", [BatchDone(3, 0.1)])
    assert [lease.requests for lease in world.players["r2"].leases] == [(suspect,)]


def test_a_cancelled_mate_does_not_make_a_death_a_sole_death() -> None:
    world = make()
    first, second = arrive(world), arrive(world)
    world.start("r1", "m")
    world.exchange("r1")
    world.cancel(second)
    world.close_life_line("r1")
    assert first.suspect
    assert first.sole_deaths == 0


def test_a_death_with_one_request_alone_counts_and_the_second_fails_it() -> None:
    world = make()
    request = arrive(world)
    for number in (1, 2):
        world.start(f"r{number}", "m")
        world.exchange(f"r{number}")
        world.close_life_line(f"r{number}")
    assert world.outcomes == {request.request_id: FailureCause.KILLS_REPLICAS.value}
    assert record(world, "r2").attributed
    assert not record(world, "r1").attributed


@pytest.mark.parametrize("wanted_end", ["stop", "drain"])
def test_an_end_that_was_wanted_counts_as_no_death(wanted_end: str) -> None:
    world = make()
    request = arrive(world)
    for number in range(5):
        world.start(f"r{number}", "m")
        world.exchange(f"r{number}")
        if wanted_end == "stop":
            world.lose(f"r{number}", death=False)
        else:
            world.drain(f"r{number}")
            world.close_life_line(f"r{number}")
    assert not request.suspect
    assert world.outcomes == {}


def test_a_model_that_is_not_retryable_fails_what_a_lost_replica_may_have_run() -> None:
    world = make(lease=LeaseSettings(retryable=False))
    request = arrive(world)
    world.start("r1", "m")
    world.exchange("r1")
    world.lose("r1", death=False)
    assert world.outcomes == {request.request_id: FailureCause.NOT_RETRYABLE.value}


def test_out_of_memory_runs_nothing_twice_where_the_model_is_not_retryable() -> None:
    world = make(lease=LeaseSettings(retryable=False))
    requests = [arrive(world), arrive(world)]
    world.start("r1", "m")
    world.exchange("r1")
    world.exchange("r1", [BatchFailed(1, FailureCause.OUT_OF_MEMORY, "")])
    assert world.outcomes == {request.request_id: "out_of_memory" for request in requests}
    assert record(world, "r1").batch_cap_rows == 1


def test_one_request_that_is_too_large_alone_leaves_the_cap_as_it_is() -> None:
    world = make()
    arrive(world, 4)
    world.start("r1", "m")
    world.exchange("r1")
    world.exchange("r1", [BatchFailed(1, FailureCause.OUT_OF_MEMORY, "")])
    assert record(world, "r1").batch_cap_rows is None


def test_a_request_larger_than_a_halved_cap_still_runs() -> None:
    world = make()
    small, large = arrive(world, 1), arrive(world, 3)
    world.start("r1", "m")
    world.exchange("r1")
    world.exchange("r1", [BatchFailed(1, FailureCause.OUT_OF_MEMORY, "")])
    world.exchange("r1", [BatchDone(2, 0.1)])
    world.exchange("r1", [BatchDone(3, 0.1)])
    assert set(world.outcomes) == {small.request_id, large.request_id}


@pytest.mark.parametrize("cause", [FailureCause.MODEL_ERROR, FailureCause.BAD_OUTPUT])
def test_a_model_error_fails_its_batch_only_with_the_models_own_words(cause: FailureCause) -> None:
    world = make(max_batch_rows=2)
    failed = [arrive(world), arrive(world)]
    other = arrive(world)
    world.start("r1", "m")
    world.exchange("r1")
    world.exchange("r1", [BatchFailed(1, cause, "shape mismatch")])
    world.exchange("r1", [BatchDone(2, 0.1)])
    assert of_kind(world, Fail) == [Fail(request, cause, "shape mismatch") for request in failed]
    assert world.outcomes[other.request_id] == "answered"


# --- models --------------------------------------------------------------------------------


def test_removing_a_model_fails_what_waits_and_what_runs_and_drops_late_outcomes() -> None:
    world = make(max_batch_rows=1)
    requests = [arrive(world), arrive(world), arrive(world)]
    world.start("r1", "m")
    world.exchange("r1")
    world.exchange("r1", [BatchDone(1, 0.1)])
    assert not world.scheduler.is_idle("m")
    world.perform(world.scheduler.remove_model("m", "unloaded"))
    assert [world.outcomes[request.request_id] for request in requests] == [
        "answered",
        "unavailable",
        "unavailable",
    ]
    call_id = world.exchange("r1", [BatchDone(2, 0.1)], want=False)
    assert world.log[-1] == AnswerEmpty(call_id, 3, drain=False, dropped_lease_ids=(2,))
    world.advance(0.1)


def test_a_queue_is_opened_once() -> None:
    scheduler = Scheduler()
    scheduler.add_model("m", ModelSettings())
    with pytest.raises(AssertionError, match="m has a queue already"):
        scheduler.add_model("m", ModelSettings())


def test_removing_an_ordered_model_releases_the_answers_it_held() -> None:
    world = make(max_batch_rows=1, preserve_ordering=True)
    first, second = arrive(world), arrive(world)
    for replica_id in ("r1", "r2"):
        world.start(replica_id, "m")
        world.exchange(replica_id)
    world.exchange("r2", [BatchDone(2, 0.1)])
    assert world.outcomes == {}
    actions = world.scheduler.remove_model("m", "unloaded")
    assert [type(action) for action in actions] == [Fail, Complete]
    assert (first.done, second.done) == (True, True)


def test_held_answers_count_as_waiting_so_that_they_are_bounded() -> None:
    world = make(max_batch_rows=1, preserve_ordering=True, queue=QueueSettings(max_requests=3))
    arrive(world)
    world.start("slow", "m")
    world.exchange("slow")
    world.start("r1", "m")
    world.exchange("r1")
    for lease_id in (2, 3, 4):
        arrive(world)
        world.exchange("r1", [BatchDone(lease_id, 0.0)])
    rejection = world.arrive("m")
    assert isinstance(rejection, Rejection)
    assert rejection.reason is RejectReason.QUEUE_REQUESTS
    world.exchange("slow", [BatchDone(1, 0.0)])
    assert list(world.outcomes.values()) == ["answered"] * 4
    arrive(world)


def test_what_held_answers_keep_counts_in_bytes_too() -> None:
    """16,384 of them were allowed, however large."""
    queue = QueueSettings(max_bytes=1000)
    world = make(max_batch_rows=2, preserve_ordering=True, queue=queue)
    arrive(world)
    world.start("slow", "m")
    world.exchange("slow")
    second, _ = arrive(world), arrive(world)
    world.start("r1", "m")
    world.exchange("r1")
    (lease,) = record(world, "r1").leases.values()
    assert len(lease.requests) == 2
    lease.output_bytes = 1000
    ordering = world.scheduler.models["m"].ordering
    assert ordering is not None
    world.exchange("r1", [BatchDone(2, 0.0)])
    assert ordering.held_bytes == 1000 + 2 * second.payload_bytes
    rejection = world.arrive("m")
    assert isinstance(rejection, Rejection)
    assert (rejection.reason, rejection.limit) == (RejectReason.QUEUE_BYTES, 1000)
    world.cancel(second)
    assert ordering.held_bytes == 1000 + second.payload_bytes
    world.exchange("slow", [BatchDone(1, 0.0)])
    assert (ordering.held, ordering.held_bytes, ordering._held_of) == (0, 0, {})
    arrive(world)


# --- exchanges -----------------------------------------------------------------------------


def test_calls_of_another_life_or_of_no_number_are_refused() -> None:
    world = make()
    world.start("r1", "m")
    world.players["r1"].epoch += 1
    world.exchange("r1")
    world.players["r1"].epoch -= 1
    world.players["r1"].sequence = 0
    world.exchange("r1", step=0)
    refusals = [action.reason for action in world.log if isinstance(action, RefuseCall)]
    assert refusals == [
        "this life of the replica is over: join again",
        "expected Exchange 0 or 1, got 0",
    ]


def test_a_repeat_that_wants_nothing_gets_nothing() -> None:
    world = make()
    world.start("r1", "m")
    world.exchange("r1", want=False)
    call_id = world.exchange("r1", step=0, want=False)
    assert world.log[-1] == AnswerEmpty(call_id, 1, drain=False, dropped_lease_ids=())


def test_a_repeat_hears_again_which_outcomes_were_dropped() -> None:
    world = make()
    world.start("r1", "m")
    world.exchange("r1", [BatchDone(77, 0.1)], want=False)
    call_id = world.exchange("r1", [BatchDone(77, 0.1)], step=0, want=False)
    assert world.log[-1] == AnswerEmpty(call_id, 1, drain=False, dropped_lease_ids=(77,))


def test_a_lease_that_was_repeated_stays_with_its_replica_whichever_call_ends() -> None:
    """The replica may have it from either, and compute."""
    world = make()
    arrive(world)
    world.start("r1", "m")
    first_call = world.exchange("r1")
    again = world.exchange("r1", step=0)
    for call_id in (first_call, again):
        assert world.scheduler.on_exchange_gone("r1", call_id, world.now_s) == []
        assert list(record(world, "r1").leases) == [1]


def test_an_outcome_of_another_replicas_lease_is_dropped() -> None:
    world = make()
    arrive(world)
    for replica_id in ("r1", "r2"):
        world.start(replica_id, "m")
        world.exchange(replica_id)
    world.exchange("r2", [BatchDone(1, 0.1)])
    assert world.outcomes == {}
    assert held(world, "r1") == [1]


def test_lease_ids_and_epochs_begin_where_the_frontend_says() -> None:
    scheduler = Scheduler(first_id=5_000)
    scheduler.members.announce("r1", "m", 0.0)
    assert scheduler.members.join("r1", 0.0) == 5_000


def test_work_goes_to_the_lowest_idle_replica() -> None:
    world = make(max_batch_rows=1)
    for replica_id in ("r1", "r2", "r3"):
        world.start(replica_id, "m")
    for replica_id in ("r3", "r2", "r1"):
        world.exchange(replica_id)
    arrive(world)
    world.exchange("r1")
    arrive(world)
    assert (held(world, "r1"), held(world, "r2"), held(world, "r3")) == ([1], [2], [])


# --- time ----------------------------------------------------------------------------------


def test_a_prefetched_batch_computes_from_when_the_one_before_is_answered() -> None:
    world = make(max_batch_rows=1, lease=LeaseSettings(max_batch_time_s=2.0))
    for _ in range(2):
        arrive(world)
    world.start("r1", "m")
    world.exchange("r1")
    world.exchange("r1")
    world.advance(1.5)
    world.exchange("r1", [BatchDone(1, 1.5)])
    world.advance(1.9)
    assert "r1" in world.players
    world.advance(0.3)
    assert "r1" not in world.players


def test_an_answer_to_the_younger_lease_leaves_the_older_ones_clock_alone() -> None:
    world = make(max_batch_rows=1, lease=LeaseSettings(max_batch_time_s=2.0))
    for _ in range(2):
        arrive(world)
    world.start("r1", "m")
    world.exchange("r1")
    world.exchange("r1")
    world.advance(1.5)
    world.exchange("r1", [BatchDone(2, 1.5)])
    world.advance(0.7)
    assert "r1" not in world.players


def test_a_stall_of_our_own_makes_nobody_lost() -> None:
    world = make(lease=LeaseSettings(max_batch_time_s=2.0))
    arrive(world)
    world.start("r1", "m")
    world.exchange("r1")
    world.advance(0.2)
    world.suspend(3600.0)
    assert "r1" in world.players
    world.advance(1.2, silent=["r1"])
    assert of_kind(world, ReplicaLost)


def test_a_beat_read_after_a_stall_is_not_moved_into_the_future() -> None:
    world = make()
    world.start("r1", "m")
    world.advance(0.2)
    world.now_s += 100.0
    world.beat()
    world.turn(tick=True)
    world.advance(1.2, silent=["r1"])
    assert "r1" not in world.players


def test_a_frontend_that_stalls_again_and_again_still_finds_a_silent_replica() -> None:
    world = make()
    world.start("r1", "m")
    world.advance(0.2)
    for _ in range(5):
        world.suspend(0.7)
    assert "r1" not in world.players


def test_a_replica_that_loads_may_be_silent_for_long() -> None:
    scheduler = Scheduler()
    scheduler.members.announce("r1", "m", 0.0)
    scheduler.members.join("r1", 0.0)
    now_s = 0.0
    while now_s < 29.0:
        now_s += 0.4
        assert scheduler.on_tick(now_s) == []
    for _ in range(5):
        now_s += 0.4
        lost = scheduler.on_tick(now_s)
        if lost:
            break
    assert lost == [ReplicaLost("r1", "no sign of life for 30 s", attributed=False)]


def test_a_batch_may_take_what_is_configured_else_ten_times_what_was_learned() -> None:
    profile = Profile()
    assert max_batch_time_s(LeaseSettings(), profile, 4) == UNLEARNED_BATCH_TIME_S
    profile.observe(4, 0.01)
    assert max_batch_time_s(LeaseSettings(), profile, 4) == MIN_LEARNED_BATCH_TIME_S
    profile.observe(8, 2.0)
    assert max_batch_time_s(LeaseSettings(), profile, 8) == 20.0
    assert max_batch_time_s(LeaseSettings(max_batch_time_s=3.0), profile, 8) == 3.0


def test_a_prefetched_batch_is_decided_when_the_one_before_is_nearly_done() -> None:
    world = make()
    world.scheduler.models["m"].profile.observe(1, 0.1)
    world.start("r1", "m")
    world.exchange("r1")
    arrive(world)
    world.exchange("r1")
    arrive(world)
    assert world.scheduler.next_wakeup_s() == pytest.approx(world.now_s + 0.098)
    world.start("r2", "m")
    world.exchange("r2")
    assert held(world, "r2") == [2]


def test_in_a_window_a_cancelled_head_leaves_nobody_behind() -> None:
    world = make(mode=BatchingMode.WINDOW, delay_s=0.05)
    world.start("r1", "m")
    world.exchange("r1")
    head = arrive(world)
    world.advance(0.03)
    mate = arrive(world)
    world.cancel(head)
    assert world.scheduler.next_wakeup_s() == pytest.approx(world.now_s + 0.05)
    world.advance(0.05)
    assert [lease.requests for lease in world.players["r1"].leases] == [(mate,)]


def test_a_lease_that_carries_nothing_waits_for_nothing() -> None:
    world = make()
    world.start("r1", "m")
    world.exchange("r1")
    world.advance(30.0)
    assert [type(action) for action in world.log] == [AnswerEmpty]
    assert not of_kind(world, Dispatch)
