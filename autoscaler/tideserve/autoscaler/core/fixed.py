"""The policy without a policy: the same count for every wanted model version."""

from collections.abc import Mapping
from dataclasses import dataclass

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample


@dataclass(frozen=True, slots=True)
class FixedCount:
    """`replicas` for each model version while it is wanted, none once it retires."""

    replicas: int = 1

    def decide(
        self, snapshot: Snapshot, sample: Sample, now_s: float
    ) -> Mapping[ModelKey, Decision]:
        """Does not depend on the time or the load."""
        del sample, now_s
        return {
            model.key: Decision(self.replicas, f"fixed: a count of {self.replicas}")
            if model.wanted
            else Decision(0, "retires: the model version is not wanted", limited_by="not wanted")
            for model in snapshot.models
        }
