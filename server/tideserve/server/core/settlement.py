"""How a lease ends: answered, failed, or returned so that its requests run again (R5, R6)."""

from collections.abc import Hashable, Mapping
from enum import Enum
from typing import Final, assert_never

from tideserve.server.core.actions import Action, FailureCause
from tideserve.server.core.leases import Lease
from tideserve.server.core.model import Model
from tideserve.server.core.outcomes import BatchDone, BatchFailed, Outcome
from tideserve.server.core.replicas import Replica

Models = Mapping[Hashable, Model]

# A request that was the sole work of so many replicas that died fails (R6).
MAX_SOLE_DEATHS: Final = 2
# A batch may begin before the outcome of the one ahead is on the wire, and a replica that
# dies then looks as if it died of that one. So a request that was next in line at so many
# deaths is suspect too; otherwise it could take any number of replicas along.
MAX_DEATHS_BEHIND: Final = 2


class ReturnCause(Enum):
    """Why a lease comes back without an answer."""

    UNDELIVERED = "undelivered"  # the model cannot have seen it
    OUT_OF_MEMORY = "out_of_memory"
    REPLICA_ENDED = "replica_ended"  # stopped, drained or killed by us or a launcher
    DIED_BEHIND = "died_behind"  # the replica died, computing an older lease
    DIED = "died"
    DIED_ALONE = "died_alone"  # with one request as its sole work


def settle(
    models: Models, replica: Replica, outcome: Outcome, dropped: list[int], now_s: float
) -> list[Action]:
    """An outcome came. One for a lease that the replica does not hold (late, repeated, of
    another) changes nothing and goes on the list of the `dropped`."""
    lease = replica.leases.get(outcome.lease_id)
    if lease is None:
        dropped.append(outcome.lease_id)
        return []
    model = models[lease.model]
    take_lease(model, replica, lease, now_s)
    match outcome:
        case BatchDone(_, latency_s):
            model.learn(lease, replica.device, latency_s, now_s)
            replica.memory.went_well(lease.rows)
            return model.complete(lease)
        case BatchFailed(
            _, FailureCause.OUT_OF_MEMORY | FailureCause.OUTPUT_TOO_LARGE as cause, detail
        ):
            if len(lease.requests) == 1:
                # One that is too large by itself says nothing of other batches.
                return model.fail(lease.requests, cause, detail)
            replica.memory.ran_out(lease.rows)
            if not model.settings.lease.retryable:
                return model.fail(lease.requests, cause, detail)
            return give_back(model, lease, ReturnCause.OUT_OF_MEMORY, now_s)
        case BatchFailed(_, cause, detail):
            return model.fail(lease.requests, cause, detail)
        case _:
            assert_never(outcome)


def give_back_all(
    models: Models, replica: Replica, now_s: float, *, death: bool
) -> tuple[list[Action], bool]:
    """All leases of a replica that is LOST return. At a `death` the oldest is suspect, since
    it was computing. True: the death is laid to a request, which failed for it."""
    actions: list[Action] = []
    leases = list(replica.leases.values())
    # From the youngest, so that the queue's head gets back its old order.
    for at in range(len(leases) - 1, -1, -1):
        lease = leases[at]
        model = models[lease.model]
        take_lease(model, replica, lease, now_s)
        if not death:
            cause = ReturnCause.REPLICA_ENDED
        elif at > 0:
            cause = ReturnCause.DIED_BEHIND
        elif len(leases) == 1 and len(lease.requests) == 1:
            cause = ReturnCause.DIED_ALONE
        else:
            cause = ReturnCause.DIED
        actions += give_back(model, lease, cause, now_s)
    attributed = any(
        request.sole_deaths >= MAX_SOLE_DEATHS for lease in leases for request in lease.requests
    )
    return actions, attributed


def give_back(model: Model, lease: Lease, cause: ReturnCause, now_s: float) -> list[Action]:
    """The requests of a lease that was taken from its replica wait again, or end: past their
    deadline, shown to kill replicas (R6), or perhaps run before and not to run twice (R5)."""
    actions: list[Action] = []
    again = []
    may_run = cause is ReturnCause.UNDELIVERED or model.settings.lease.retryable
    for request in lease.requests:
        if request.done:
            continue
        match cause:
            case ReturnCause.DIED:
                request.suspect = True
            case ReturnCause.DIED_ALONE:
                request.suspect = True
                request.sole_deaths += 1
            case ReturnCause.DIED_BEHIND:
                request.deaths_behind += 1
                request.suspect |= request.deaths_behind >= MAX_DEATHS_BEHIND
            case ReturnCause.UNDELIVERED | ReturnCause.OUT_OF_MEMORY | ReturnCause.REPLICA_ENDED:
                pass
            case _:
                assert_never(cause)
        if request.sole_deaths >= MAX_SOLE_DEATHS:
            actions += model.fail((request,), FailureCause.KILLS_REPLICAS, "")
        elif request.queue_deadline_s <= now_s:
            actions += model.expire(request)
        elif may_run:
            again.append(request)
        else:
            actions += model.fail((request,), FailureCause.NOT_RETRYABLE, "")
    model.queue.put_back(tuple(again))
    model.decide_at_s = now_s
    return actions


def take_lease(model: Model, replica: Replica, lease: Lease, now_s: float) -> None:
    """The replica no longer holds it. If it was the oldest, the next one computes from now."""
    was_first = next(iter(replica.leases)) == lease.lease_id
    del replica.leases[lease.lease_id]
    model.leased_requests -= len(lease.requests)
    if was_first and replica.leases:
        next(iter(replica.leases.values())).started_s = now_s
