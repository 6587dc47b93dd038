"""How large the batches of a replica may be whose memory, or message, was too small for one."""

from dataclasses import dataclass
from typing import Final

# After so many batches of that size one of twice the size is tried again; each time that it
# fails, after four times as many: what does not fit costs a batch that has to run again.
FIRST_PATIENCE: Final = 32
MAX_PATIENCE: Final = 8192


@dataclass(slots=True)
class MemoryLimit:
    """`cap_rows` None: nothing ran out yet. Halved when something does, doubled in the end."""

    cap_rows: int | None = None
    failed_rows: int = 0
    batches: int = 0
    patience: int = FIRST_PATIENCE

    def ran_out(self, rows: int) -> None:
        """Of a batch of that many rows."""
        if self.failed_rows:
            self.patience = min(MAX_PATIENCE, 4 * self.patience)
        self.failed_rows = max(rows, self.failed_rows)
        self.cap_rows = max(1, rows // 2)
        self.batches = 0

    def went_well(self, rows: int) -> None:
        """A batch of that many rows was computed."""
        # Requests of several rows do not always fill it up.
        if self.cap_rows is None or 2 * rows <= self.cap_rows:
            return
        self.batches += 1
        if self.batches < self.patience:
            return
        self.batches = 0
        self.cap_rows *= 2
        if self.cap_rows > self.failed_rows:
            self.cap_rows = None
