"""The pure exchange state machine: which call comes next, what breaks, what is never lost."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from tideserve.replica.exchange import (
    PREFETCH_MAX_MISSES,
    PREFETCH_MIN_COMPUTE_S,
    PREFETCH_PROBE_BATCHES,
    Broken,
    Call,
    Compute,
    ExchangeState,
    Leave,
    Prefetch,
    Wait,
    Worker,
)
from tideserve.replica.wire import Answer, Lease

SLOW_S = 10 * PREFETCH_MIN_COMPUTE_S
FAST_S = PREFETCH_MIN_COMPUTE_S / 10
MAX_HELD_LEASES = 2  # as the frontend's core
MOVES_A_STEP = 12


def lease(number: int) -> Lease:
    return Lease(number, 1, ())


def computing(compute_s: float = SLOW_S, *, enabled: bool = True) -> ExchangeState:
    """A state whose second lease computes, after a first that took `compute_s`."""
    state = ExchangeState(Prefetch(enabled=enabled))
    assert state.next_for_compute() == Call(1, (), want=True)
    state.on_answer(Answer(1, lease(1)))
    assert state.next_for_compute() == Compute(lease(1))
    state.on_finished(b"one", compute_s)
    assert state.next_for_compute() == Call(2, (b"one",), want=True)
    state.on_answer(Answer(2, lease(2)))
    assert state.next_for_compute() == Compute(lease(2))
    return state


# --- in order ---------------------------------------------------------------------------------


def test_an_idle_replica_asks_computes_and_hands_back_with_its_next_call() -> None:
    state = ExchangeState(Prefetch(enabled=False))
    assert state.next_for_compute() == Call(1, (), want=True)
    state.on_answer(Answer(1))
    assert state.next_for_compute() == Call(2, (), want=True)
    state.on_answer(Answer(2, lease(7)))
    assert state.next_for_compute() == Compute(lease(7))
    state.on_finished(b"seven", SLOW_S)
    assert state.next_for_compute() == Call(3, (b"seven",), want=True)


def test_while_a_call_is_out_an_empty_handed_replica_waits() -> None:
    state = ExchangeState()
    state.next_for_compute()
    assert state.next_for_compute() == Wait()


def test_an_answer_that_came_twice_changes_nothing() -> None:
    state = ExchangeState()
    state.next_for_compute()
    state.on_answer(Answer(1, lease(1)))
    state.on_answer(Answer(1, lease(1)))
    assert state.next_for_compute() == Compute(lease(1))
    state.on_finished(b"one", FAST_S)
    assert state.next_for_compute() == Call(2, (b"one",), want=True)


def test_only_the_newest_number_is_the_newest() -> None:
    state = computing()
    assert state.next_for_link() == Call(3, (), want=True)
    assert state.is_newest(3)
    assert not state.is_newest(2)


# --- broken and refused -----------------------------------------------------------------------


def test_a_broken_newest_call_is_repeated_and_its_answer_counts_once() -> None:
    state = ExchangeState()
    state.next_for_compute()
    assert state.on_broken(1) is Broken.REPEAT
    assert state.on_broken(1) is Broken.REPEAT
    state.on_answer(Answer(1, lease(1)))
    assert state.next_for_compute() == Compute(lease(1))


def test_a_broken_call_that_a_newer_one_followed_ends_the_life() -> None:
    state = computing()
    state.next_for_link()
    state.on_finished(b"two", SLOW_S)
    assert state.next_for_compute() == Call(4, (b"two",), want=True)
    assert state.on_broken(3) is Broken.LIFE_OVER


def test_a_refused_newest_call_ends_the_life() -> None:
    state = ExchangeState()
    state.next_for_compute()
    assert not state.on_refused(1, repeated=False)


def test_outcomes_of_an_overtaken_call_do_not_wait_for_work_to_come() -> None:
    """Every caller may be waiting for them."""
    state = computing()
    assert state.next_for_link() == Call(3, (), want=True)
    state.on_answer(Answer(3, lease(3)))
    state.on_finished(b"two", SLOW_S)
    assert state.next_for_compute() == Compute(lease(3))
    assert state.next_for_link() == Call(4, (b"two",), want=True)
    state.on_finished(b"three", SLOW_S)
    assert state.next_for_compute() == Call(5, (b"three",), want=True)
    assert state.on_refused(4, repeated=False)
    assert state.link_has_work()
    assert state.next_for_link() == Call(6, (b"two",), want=False)


def test_outcomes_of_an_overtaken_call_travel_with_the_next() -> None:
    state = computing()
    state.next_for_link()
    state.on_finished(b"two", SLOW_S)
    overtaken = state.next_for_compute()
    assert overtaken == Call(4, (b"two",), want=True)
    state.on_answer(Answer(3, lease(3)))
    freeing = state.next_for_link()
    assert isinstance(freeing, Call)
    assert freeing.sequence == 5
    assert state.on_refused(4, repeated=False)
    assert state.next_for_compute() == Compute(lease(3))
    state.on_answer(Answer(5))
    assert state.next_for_link() == Call(6, (b"two",), want=True)


def test_a_repeated_call_that_is_refused_as_overtaken_ends_the_life() -> None:
    """Its first answer, lost on the way, may have held a lease that the newer call
    acknowledged unseen: only the end of the life gives it back."""
    state = computing()
    state.next_for_link()
    state.on_finished(b"two", SLOW_S)
    state.next_for_compute()
    assert state.on_broken(4) is Broken.REPEAT
    state.on_answer(Answer(3, lease(3)))
    assert isinstance(state.next_for_link(), Call)
    assert not state.on_refused(4, repeated=True)


# --- prefetch ---------------------------------------------------------------------------------


def test_slow_batches_are_prefetched_behind() -> None:
    state = computing(SLOW_S)
    assert state.link_has_work()
    assert state.next_for_link() == Call(3, (), want=True)
    assert not state.link_has_work()
    assert state.next_for_link() == Wait()


@pytest.mark.parametrize(("compute_s", "enabled"), [(FAST_S, True), (SLOW_S, False)])
def test_fast_batches_and_a_disabled_prefetch_ask_for_nothing_behind(
    compute_s: float, enabled: bool
) -> None:
    state = computing(compute_s, enabled=enabled)
    assert not state.link_has_work()
    assert state.next_for_link() == Wait()


def test_with_a_prefetched_lease_in_hand_no_third_is_asked_for() -> None:
    state = computing()
    state.next_for_link()
    state.on_answer(Answer(3, lease(3)))
    assert state.next_for_link() == Wait()


def test_a_prefetched_lease_computes_next_while_the_link_hands_the_outcome_over() -> None:
    state = computing()
    state.next_for_link()
    state.on_answer(Answer(3, lease(3)))
    state.on_finished(b"two", SLOW_S)
    assert state.next_for_compute() == Compute(lease(3))
    assert state.next_for_link() == Call(4, (b"two",), want=True)


def test_a_compute_thread_that_waits_beside_a_lease_is_freed() -> None:
    state = computing()
    state.next_for_link()
    state.on_finished(b"two", SLOW_S)
    assert state.next_for_compute() == Call(4, (b"two",), want=True)
    assert not state.link_has_work()
    state.on_answer(Answer(3, lease(3)))
    assert state.link_has_work()
    call = state.next_for_link()
    assert isinstance(call, Call)
    assert call.sequence == 5


def test_prefetches_that_bring_nothing_are_tried_seldom_and_one_hit_resumes_them() -> None:
    prefetch = Prefetch()
    prefetch.observe_compute(SLOW_S)
    for _ in range(PREFETCH_MAX_MISSES):
        assert prefetch.wanted()
        prefetch.observe_answer(hit=False)
    wanted = []
    for _ in range(4 * PREFETCH_PROBE_BATCHES):
        prefetch.observe_compute(SLOW_S)
        wanted.append(prefetch.wanted())
    assert wanted.count(True) == 4
    prefetch.observe_answer(hit=True)
    prefetch.observe_compute(SLOW_S)
    assert prefetch.wanted()


def test_compute_time_follows_what_batches_take() -> None:
    prefetch = Prefetch()
    assert not prefetch.wanted()
    prefetch.observe_compute(SLOW_S)
    assert prefetch.compute_s == SLOW_S
    for _ in range(30):
        prefetch.observe_compute(FAST_S)
    assert FAST_S < prefetch.compute_s < PREFETCH_MIN_COMPUTE_S
    assert not prefetch.wanted()


# --- drain ------------------------------------------------------------------------------------


def test_a_drained_replica_finishes_hands_back_and_leaves() -> None:
    state = computing()
    state.next_for_link()
    state.on_answer(Answer(3, lease(3)))
    state.on_drain()
    state.on_finished(b"two", SLOW_S)
    assert state.next_for_compute() == Compute(lease(3))
    assert state.next_for_link() == Call(4, (b"two",), want=False)
    state.on_answer(Answer(4))
    state.on_finished(b"three", SLOW_S)
    assert state.next_for_compute() == Call(5, (b"three",), want=False)
    state.on_answer(Answer(5))
    assert state.next_for_compute() == Leave()


def test_the_frontends_word_in_an_answer_drains() -> None:
    state = ExchangeState()
    state.next_for_compute()
    state.on_answer(Answer(1, drain=True))
    assert state.draining
    assert state.next_for_compute() == Leave()


def test_a_drain_frees_the_call_that_waits_for_a_lease() -> None:
    state = ExchangeState()
    state.next_for_compute()
    state.on_drain()
    assert state.next_for_link() == Call(2, (), want=False)
    state.on_answer(Answer(1))
    assert state.next_for_compute() == Wait()
    state.on_answer(Answer(2))
    assert state.next_for_compute() == Leave()


def test_a_drained_compute_thread_frees_a_prefetch_that_waits() -> None:
    state = computing()
    state.next_for_link()
    state.on_drain()
    state.on_finished(b"two", SLOW_S)
    assert state.next_for_compute() == Call(4, (b"two",), want=False)
    state.on_answer(Answer(4))
    state.on_answer(Answer(3))
    assert state.next_for_compute() == Leave()


# --- size -------------------------------------------------------------------------------------


def test_outcomes_that_do_not_fit_one_call_travel_in_order_with_several() -> None:
    state = ExchangeState(max_call_bytes=10)
    for outcome in (b"a" * 6, b"b" * 4, b"c" * 30, b"d"):
        state.on_finished(outcome, FAST_S)
    calls = []
    for _ in range(3):
        call = state.next_for_compute()
        assert isinstance(call, Call)
        calls.append(call)
        state.on_answer(Answer(call.sequence))
    assert [call.outcomes for call in calls] == [
        (b"a" * 6, b"b" * 4),
        (b"c" * 30,),
        (b"d",),
    ]
    assert [call.want for call in calls] == [False, False, True]


# --- properties -------------------------------------------------------------------------------


@dataclass
class Trip:
    """A worker's call: on its way, waiting at the frontend, or answered and on its way back."""

    call: Call
    repeated: bool = False
    arrived: bool = False
    answer: Answer | None = None
    refused: bool = False


@dataclass
class Frontend:
    """The frontend's rules of 15.3, and what it knows of leases."""

    newest: int = 0
    answered: dict[int, Answer] = field(default_factory=dict)
    waiting: int = 0
    held: set[int] = field(default_factory=set)
    given: int = 0
    outcomes: set[int] = field(default_factory=set)
    draining: bool = False


class Exchanges(RuleBasedStateMachine):
    """Two workers and a frontend whose calls are delayed, reordered, broken and repeated."""

    @initialize(prefetch=st.booleans(), max_call_bytes=st.sampled_from([1, 8, 10_000]))
    def begin(self, prefetch: bool, max_call_bytes: int) -> None:
        self.state = ExchangeState(Prefetch(enabled=prefetch), max_call_bytes=max_call_bytes)
        self.front = Frontend()
        self.trips: dict[Worker, Trip] = {}
        self.sent: dict[int, Call] = {}
        self.reached: dict[int, Call] = {}
        self.computed: list[int] = []
        self.received: list[int] = []
        self.over = False
        self.left = False

    def alive(self) -> bool:
        return not (self.over or self.left)

    @rule(seed=st.integers(0, 1 << 32))
    def things_happen(self, seed: int) -> None:
        """Several at once: drawn one by one, lives end before they have held two leases."""
        chance = Random(seed)
        for _ in range(MOVES_A_STEP):
            if self.alive():
                chance.choice(self.moves())()
                self.at_most_one_lease_waits_behind_the_one_that_computes()
                self.every_lease_that_the_frontend_holds_is_with_the_replica_or_on_its_way()
                self.every_outcome_is_handed_over_or_still_with_the_replica()

    def moves(self) -> list[Callable[[], None]]:
        """What can happen now; what ends everything is one of many."""
        front, state = self.front, self.state
        moves: list[Callable[[], None]] = []
        if not self.busy():
            moves += 2 * [self.compute_thread_steps]
        if Worker.LINK not in self.trips:
            moves += 2 * [self.link_thread_steps]
        if state.computing is not None:
            moves += [partial(self.batch_ends, True), partial(self.batch_ends, False)]
        for worker, trip in self.trips.items():
            if not trip.arrived:
                moves += 3 * [partial(self.request_arrives, worker)]
            if trip.refused or trip.answer is not None:
                moves += 3 * [partial(self.answer_arrives, worker)]
            if not trip.refused:
                moves.append(partial(self.call_breaks, worker))
        if front.waiting:
            moves += [
                partial(self.frontend_answers, True),
                *(3 * [partial(self.frontend_answers, False)]),
            ]
        return moves * 40 + [self.signal_drains, self.frontend_drains]

    # --- the replica --------------------------------------------------------------------------

    def compute_thread_steps(self) -> None:
        match self.state.next_for_compute():
            case Call() as call:
                self.send(Worker.COMPUTE, call)
            case Compute(taken):
                assert taken.lease_id not in self.computed
                self.computed.append(taken.lease_id)
            case Leave():
                self.left = True
            case Wait():
                assert self.trips or self.state.draining

    def busy(self) -> bool:
        return self.state.computing is not None or Worker.COMPUTE in self.trips

    def link_thread_steps(self) -> None:
        works = self.state.link_has_work()
        step = self.state.next_for_link()
        assert works == isinstance(step, Call)
        if isinstance(step, Call):
            self.send(Worker.LINK, step)

    def batch_ends(self, slow: bool) -> None:
        assert self.state.computing is not None
        number = self.state.computing.lease_id
        self.state.on_finished(b"%05d" % number, SLOW_S if slow else FAST_S)

    def signal_drains(self) -> None:
        self.state.on_drain()

    def nothing_more_happens(self) -> None:
        """A life that is over, or a replica that left, has no further steps."""

    def send(self, worker: Worker, call: Call) -> None:
        assert call.sequence == len(self.sent) + 1, "numbers grow by one"
        self.sent[call.sequence] = call
        self.trips[worker] = Trip(call)

    # --- the network --------------------------------------------------------------------------

    def request_arrives(self, worker: Worker) -> None:
        trip = self.trips[worker]
        trip.arrived = True
        front, call = self.front, trip.call
        assert self.reached.setdefault(call.sequence, call) == call, "a repeat has the same content"
        if call.sequence < front.newest:
            trip.refused = True
            return
        if call.sequence > front.newest:
            self.answer_waiting(None)
            front.newest = call.sequence
            for outcome in call.outcomes:
                number = int(outcome)
                front.held.discard(number)
                assert number not in front.outcomes, "an outcome is handed over once"
                front.outcomes.add(number)
        elif call.sequence in front.answered:
            trip.answer = front.answered[call.sequence]
            return
        front.waiting = call.sequence
        if not call.want or front.draining:
            self.answer_waiting(None)

    def answer_waiting(self, given: Lease | None) -> None:
        front = self.front
        if not front.waiting:
            return
        answer = Answer(front.waiting, given, drain=front.draining)
        front.answered[front.waiting] = answer
        for trip in self.trips.values():
            if trip.call.sequence == front.waiting and trip.arrived:
                trip.answer = answer
        front.waiting = 0

    def frontend_answers(self, empty: bool) -> None:
        front = self.front
        if empty or len(front.held) >= MAX_HELD_LEASES:
            self.answer_waiting(None)
            return
        front.given += 1
        front.held.add(front.given)
        self.answer_waiting(lease(front.given))

    def frontend_drains(self) -> None:
        self.front.draining = True
        self.answer_waiting(None)

    def answer_arrives(self, worker: Worker) -> None:
        trip = self.trips[worker]
        if trip.refused:
            del self.trips[worker]
            self.over = not self.state.on_refused(trip.call.sequence, repeated=trip.repeated)
        elif trip.answer is not None:
            del self.trips[worker]
            if trip.answer.lease is not None:
                self.received.append(trip.answer.lease.lease_id)
            self.state.on_answer(trip.answer)

    def call_breaks(self, worker: Worker) -> None:
        trip = self.trips[worker]
        if self.front.waiting == trip.call.sequence:
            self.front.waiting = 0
        if self.state.on_broken(trip.call.sequence) is Broken.LIFE_OVER:
            self.over = True
            return
        self.trips[worker] = Trip(trip.call, repeated=True)

    # --- what holds ---------------------------------------------------------------------------

    @invariant()
    def at_most_one_lease_waits_behind_the_one_that_computes(self) -> None:
        in_hand = len(self.received) - len(self.computed)
        assert in_hand + (self.state.computing is not None) <= MAX_HELD_LEASES

    @invariant()
    def at_most_two_calls_are_out(self) -> None:
        if self.alive():
            assert len(self.trips) <= len(Worker)

    @invariant()
    def leases_compute_in_the_order_they_came(self) -> None:
        assert self.computed == self.received[: len(self.computed)]

    @invariant()
    def every_lease_that_the_frontend_holds_is_with_the_replica_or_on_its_way(self) -> None:
        """Never one that nobody can name while the life goes on."""
        doomed = any(
            trip.repeated and trip.call.sequence < self.front.newest for trip in self.trips.values()
        )
        # A repeated call that was overtaken will be refused, which ends the life.
        if self.over or doomed:
            return
        on_the_way = {
            answer.lease.lease_id
            for trip in self.trips.values()
            if trip.call.sequence == self.front.newest or trip.arrived
            for answer in [self.front.answered.get(trip.call.sequence)]
            if answer is not None and answer.lease is not None
        }
        pending = {int(outcome) for trip in self.trips.values() for outcome in trip.call.outcomes}
        assert self.front.held <= set(self.received) | on_the_way | pending

    @invariant()
    def every_outcome_is_handed_over_or_still_with_the_replica(self) -> None:
        if self.over:
            return
        carried = [outcome for trip in self.trips.values() for outcome in trip.call.outcomes]
        waiting = [outcome.message for outcome in self.state._outcomes]
        kept = {int(outcome) for outcome in (*carried, *waiting)}
        now = {self.state.computing.lease_id} if self.state.computing is not None else set()
        assert set(self.computed) == self.front.outcomes | kept | now

    @invariant()
    def no_outcome_waits_for_a_call_that_waits_for_work(self) -> None:
        """There may be no work before that outcome is known."""
        trip = self.trips.get(Worker.COMPUTE)
        if self.over or not self.state._outcomes or trip is None or Worker.LINK in self.trips:
            return
        waits = trip.call.want and self.state.is_newest(trip.call.sequence)
        assert not waits or self.state.link_has_work()

    def teardown(self) -> None:
        """A replica that left handed every outcome over, and computed all it was given."""
        if getattr(self, "left", False):
            assert self.computed == self.received
            assert self.front.outcomes == set(self.computed)
            assert not self.front.held


def test_no_lease_and_no_outcome_is_lost_whatever_the_network_does() -> None:
    run_state_machine_as_test(
        Exchanges,
        settings=settings(max_examples=300, stateful_step_count=30, deadline=None),
    )
