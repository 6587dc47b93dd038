"""How many replicas a model version should have, and why."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tideserve.autoscaler.core.fleet import ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample


@dataclass(frozen=True, slots=True)
class Decision:
    """`limited_by` names the bound that held `desired` back or up, None where none did.

    `inputs`: every number that it was made from, by name with its unit last.
    """

    desired: int
    reason: str
    limited_by: str | None = None
    inputs: Mapping[str, float] = field(default_factory=dict, compare=False)


class Policy(Protocol):
    """Decides for every model version of a snapshot. May learn from one call to the next."""

    def decide(
        self, snapshot: Snapshot, sample: Sample, now_s: float
    ) -> Mapping[ModelKey, Decision]:
        """One decision a model version of the snapshot."""
