"""How many replicas a model version should have, and why; and what that is decided from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from tideserve.autoscaler.core.fleet import ModelKey, Snapshot
from tideserve.autoscaler.core.load import Load, Sample


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a decision about one model version is made from.

    `present`: READY and STARTING ones (S1). `load` None: no data (S2). `startup_s`: Tc.
    `was_ready`: some replica of this version was, at some time. `triggers`: readings by name; a
    trigger without one is not known. `held_requests`: by the frontend's own word, whatever the
    source of loads knows.
    """

    ready: int
    starting: int
    load: Load | None
    startup_s: float
    unix_s: float
    was_ready: bool = True
    latency_target_s: float | None = None
    triggers: Mapping[str, float] = field(default_factory=dict)
    pin: int | None = None
    held_requests: int = 0

    @property
    def present(self) -> int:
        return self.ready + self.starting


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
