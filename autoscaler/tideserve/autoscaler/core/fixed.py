"""The policy without a policy: a count for every wanted model version."""

from collections.abc import Mapping
from dataclasses import dataclass

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import Model, ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample


@dataclass(frozen=True, slots=True)
class FixedCount:
    """`replicas` for each model version while it is wanted, none once it retires. None: as many
    as its own configuration asks for (instance_group)."""

    replicas: int | None = 1

    def decide(
        self, snapshot: Snapshot, sample: Sample, now_s: float
    ) -> Mapping[ModelKey, Decision]:
        """Does not depend on the time or the load."""
        del sample, now_s
        return {model.key: self._of(model) for model in snapshot.models}

    def _of(self, model: Model) -> Decision:
        if not model.wanted:
            return Decision(
                0,
                "retires: the model version is not wanted, or no replica can load it",
                limited_by="not wanted",
            )
        if self.replicas is None:
            return Decision(model.instances, f"fixed: instance_group has {model.instances}")
        return Decision(self.replicas, f"fixed: a count of {self.replicas}")
