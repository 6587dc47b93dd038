"""A request as the core sees it: counts, times and an identity, no bytes."""

from collections.abc import Hashable
from dataclasses import dataclass
from math import inf


@dataclass(slots=True, eq=False)
class Request:
    """One caller's rows of one model version.

    The core owns the fields below `deadline_s` once the request was admitted. The
    dispatcher extends this class with what it must remember (the call, the tensors).
    """

    request_id: int
    rows: int
    payload_bytes: int
    signature: Hashable
    """Equal for requests that may share a batch (R3)."""
    arrived_s: float
    priority: int = 0
    """Level from 1, the highest; 0 asks for the model's default."""
    deadline_s: float = inf
    """Past it the request expires, unless a replica has it."""
    timeout_s: float | None = None
    """The caller's `timeout` parameter, in force where the queue policy allows it."""
    row_cost: int = 1
    """What each of its rows costs: its length with its padding, where rows are padded."""

    queue_deadline_s: float = inf
    """Deadline and queue policy together; for a delayed request the deadline alone."""
    due_s: float = inf
    """By when it should be answered: the latency target, or an earlier `queue_deadline_s`."""
    delay_at_s: float = inf
    """When the queue policy moves it behind its level (timeout action DELAY)."""
    first_leased_s: float = 0.0
    suspect: bool = False
    """It was running when a replica died; it runs alone from now on (R6)."""
    sole_deaths: int = 0
    """Replicas that died while it was all they had."""
    deaths_behind: int = 0
    """Replicas that died with it in a lease behind the one that computed."""
    done: bool = False
    """It has its outcome (R1)."""
