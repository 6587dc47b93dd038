"""Which replica gets which batch, decided when everything that happened is known."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from mypy_extensions import mypyc_attr

from tideserve.server.core.actions import Action, Dispatch
from tideserve.server.core.batching import Form, Wait, choose
from tideserve.server.core.leases import Lease
from tideserve.server.core.model import Model
from tideserve.server.core.profile import Profile
from tideserve.server.core.replicas import Replica, ReplicaState
from tideserve.server.core.request import Request
from tideserve.server.core.settings import BatchingMode
from tideserve.server.core.slo import Outlook, choose_in_time

# A batch for a replica that still computes is decided this long before it should be done.
PREFETCH_LEAD_S: Final = 0.002


@mypyc_attr(allow_interpreted_subclasses=True)  # the simulator's other rules
class Assignment:
    """Owns the numbering of leases. Work goes to replicas with empty hands first, among
    these to the lowest number, so that spare replicas show as idle.

    `_decide` is the rule that another kind of batching replaces (`tideserve.sim.baselines`).
    """

    def __init__(self, first_lease_id: int = 1) -> None:
        self._next_lease_id = first_lease_id

    def assign(
        self, key: Hashable, model: Model, replicas: Iterable[Replica], now_s: float
    ) -> list[Action]:
        """Hands out what waits for one model; sets `decide_at_s` where waiting is better."""
        model.decide_at_s = inf
        model.deaf_until_s = -inf
        if not model.queue.requests:
            if model.earliest_free_s > now_s:
                # What was known when the last batch was decided may be over: it ended early,
                # or another replica came.
                model.earliest_free_s = _earliest_free_s(model, _ready(key, replicas), now_s)
            return []
        actions = model.expire_overdue(now_s)
        model.decide_at_s = inf
        ready = _ready(key, replicas)
        candidates = [replica for replica in ready if replica.has_room()]
        in_time = model.settings.batch.mode is BatchingMode.SLO
        if len(candidates) > 1:
            differ = in_time and len({replica.device for replica in candidates}) > 1
            candidates.sort(key=_fastest_first(model) if differ else _preference)
        deaf_until_s = inf if in_time else -inf
        for replica in candidates:
            if not model.queue.requests:
                deaf_until_s = -inf
                break
            if model.queue.suspects:
                deaf_until_s = -inf
                actions += self._give_suspect(model, replica, now_s)
                continue
            decision = self._decide(model, replica, ready, actions, now_s)
            if isinstance(decision, Form):
                given = self._give(
                    model, replica, decision.requests, decision.rows, now_s, sole=False
                )
                actions.append(given)
            elif decision is None:
                deaf_until_s = -inf
            else:
                until_s = decision.until_s
                model.decide_at_s = min(model.decide_at_s, until_s)
                deaf_until_s = min(deaf_until_s, until_s if decision.deaf else -inf)
                if in_time and not replica.leases:
                    # While an idle replica waits for more rows, none goes to another one.
                    break
        model.deaf_until_s = deaf_until_s
        if in_time:
            model.earliest_free_s = _earliest_free_s(model, ready, now_s)
        return actions

    def _decide(
        self,
        model: Model,
        replica: Replica,
        ready: list[Replica],
        actions: list[Action],
        now_s: float,
    ) -> Form | Wait | None:
        """What this replica gets of what waits, no suspects among it. None: nothing before its
        own next outcome. What ends for it is added to `actions`."""
        settings = model.settings.batch
        if settings.mode is BatchingMode.SLO:
            profile = model.profiles.on(replica.device)
            # What nobody has timed is not waited with.
            if profile is not None:
                return _decide_in_time(model, profile, replica, ready, actions, now_s)
        decision = choose(model.queue.waiting(), settings, cap_rows_of(model, replica), now_s)
        if isinstance(decision, Form) and replica.leases and not decision.full:
            free_at_s = _free_at_s(model, replica) - PREFETCH_LEAD_S
            if free_at_s > now_s:
                return Wait(free_at_s)
        return decision

    def _give_suspect(self, model: Model, replica: Replica, now_s: float) -> list[Action]:
        """One alone (R6). A replica that still holds work gets no more, so that its hands are
        soon empty."""
        if replica.leases:
            return []
        suspect = next(iter(model.queue.suspects.values()))
        return [self._give(model, replica, (suspect,), suspect.rows, now_s, sole=True)]

    def _give(
        self,
        model: Model,
        replica: Replica,
        requests: tuple[Request, ...],
        rows: int,
        now_s: float,
        *,
        sole: bool,
    ) -> Dispatch:
        exchange = replica.waiting
        assert exchange is not None
        assert replica.model is not None
        for request in requests:
            model.queue.take(request)
            if request.first_leased_s == 0.0:
                request.first_leased_s = now_s
        lease = Lease(
            lease_id=self._next_lease_id,
            model=replica.model,
            replica_id=replica.replica_id,
            requests=requests,
            rows=rows,
            row_cost=requests[0].row_cost,
            given_s=now_s,
            started_s=now_s,
            call_id=exchange.call_id,
            sole=sole,
            prefetched=bool(replica.leases),
        )
        self._next_lease_id += 1
        replica.leases[lease.lease_id] = lease
        replica.last_lease = lease
        replica.waiting = None
        model.leased_requests += len(requests)
        # As Dispatch(...) does, in a fifth of its time.
        return tuple.__new__(
            Dispatch, (exchange.call_id, exchange.sequence, lease, replica.last_dropped)
        )


def cap_rows_of(model: Model, replica: Replica) -> int:
    """0: the model has no batch dimension."""
    most = model.settings.batch.max_batch_rows
    return most if replica.batch_cap_rows is None else min(most, replica.batch_cap_rows)


def _decide_in_time(
    model: Model,
    profile: Profile,
    replica: Replica,
    ready: list[Replica],
    actions: list[Action],
    now_s: float,
) -> Form | Wait | None:
    """Mode SLO. Those found to be late are put behind, which may leave only late ones to serve."""
    start_s = _start_s(model, replica, now_s)
    if isinstance(start_s, Wait):
        return start_s
    if start_s is None:
        return None
    outlook = _outlook(model, profile, replica, ready, start_s, now_s)
    queue, cap_rows = model.queue, cap_rows_of(model, replica)
    leaves = _leaves_to_others(model, profile, ready)
    while True:
        on_time = () if leaves else queue.on_time()
        choice = choose_in_time(
            on_time, queue.late(), model.settings.batch, cap_rows, outlook, now_s
        )
        actions += model.be_late(choice.late)
        if choice.decision is not None or not choice.late:
            return choice.decision


def _leaves_to_others(model: Model, profile: Profile, ready: list[Replica]) -> bool:
    """Its device cannot be in time with a single row, and another one can: it takes what is late
    only."""
    target_s, margin_s = model.settings.batch.target_s or inf, model.margin_s()
    if (profile.latency_s(1) or 0.0) + margin_s <= target_s:
        return False
    others = (model.profiles.on(device) for device in {one.device for one in ready})
    return any(
        (other.latency_s(1) or inf) + margin_s <= target_s for other in others if other is not None
    )


def _start_s(model: Model, replica: Replica, now_s: float) -> float | Wait | None:
    """When it could begin a batch decided now, or until when a decision is too early. None: it
    computes longer than expected, and its outcome brings the next decision."""
    if not replica.leases:
        return now_s
    free_s = _next_free_s(model, replica, now_s)
    decide_s = free_s - model.margin_s()
    if now_s < decide_s:
        return Wait(decide_s, deaf=True)
    return free_s if free_s > now_s else None


def _next_free_s(model: Model, replica: Replica, now_s: float) -> float:
    """When the batches in its hands should be done; now, if that is over or unknown."""
    free_s = now_s
    for at, lease in enumerate(replica.leases.values()):
        profile = model.profiles.on(replica.device, lease.row_cost)
        if at == 0:
            if profile is None:
                return now_s
            free_s = lease.started_s
        if profile is not None:
            free_s += profile.typical_s(lease.rows) or 0.0
    return max(now_s, free_s)


def _outlook(
    model: Model,
    profile: Profile,
    replica: Replica,
    ready: list[Replica],
    start_s: float,
    now_s: float,
) -> Outlook:
    settings = model.settings.batch
    target_s = settings.target_s
    assert target_s is not None, "mode SLO has a target"
    most_rows = max(1, settings.max_batch_rows)
    margin_s = model.margin_s()
    every = Outlook(
        table_s=profile.table(most_rows),
        target_s=target_s,
        replicas=len(ready),
        idle=len([other for other in ready if not other.leases]),
        start_s=start_s,
        slack_s=_slack_s(profile.table(most_rows), target_s, margin_s),
        rows_per_s=model.arrivals.rows_per_s(now_s),
        next_free_s=_OthersFree(model, replica, ready, now_s),
    )
    if not model.profiles.tells_costs_apart:
        return every
    known: dict[int, Outlook] = {}

    def of(row_cost: int) -> Outlook:
        found = known.get(row_cost)
        if found is None:
            own = model.profiles.on(replica.device, row_cost) or profile
            table_s = own.table(most_rows)
            slack_s = _slack_s(table_s, target_s, margin_s)
            found = known[row_cost] = replace(every, table_s=table_s, slack_s=slack_s)
        return found

    return replace(every, by_cost=of)


@dataclass(frozen=True, slots=True)
class _OthersFree:
    """When the other replicas could begin. Most decisions, and every arrival may bring one, do
    not ask."""

    model: Model
    replica: Replica
    ready: list[Replica]
    now_s: float

    def __iter__(self) -> Iterator[float]:
        for other in self.ready:
            if other is not self.replica:
                yield _next_free_s(self.model, other, self.now_s)


def _slack_s(table_s: Sequence[float], target_s: float, margin_s: float) -> float:
    return max(0.0, table_s[1] + margin_s - target_s) - margin_s


def _ready(key: Hashable, replicas: Iterable[Replica]) -> list[Replica]:
    return [
        replica
        for replica in replicas
        if replica.model == key and replica.state is ReplicaState.READY
    ]


def _earliest_free_s(model: Model, ready: list[Replica], now_s: float) -> float:
    earliest_s = inf
    for replica in ready:
        if not replica.leases:
            return now_s
        earliest_s = min(earliest_s, _next_free_s(model, replica, now_s))
    return earliest_s if ready else -inf


def _fastest_first(model: Model) -> Callable[[Replica], tuple[int, float, int]]:
    """As `_preference`, the faster device before the lower number."""

    def key(replica: Replica) -> tuple[int, float, int]:
        profile = model.profiles.on(replica.device)
        row_s = profile.latency_s(1) if profile is not None else None
        return len(replica.leases), row_s or 0.0, replica.number

    return key


def _preference(replica: Replica) -> tuple[int, int]:
    return len(replica.leases), replica.number


def _free_at_s(model: Model, replica: Replica) -> float:
    """When the batch in its hands should be done; -inf if nothing is learned."""
    lease = next(iter(replica.leases.values()))
    learned_s = model.profiles.of(lease.row_cost).latency_s(lease.rows)
    return -inf if learned_s is None else lease.started_s + learned_s
