"""R1 to R7 under random events: see `World`, which checks them after every one."""

from math import inf

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.core.world import World
from tideserve.server.core.actions import FailureCause
from tideserve.server.core.outcomes import BatchDone, BatchFailed, Outcome
from tideserve.server.core.replicas import ReplicaState
from tideserve.server.core.settings import (
    BatchingMode,
    BatchSettings,
    LeaseSettings,
    ModelSettings,
    OnLate,
    QueuePolicy,
    QueueSettings,
    TimeoutAction,
)

MODELS = {
    "eager": ModelSettings(
        QueueSettings(max_requests=40, max_rows=60),
        BatchSettings(max_batch_rows=8, max_lease_bytes=60),
    ),
    "window": ModelSettings(
        QueueSettings(
            priority_levels=3,
            default_priority=2,
            default_policy=QueuePolicy(timeout_s=2.0),
            priority_policies=(
                (3, QueuePolicy(TimeoutAction.DELAY, timeout_s=0.3, max_queue_requests=6)),
            ),
        ),
        BatchSettings(BatchingMode.WINDOW, 8, (4, 6), max_queue_delay_s=0.1),
    ),
    "single": ModelSettings(batch=BatchSettings(max_batch_rows=0)),
    "ordered": ModelSettings(
        QueueSettings(max_requests=12), BatchSettings(max_batch_rows=4, preserve_ordering=True)
    ),
    "slo": ModelSettings(
        QueueSettings(priority_levels=2, default_priority=1),
        BatchSettings(BatchingMode.SLO, 8, max_lease_bytes=60, target_s=0.2),
    ),
    "slo_drop": ModelSettings(
        QueueSettings(max_requests=30),
        BatchSettings(BatchingMode.SLO, 8, target_s=0.03, on_late=OnLate.DROP),
    ),
    "once": ModelSettings(
        batch=BatchSettings(max_batch_rows=4), lease=LeaseSettings(False, max_batch_time_s=3.0)
    ),
}
names = st.sampled_from(sorted(MODELS))
picks = st.integers(0, 10_000)
results = st.sampled_from([None, None, None, FailureCause.MODEL_ERROR, FailureCause.OUT_OF_MEMORY])


def outcome_of(lease_id: int, result: FailureCause | None) -> Outcome:
    return BatchDone(lease_id, 0.02) if result is None else BatchFailed(lease_id, result, "why")


class SchedulerMachine(RuleBasedStateMachine):
    """Any order of everything that may happen to a scheduler."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World({})
        self.models: list[str] = []
        self.started = 0

    @initialize(models=st.lists(names, min_size=1, max_size=2, unique=True), replicas=picks)
    def begin(self, models: list[str], replicas: int) -> None:
        self.models = models
        for model in models:
            self.world.scheduler.add_model(model, MODELS[model])
        self.start(list(range(1 + replicas % 4)), asks=replicas % 2 == 0)

    def pick(self, pick: int) -> str:
        ids = list(self.world.players)
        return ids[pick % len(ids)]

    def has_replicas(self) -> bool:
        return bool(self.world.players)

    @rule(
        model=picks,
        rows=st.lists(st.integers(1, 4), min_size=1, max_size=8),
        signatures=st.sampled_from(["a", "a", "ab", "aab", "abb"]),
        priority=st.integers(0, 4),
        deadline_s=st.sampled_from([inf, inf, 0.05, 0.5, 3.0]),
        timeout_s=st.sampled_from([None, None, 0.1, 1.0]),
    )
    def arrive(
        self,
        model: int,
        rows: list[int],
        signatures: str,
        priority: int,
        deadline_s: float,
        timeout_s: float | None,
    ) -> None:
        for number, count in enumerate(rows):
            self.world.arrive(
                self.models[model % len(self.models)],
                count,
                signatures[number % len(signatures)],
                payload_bytes=10 * count,
                priority=priority,
                deadline_in_s=deadline_s,
                timeout_s=timeout_s,
            )

    @precondition(lambda self: self.world.requests)
    @rule(pick=picks)
    def cancel(self, pick: int) -> None:
        requests = list(self.world.requests.values())
        self.world.cancel(requests[-1 - pick % min(12, len(requests))])

    @precondition(lambda self: len(self.world.players) < 4)
    @rule(models=st.lists(picks, min_size=1, max_size=3), asks=st.booleans())
    def start(self, models: list[int], asks: bool) -> None:
        for model in models:
            self.started += 1
            replica_id = f"r{self.started}"
            self.world.start(replica_id, self.models[model % len(self.models)])
            if asks:
                self.world.exchange(replica_id)

    @precondition(has_replicas)
    @rule(
        pick=picks,
        results=st.lists(results, max_size=2),
        want=st.sampled_from([True] * 4 + [False]),
    )
    def exchange(self, pick: int, results: list[FailureCause | None], want: bool) -> None:
        player = self.world.players[self.pick(pick)]
        outcomes = [
            outcome_of(lease.lease_id, result)
            for lease, result in zip(player.leases, results, strict=False)
        ]
        self.world.exchange(player.replica_id, outcomes, want=want)

    @precondition(has_replicas)
    @rule(pick=picks, result=results)
    def answer_all(self, pick: int, result: FailureCause | None) -> None:
        player = self.world.players[self.pick(pick)]
        outcomes = [outcome_of(lease.lease_id, result) for lease in player.leases]
        self.world.exchange(player.replica_id, outcomes)

    @precondition(lambda self: self.world.players and self.world.lease_ids)
    @rule(pick=picks, lease=picks, result=results)
    def late_or_foreign_outcome(self, pick: int, lease: int, result: FailureCause | None) -> None:
        lease_ids = self.world.lease_ids
        lease_id = lease_ids[lease % len(lease_ids)]
        self.world.exchange(self.pick(pick), [outcome_of(lease_id, result)] * 2)

    @precondition(has_replicas)
    @rule(pick=picks, step=st.sampled_from([0, 0, -1, -2]), want=st.booleans())
    def repeat(self, pick: int, step: int, want: bool) -> None:
        player = self.world.players[self.pick(pick)]
        if player.sequence + step < 1:
            step = 1
        self.world.exchange(player.replica_id, step=step, want=want)

    @precondition(lambda self: self.world.open_calls)
    @rule(pick=picks)
    def lose_call(self, pick: int) -> None:
        calls = list(self.world.open_calls)
        self.world.lose_call(calls[pick % len(calls)])

    @precondition(lambda self: not self.world.fail_next_delivery)
    @rule()
    def fail_next_delivery(self) -> None:
        self.world.fail_next_delivery = True

    @precondition(has_replicas)
    @rule(pick=picks, how=st.sampled_from(["drain", "drain", "close", "die", "stop", "silent"]))
    def end(self, pick: int, how: str) -> None:
        replica_id = self.pick(pick)
        record = self.world.scheduler.members.get(replica_id)
        assert record is not None
        match how:
            case "drain":
                held = list(record.leases)
                self.world.drain(replica_id)
                assert list(record.leases) == held, "S4: draining takes nothing away"
            case "close":
                self.world.close_life_line(replica_id)
            case "silent":
                self.world.advance(1.4, silent=[replica_id])
                assert replica_id not in self.world.players
            case _:
                self.world.lose(replica_id, death=how == "die")

    @rule(dt_s=st.sampled_from([0.0, 0.001, 0.01, 0.05, 0.2, 0.2, 1.0, 11.0]))
    def advance(self, dt_s: float) -> None:
        self.world.advance(dt_s)

    @rule(gap_s=st.sampled_from([0.0, 0.6, 0.9]))
    def suspend(self, gap_s: float) -> None:
        living = set(self.world.players)
        self.world.beat()
        self.world.turn(tick=True)
        living &= set(self.world.players)
        self.world.suspend(gap_s)
        hung = living - set(self.world.players)
        for replica_id in hung:
            record = self.world.scheduler.members.get(replica_id)
            assert record is not None
            assert "batch" in record.reason, "a stall of ours made a replica LOST"

    @rule(model=picks, really=st.integers(0, 5))
    def fail_queued(self, model: int, really: int) -> None:
        if really == 0:
            key = self.models[model % len(self.models)]
            self.world.perform(self.world.scheduler.fail_queued(key, "given up"))
            self.world.turn()

    @precondition(has_replicas)
    @rule(steps=st.lists(st.tuples(st.sampled_from("aaaqqqqdc"), picks), min_size=8, max_size=30))
    def traffic(self, steps: list[tuple[str, int]]) -> None:
        """What goes on most of the time: arrivals, replicas that ask and answer, a cancel."""
        for verb, pick in steps:
            replica_id = self.pick(pick)
            player = self.world.players[replica_id]
            match verb:
                case "a":
                    self.world.arrive(
                        self.models[pick % len(self.models)], 1 + pick % 4, "aab"[pick % 3]
                    )
                case "q" if player.call_id is None:
                    self.world.exchange(replica_id)
                case "d" if player.leases:
                    self.world.exchange(replica_id, [outcome_of(player.leases[0].lease_id, None)])
                case "c" if self.world.requests:
                    self.cancel(pick)
                case _:
                    pass

    @precondition(lambda self: any(player.leases for player in self.world.players.values()))
    @rule(pick=picks)
    def die_at_work(self, pick: int) -> None:
        busy = [id_ for id_, player in self.world.players.items() if player.leases]
        self.world.close_life_line(busy[pick % len(busy)])

    def teardown(self) -> None:
        if not self.models:
            return
        self.world.fail_next_delivery = False
        self.world.serve_all()
        assert set(self.world.outcomes) >= set(self.world.requests), "R1: no outcome"
        for model in self.world.scheduler.models.values():
            assert model.ordering is None or len(model.ordering) == 0
        for record in self.world.scheduler.members.all():
            assert record.state is not ReplicaState.STANDBY


SchedulerMachine.TestCase.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TestScheduler = SchedulerMachine.TestCase
