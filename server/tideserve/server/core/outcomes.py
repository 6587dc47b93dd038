"""What a replica says of a lease."""

from dataclasses import dataclass

from tideserve.server.core.actions import FailureCause


@dataclass(frozen=True, slots=True)
class BatchDone:
    """The outputs came; `latency_s` is what the batch cost the replica."""

    lease_id: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class BatchFailed:
    """The model gave no usable outputs."""

    lease_id: int
    cause: FailureCause
    detail: str


Outcome = BatchDone | BatchFailed
