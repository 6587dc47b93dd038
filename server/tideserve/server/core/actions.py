"""What the core decides, as values; the dispatcher carries them out in order."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from tideserve.server.core.leases import Lease
from tideserve.server.core.request import Request


class FailureCause(Enum):
    """Why an admitted request failed; the dispatcher words it."""

    MODEL_ERROR = "model_error"
    BAD_OUTPUT = "bad_output"
    OUT_OF_MEMORY = "out_of_memory"
    OUTPUT_TOO_LARGE = "output_too_large"
    KILLS_REPLICAS = "kills_replicas"
    NOT_RETRYABLE = "not_retryable"
    UNAVAILABLE = "unavailable"
    SHARED_MEMORY = "shared_memory"


class Dispatch(NamedTuple):
    """Answer the Exchange with this lease."""

    call_id: int
    sequence: int
    lease: Lease
    dropped_lease_ids: tuple[int, ...]


class AnswerEmpty(NamedTuple):
    """Answer the Exchange without a lease; `drain` tells the replica to leave."""

    call_id: int
    sequence: int
    drain: bool
    dropped_lease_ids: tuple[int, ...]


class RefuseCall(NamedTuple):
    """The Exchange belongs to an earlier life or number: FAILED_PRECONDITION."""

    call_id: int
    reason: str


class Complete(NamedTuple):
    """The lease's result arrived: these requests get their rows, in this order.

    Each entry is (request, its first row in the batch). With preserve_ordering a lease may
    have several of these, the first perhaps without answers; `lease` keeps its outputs.
    """

    lease: Lease
    answers: list[tuple[Request, int]]


class Expire(NamedTuple):
    """The deadline passed while the request was queued; `late`: it could meet the latency
    target no more, and late requests are dropped."""

    request: Request
    late: bool = False


class Fail(NamedTuple):
    """The request ends with an error; `detail` is the model's own message."""

    request: Request
    cause: FailureCause
    detail: str


class SendDrain(NamedTuple):
    """Tell the replica on its life line that it is draining (S4)."""

    replica_id: str


class ReplicaLost(NamedTuple):
    """The replica is LOST: its life line is closed and a launcher should kill it."""

    replica_id: str
    reason: str
    attributed: bool


class ReplicaLeft(NamedTuple):
    """The replica left with nothing in its hands."""

    replica_id: str


Action = (
    Dispatch
    | AnswerEmpty
    | RefuseCall
    | Complete
    | Expire
    | Fail
    | SendDrain
    | ReplicaLost
    | ReplicaLeft
)


class RejectReason(Enum):
    """Which bound of R2 a request would pass; HOPELESS: none, but it cannot be in time."""

    QUEUE_REQUESTS = "queue_requests"
    QUEUE_ROWS = "queue_rows"
    QUEUE_BYTES = "queue_bytes"
    PRIORITY_QUEUE = "priority_queue"
    EXPIRED = "expired"
    HOPELESS = "hopeless"


@dataclass(frozen=True, slots=True)
class Rejection:
    """Not admitted: the bound that stands in the way and when to try again."""

    reason: RejectReason
    limit: int
    retry_after_s: float
