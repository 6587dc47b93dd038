"""What a replica says of a lease."""

from typing import NamedTuple

from tideserve.server.core.actions import FailureCause


class BatchDone(NamedTuple):
    """The outputs came; `latency_s` is what the batch cost the replica."""

    lease_id: int
    latency_s: float


class BatchFailed(NamedTuple):
    """The model gave no usable outputs."""

    lease_id: int
    cause: FailureCause
    detail: str


Outcome = BatchDone | BatchFailed
