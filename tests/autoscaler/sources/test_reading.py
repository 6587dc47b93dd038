"""Loads from the wire's snapshot, and counters that survive a frontend's restart."""

from dataclasses import fields, replace

from hypothesis import given
from hypothesis import strategies as st

from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.core.load import Histogram, Load
from tideserve.autoscaler.sources.reading import EvenCounters, loads_of, pins_of, snapshot_of
from tideserve.v1 import control_pb2
from tideserve.v1.replica_pb2 import ProfilePoint, StartupPhase

KEY = ModelKey("digits", 2, "g")


def message() -> control_pb2.Snapshot:
    model = control_pb2.ModelSnapshot(
        name="digits",
        version=2,
        generation="g",
        wanted=True,
        state=control_pb2.MODEL_READY,
        latency_target_s=0.2,
        arrivals=10,
        rejected=1,
        expired=2,
        succeeded=6,
        failed=1,
        queued_requests=3,
        queued_rows=4,
        leased_requests=5,
        oldest_age_s=0.5,
        queue_wait_s=control_pb2.Histogram(bounds=[0.1, 1.0], counts=[3, 2, 1], sum=4.0),
        latency_s=control_pb2.Histogram(bounds=[1.0], counts=[5, 1], sum=3.0),
        batch_rows=control_pb2.Histogram(bounds=[8.0], counts=[2, 0], sum=12.0),
        profile=[ProfilePoint(batch_rows=1, latency_s=0.01)],
    )
    replica = control_pb2.ReplicaSnapshot(
        id="r",
        model="digits",
        version=2,
        generation="g",
        state=control_pb2.READY,
        phases=[StartupPhase(name="load", duration_s=0.25)],
        busy_s=1.5,
        memory_bytes=7,
    )
    return control_pb2.Snapshot(frontend_epoch=9, models=[model], replicas=[replica])


def test_a_load_has_every_number_of_the_snapshot() -> None:
    assert loads_of(message(), 3.0) == {
        KEY: Load(
            at_s=3.0,
            arrivals=10,
            rejected=1,
            expired=2,
            succeeded=6,
            failed=1,
            rows=12.0,
            queue_wait_s=Histogram((0.1, 1.0), (3, 2, 1), 4.0),
            latency_s=Histogram((1.0,), (5, 1), 3.0),
            queued_requests=3,
            queued_rows=4,
            leased_requests=5,
            oldest_age_s=0.5,
            profile=((1, 0.01),),
        )
    }


def test_the_fleet_has_targets_start_ups_and_busy_time() -> None:
    snapshot = snapshot_of(message())
    (model,) = snapshot.models
    assert (model.latency_target_s, model.served, model.held_requests) == (0.2, True, 3)
    (replica,) = snapshot.replicas
    assert replica.startup_s == (("load", 0.25),)
    assert (replica.busy_s, replica.memory_bytes) == (1.5, 7)


def test_only_pinned_models_have_a_pin_also_one_at_zero() -> None:
    told = message()
    assert pins_of(told) == {}
    told.models[0].pin.SetInParent()
    assert pins_of(told) == {KEY: 0}


COUNTERS = ("arrivals", "rejected", "expired", "succeeded", "failed", "rows")


@given(st.lists(st.tuples(st.integers(0, 1000), st.booleans()), min_size=1, max_size=20))
def test_counters_never_fall_and_rise_by_what_was_counted(steps: list[tuple[int, bool]]) -> None:
    counters, epoch, raw, expected = EvenCounters(), 1, 0, 0
    for step, restarts in steps:
        if restarts:
            epoch, raw = epoch + 1, 0
        raw += step
        expected += step
        load = replace(
            Load(at_s=0.0, queue_wait_s=Histogram((1.0,), (raw, 0), raw)),
            **dict.fromkeys(COUNTERS, float(raw)),  # type: ignore[arg-type]
        )
        found = counters.even({KEY: load}, epoch)[KEY]
        assert [getattr(found, name) for name in COUNTERS] == [expected] * len(COUNTERS)
        assert found.queue_wait_s == Histogram((1.0,), (expected, 0), expected)


def test_a_counter_that_fell_within_a_life_began_anew() -> None:
    counters = EvenCounters()
    counters.even({KEY: Load(0.0, arrivals=5)}, 1)
    assert counters.even({KEY: Load(1.0, arrivals=2)}, 1)[KEY].arrivals == 7


def test_a_version_that_is_gone_is_forgotten() -> None:
    counters = EvenCounters()
    counters.even({KEY: Load(0.0, arrivals=5)}, 1)
    counters.even({KEY: Load(0.0, arrivals=1)}, 2)
    counters.even({}, 2)
    assert counters.even({KEY: Load(0.0, arrivals=3)}, 2)[KEY].arrivals == 3


def test_gauges_are_those_of_now_and_a_profile_outlives_a_restart() -> None:
    counters = EvenCounters()
    first = Load(0.0, arrivals=5, queued_rows=9, profile=((1, 0.1),))
    counters.even({KEY: first}, 1)
    now = replace(first, arrivals=1, queued_rows=2, profile=())
    found = counters.even({KEY: now}, 2)[KEY]
    assert found.queued_rows == 2
    assert found.profile == ((1, 0.1),)
    assert {field.name for field in fields(Load)} >= set(COUNTERS)
