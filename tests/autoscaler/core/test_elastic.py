"""Several model versions on the same devices, of which one has no data."""

import pytest

from tests.autoscaler.core.loads import PROFILE, UNIX_S
from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Load, Sample
from tideserve.autoscaler.core.settings import Device, ModelPolicy, ScalingSettings

QUIET, BUSY = ModelKey("quiet", 1, "g"), ModelKey("busy", 1, "g")


def fleet(present: int) -> Snapshot:
    replicas = tuple(
        Replica(f"{key.name}-{at}", key, ReplicaState.READY, was_ready=True)
        for key in (QUIET, BUSY)
        for at in range(present)
    )
    models = (Model(QUIET, latency_target_s=0.4), Model(BUSY, latency_target_s=0.4))
    return Snapshot(1, models, replicas)


def load(at_s: float, rate: float) -> Load:
    came = rate * at_s
    return Load(at_s, arrivals=came, succeeded=came + 1.0, rows=came + 1.0, profile=PROFILE)


@pytest.mark.parametrize("quiet_rate", [150.0, 900.0])
def test_s2_a_version_without_data_keeps_its_slots_and_takes_none_from_others(
    quiet_rate: float,
) -> None:
    policy = ModelPolicy(max_replicas=8)
    elastic = ElasticPolicy(ScalingSettings(default=policy, devices=(Device(slots=8),)))
    found: dict[ModelKey, Decision] = {}
    for look in range(60):
        now_s = look * 0.25
        loads = {BUSY: load(now_s, 600.0)}
        if now_s <= 5.0:
            loads[QUIET] = load(now_s, quiet_rate)
        found = dict(elastic.decide(fleet(4), Sample(UNIX_S + now_s, loads), now_s))
    assert found[QUIET].reason == "no data: nothing changes"
    assert found[QUIET].desired == 4
    assert found[BUSY].desired == 4


def test_without_data_the_frontend_s_word_on_a_version_is_enough_for_its_first_replica() -> None:
    elastic = ElasticPolicy(ScalingSettings(default=ModelPolicy(min_replicas=0)))

    def desired(model: Model, now_s: float) -> int:
        snapshot = Snapshot(1, (model,))
        return elastic.decide(snapshot, Sample(UNIX_S + now_s), now_s)[model.key].desired

    # Found at zero, as an earlier autoscaler left it.
    assert desired(Model(QUIET, served=True), 0.0) == 0
    assert desired(Model(QUIET, served=True, held_requests=1), 1.0) == 1
    assert desired(Model(BUSY), 2.0) == 1, "it was never served"


def test_new_files_of_a_version_take_over_with_as_many_replicas() -> None:
    old, new = ModelKey("m", 1, "old"), ModelKey("m", 1, "new")
    elastic = ElasticPolicy(ScalingSettings(default=ModelPolicy(max_replicas=8)))
    replicas = tuple(Replica(f"r{at}", old, ReplicaState.READY, was_ready=True) for at in range(4))
    models: tuple[Model, ...] = (Model(old, latency_target_s=0.4),)
    for look in range(40):
        now_s = look * 0.25
        sample = Sample(UNIX_S + now_s, {old: load(now_s, 300.0)})
        elastic.decide(Snapshot(1, models, replicas), sample, now_s)
    models = (*models, Model(new, latency_target_s=0.4))
    sample = Sample(UNIX_S + 10.0, {old: load(10.0, 300.0), new: Load(10.0)})
    found = elastic.decide(Snapshot(1, models, replicas), sample, 10.0)
    assert (found[old].desired, found[new].desired) == (4, 4)
