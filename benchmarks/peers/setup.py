"""What is varied of a server that batches, so that each runs at its best."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Setup:
    """`instances` (replicas) of each model; a batch waits up to `queue_delay_us` to fill."""

    instances: int
    queue_delay_us: int

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.instances}:{self.queue_delay_us}"


# Measured: the delay gives the highest rate with many callers (Triton: half as much again as
# none; without dynamic batching its rates fall by half), no delay the lowest latency with one.
TRITON_SETUPS: Final = (Setup(1, 0), Setup(1, 1000), Setup(2, 1000))
TIDESERVE_SETUPS: Final = (Setup(1, 0), Setup(1, 1000))
