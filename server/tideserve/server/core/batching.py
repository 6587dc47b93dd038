"""Which of the waiting requests form the next batch, and whether to wait for more.

Window mode follows Triton's dynamic batcher: a batch goes when it is full, when it has a
preferred size, or when its oldest request has waited long enough
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/batcher.html).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tideserve.server.core.request import Request
from tideserve.server.core.settings import BatchingMode, BatchSettings

# Requests of other signatures that are looked past while a batch is gathered: bounds the
# work of one decision when a queue mixes many shapes.
MAX_SCAN: Final = 1024


@dataclass(frozen=True, slots=True)
class Form:
    """Take these now. `full`: no further request could join."""

    requests: tuple[Request, ...]
    rows: int
    full: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing yet; decide again at `until_s` or when something arrives."""

    until_s: float


def choose(
    waiting: Iterable[Request], settings: BatchSettings, cap_rows: int, now_s: float
) -> Form | Wait:
    """Decides over `waiting`, which has at least one request and is in order of service.

    `cap_rows` is the replica's own cap (halved after out of memory), at most
    `settings.max_batch_rows`. The head is always part of the batch, alone if it is larger
    than the cap or than `max_lease_bytes`.
    """
    batch, rows, full = _gather(waiting, settings, cap_rows)
    if settings.mode is BatchingMode.EAGER or settings.max_batch_rows == 0:
        return Form(tuple(batch), rows, full)
    preferred = _longest_preferred(batch, settings.preferred_rows)
    if preferred is not None:
        count, preferred_rows = preferred
        return Form(tuple(batch[:count]), preferred_rows, full=True)
    due_s = min(request.arrived_s for request in batch) + settings.max_queue_delay_s
    if full or now_s >= due_s:
        return Form(tuple(batch), rows, full)
    return Wait(due_s)


def _gather(
    waiting: Iterable[Request], settings: BatchSettings, cap_rows: int
) -> tuple[list[Request], int, bool]:
    """The head and those behind it that share its signature and fit, in order."""
    batch: list[Request] = []
    rows = 0
    payload_bytes = 0
    skipped = 0
    for request in waiting:
        if not batch:
            batch.append(request)
            rows = request.rows
            payload_bytes = request.payload_bytes
            if settings.max_batch_rows == 0 or rows >= cap_rows:
                return batch, rows, True
            continue
        if request.signature != batch[0].signature:
            skipped += 1
            if skipped >= MAX_SCAN:
                break
            continue
        if (
            rows + request.rows > cap_rows
            or payload_bytes + request.payload_bytes > settings.max_lease_bytes
        ):
            return batch, rows, True
        batch.append(request)
        rows += request.rows
        payload_bytes += request.payload_bytes
        if rows == cap_rows:
            return batch, rows, True
    return batch, rows, False


def _longest_preferred(
    batch: list[Request], preferred_rows: tuple[int, ...]
) -> tuple[int, int] | None:
    """(requests, rows) of the longest prefix whose rows are a preferred size."""
    best = None
    rows = 0
    for count, request in enumerate(batch, 1):
        rows += request.rows
        if rows in preferred_rows:
            best = (count, rows)
    return best
