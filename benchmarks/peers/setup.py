"""What is varied of a server that batches, so that each runs at its best."""

import os
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Setup:
    """`instances` (replicas) of each model; a batch waits up to `queue_delay_us` to fill.
    `busy_poll_us`: Tideserve's --busy-poll-us."""

    instances: int
    queue_delay_us: int
    busy_poll_us: int = 0

    def __str__(self) -> str:
        """As on the command line."""
        busy = f":{self.busy_poll_us}" if self.busy_poll_us else ""
        return f"{self.instances}:{self.queue_delay_us}{busy}"


def default_setups(computes: bool) -> list[Setup]:
    """The same for every server, so that each finds its best among them. No delay is for one
    caller, 1 ms for many. A model that computes runs on every core. For one that does not it
    depends: in one round Triton did 600 KB with two instances at 1.7 times the rate of one."""
    cores = len(os.sched_getaffinity(0))
    if computes:
        return [Setup(cores, 0), Setup(cores, 1000)]
    return [Setup(1, 0), Setup(1, 1000), Setup(2, 0), Setup(2, 1000)]


#: Tideserve's best for one caller of a model that costs nothing; others have no such setting.
LONE_CALLERS: Final = Setup(1, 0, 500)
