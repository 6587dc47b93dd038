"""A request as the core sees it: counts, times and an identity, no bytes."""

from collections.abc import Hashable
from math import inf


class Request:
    """One caller's rows of one model version.

    The core owns what is not an argument, once the request was admitted. The dispatcher extends
    this class with what it must remember (the call, the tensors).

    `signature`: equal for requests that may share a batch (R3). `priority`: level from 1, the
    highest; 0 asks for the model's default. `deadline_s`: past it the request expires, unless a
    replica has it. `timeout_s`: the caller's `timeout` parameter, in force where the queue policy
    allows it. `row_cost`: what each of its rows costs: its length with its padding, where rows are
    padded.
    """

    # No dataclass: the compiler leaves the constructor of one to the interpreter, 3 us a request.
    __slots__ = (
        "arrived_s",
        "deadline_s",
        "deaths_behind",
        "delay_at_s",
        "done",
        "due_s",
        "first_leased_s",
        "payload_bytes",
        "priority",
        "queue_deadline_s",
        "request_id",
        "row_cost",
        "rows",
        "signature",
        "sole_deaths",
        "suspect",
        "timeout_s",
    )

    def __init__(
        self,
        request_id: int,
        rows: int,
        payload_bytes: int,
        signature: Hashable,
        arrived_s: float,
        priority: int = 0,
        deadline_s: float = inf,
        timeout_s: float | None = None,
        row_cost: int = 1,
        due_s: float = inf,
    ) -> None:
        self.request_id = request_id
        self.rows = rows
        self.payload_bytes = payload_bytes
        self.signature = signature
        self.arrived_s = arrived_s
        self.priority = priority
        self.deadline_s = deadline_s
        self.timeout_s = timeout_s
        self.row_cost = row_cost
        self.queue_deadline_s = inf
        """Deadline and queue policy together; for a delayed request the deadline alone."""
        self.due_s = due_s
        """By when it should be answered: the latency target, or an earlier `queue_deadline_s`."""
        self.delay_at_s = inf
        """When the queue policy moves it behind its level (timeout action DELAY)."""
        self.first_leased_s = 0.0
        self.suspect = False
        """It was running when a replica died; it runs alone from now on (R6)."""
        self.sole_deaths = 0
        """Replicas that died while it was all they had."""
        self.deaths_behind = 0
        """Replicas that died with it in a lease behind the one that computed."""
        self.done = False
        """It has its outcome (R1)."""
