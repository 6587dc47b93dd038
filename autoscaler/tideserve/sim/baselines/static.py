"""A count that never changes."""

from collections.abc import Mapping
from dataclasses import dataclass

from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.sim.baselines.rule import RETIRES


@dataclass(frozen=True, slots=True)
class StaticPolicy:
    """`replicas` for each wanted model version, whatever comes."""

    replicas: int

    def decide(
        self, snapshot: Snapshot, sample: Sample, now_s: float
    ) -> Mapping[ModelKey, Decision]:
        """Does not depend on the time or the load."""
        del sample, now_s
        fixed = Decision(self.replicas, f"static: {self.replicas}")
        return {model.key: fixed if model.wanted else RETIRES for model in snapshot.models}
