from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fixed import FixedCount
from tideserve.autoscaler.core.fleet import Model, ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample

NEW, OLD = ModelKey("digits", 1, "g2"), ModelKey("digits", 1, "g1")


def test_every_wanted_version_gets_the_count_and_a_retiring_one_none() -> None:
    snapshot = Snapshot(1, (Model(NEW), Model(OLD, wanted=False)))
    of_the_model = Snapshot(1, (Model(NEW, instances=4),))
    assert FixedCount(None).decide(of_the_model, Sample(unix_s=0.0), now_s=0.0) == {
        NEW: Decision(4, "fixed: instance_group has 4"),
    }
    assert FixedCount(3).decide(snapshot, Sample(unix_s=0.0), now_s=0.0) == {
        NEW: Decision(3, "fixed: a count of 3"),
        OLD: Decision(
            0,
            "retires: the model version is not wanted, or no replica can load it",
            limited_by="not wanted",
        ),
    }
