"""Which of the waiting requests form the next batch, and whether to wait for more.

Window mode follows Triton's dynamic batcher: a batch goes when it is full, when it has a
preferred size, or when its oldest request has waited long enough
(https://docs.nvidia.com/deeplearning/triton-inference-server/user-guide/docs/user_guide/batcher.html).
"""

from collections.abc import Hashable, Iterable
from typing import Final, NamedTuple

from tideserve.server.core.request import Request
from tideserve.server.core.settings import BatchingMode, BatchSettings

# Requests of other signatures that are looked past while a batch is gathered: bounds the
# work of one decision when a queue mixes many shapes.
MAX_SCAN: Final = 1024


class Form(NamedTuple):
    """Take these now. `full`: no further request could join."""

    requests: tuple[Request, ...]
    rows: int
    full: bool


class Wait(NamedTuple):
    """Nothing yet; decide again at `until_s` or, unless it is `deaf`, when something arrives."""

    until_s: float
    deaf: bool = False


# The head's batch, its rows, whether it is full, and those of other signatures that were looked past.
_Gathered = tuple[list[Request], int, bool, list[Request]]


def choose(
    waiting: Iterable[Request], settings: BatchSettings, cap_rows: int, now_s: float
) -> Form | Wait:
    """Decides over `waiting`, which has at least one request and is in order of service.

    `cap_rows` is the replica's own cap (halved after out of memory), at most
    `settings.max_batch_rows`. The first of a batch is always part of it, alone if it is
    larger than the cap or than `max_lease_bytes`. Eager mode takes the head's batch. In
    window mode signatures wait apart, so that a rare one does not hold up the full batches
    behind it: the first in order of service that is due goes.
    """
    batch, rows, full, others = _gather(waiting, settings, cap_rows)
    if settings.mode is not BatchingMode.WINDOW or settings.max_batch_rows == 0:
        return Form(tuple(batch), rows, full)
    decision = _in_window((batch, rows, full, others), settings, now_s)
    if isinstance(decision, Form) or not others:
        return decision
    until_s = decision.until_s
    by_signature: dict[Hashable, list[Request]] = {}
    for request in others:
        by_signature.setdefault(request.signature, []).append(request)
    for group in by_signature.values():
        decision = _in_window(_gather(group, settings, cap_rows), settings, now_s)
        if isinstance(decision, Form):
            return decision
        until_s = min(until_s, decision.until_s)
    return Wait(until_s)


def _gather(waiting: Iterable[Request], settings: BatchSettings, cap_rows: int) -> _Gathered:
    """The head and those behind it that share its signature and fit, in order. The first
    that does not fit ends the batch: passing it over would starve large requests."""
    batch: list[Request] = []
    others: list[Request] = []
    rows = 0
    payload_bytes = 0
    signature: Hashable = None
    for request in waiting:
        if not batch:
            batch.append(request)
            rows = request.rows
            payload_bytes = request.payload_bytes
            signature = request.signature
            cap_rows = settings.capped_rows(cap_rows, request.row_cost)
            if settings.max_batch_rows == 0 or rows >= cap_rows:
                return batch, rows, True, others
            continue
        if request.signature != signature:
            others.append(request)
            if len(others) >= MAX_SCAN:
                break
            continue
        if (
            rows + request.rows > cap_rows
            or payload_bytes + request.payload_bytes > settings.max_lease_bytes
        ):
            return batch, rows, True, others
        batch.append(request)
        rows += request.rows
        payload_bytes += request.payload_bytes
        if rows == cap_rows:
            return batch, rows, True, others
    return batch, rows, False, others


def _in_window(gathered: _Gathered, settings: BatchSettings, now_s: float) -> Form | Wait:
    """Whether a batch goes now: of a preferred size, full, or its oldest waited enough."""
    batch, rows, full, _ = gathered
    preferred = _longest_preferred(batch, settings.preferred_rows)
    if preferred is not None:
        count, preferred_rows = preferred
        return Form(tuple(batch[:count]), preferred_rows, full=True)
    due_s = min(request.arrived_s for request in batch) + settings.max_queue_delay_s
    if full or now_s >= due_s:
        return Form(tuple(batch), rows, full)
    return Wait(due_s)


def _longest_preferred(
    batch: list[Request], preferred_rows: tuple[int, ...]
) -> tuple[int, int] | None:
    """(requests, rows) of the longest prefix whose rows are a preferred size."""
    if not preferred_rows:
        return None
    best = None
    rows = 0
    for count, request in enumerate(batch, 1):
        rows += request.rows
        if rows in preferred_rows:
            best = (count, rows)
    return best
