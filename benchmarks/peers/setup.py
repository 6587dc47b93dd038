"""What is varied of a server that batches, so that each runs at its best."""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Setup:
    """`instances` (replicas) of each model; a batch waits up to `queue_delay_us` to fill."""

    instances: int
    queue_delay_us: int

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.instances}:{self.queue_delay_us}"


def default_setups(computes: bool) -> list[Setup]:
    """Measured: the delay gives the highest rate with many callers (Triton: half as much again
    as none), no delay the lowest latency with one. A model that computes runs on every core;
    one that does not is fastest with a single instance, whose batches are larger."""
    instances = len(os.sched_getaffinity(0)) if computes else 1
    return [Setup(instances, 0), Setup(instances, 1000)]
