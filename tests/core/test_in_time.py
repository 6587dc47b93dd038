"""Mode SLO through the scheduler: admission when replicas are free early, devices that differ."""

from math import inf

import pytest

from tests.core.world import World
from tideserve.server.core.actions import FailureCause, Rejection
from tideserve.server.core.outcomes import BatchDone, BatchFailed
from tideserve.server.core.settings import BatchingMode, BatchSettings, ModelSettings, OnLate

TARGET_S = 0.5


def world(on_late: OnLate = OnLate.DROP) -> World:
    batch = BatchSettings(BatchingMode.SLO, 8, target_s=TARGET_S, on_late=on_late)
    made = World({"m": ModelSettings(batch=batch)})
    made.start("r0", "m")
    made.scheduler.models["m"].learn_warm_up("", [(1, 0.4), (8, 0.4)])
    made.exchange("r0")
    return made


@pytest.mark.parametrize(("on_late", "deadline_s"), [(OnLate.DROP, inf), (OnLate.SERVE, TARGET_S)])
@pytest.mark.parametrize("why", ["done", "failed", "another one"])
def test_nothing_is_hopeless_while_a_replica_is_free(
    on_late: OnLate, deadline_s: float, why: str
) -> None:
    made = world(on_late)
    made.arrive("m")
    lease = made.players["r0"].leases[0]
    made.exchange("r0")
    made.advance(0.01)
    match why:
        case "done":  # long before the 0.4 s that it was expected to take
            made.exchange("r0", [BatchDone(lease.lease_id, 0.01)])
        case "failed":
            made.exchange("r0", [BatchFailed(lease.lease_id, FailureCause.MODEL_ERROR, "x")])
        case _:
            made.start("r1", "m")
            made.exchange("r1")
    answer = made.arrive("m", deadline_in_s=deadline_s)
    assert not isinstance(answer, Rejection)
