"""What bounds a count: step limits, the marginal gain, minimum and maximum, a pin.

Each answers with the count that is allowed, and with what limited it (None: nothing did).
"""

from typing import Final

from tideserve.autoscaler.core.settings import ModelPolicy

# Times with what the count changed by, oldest first.
Changes = tuple[tuple[float, int], ...]

_MAX_CHANGES: Final = 512


def changed(changes: Changes, by: int, now_s: float, policy: ModelPolicy) -> Changes:
    """The changes that step limits are for, with that of this moment."""
    kept = tuple(one for one in changes if now_s - one[0] < policy.steps.per_s)
    return (*kept, (now_s, by))[-_MAX_CHANGES:] if by else kept


def limited(
    count: int, last: int, changes: Changes, cap: int | None, policy: ModelPolicy, now_s: float
) -> tuple[int, str | None]:
    """`last`: the count before. `cap`: more than so many gave no more goodput."""
    limit = None
    steps = policy.steps
    recent = [by for at_s, by in changes if now_s - at_s < steps.per_s]
    if steps.up is not None and count > last:
        # The first of all is for requests that are held: no step keeps them waiting.
        room = max(0 if last else 1, steps.up - sum(by for by in recent if by > 0))
        if count - last > room:
            count, limit = last + room, f"steps.up: {steps.up} in {steps.per_s:g} s"
    if steps.down is not None and count < last:
        room = max(0, steps.down + sum(by for by in recent if by < 0))
        if last - count > room:
            count, limit = last - room, f"steps.down: {steps.down} in {steps.per_s:g} s"
    if cap is not None and count > cap:
        count = max(cap, policy.min_replicas)
        limit = f"marginal gain: more than {cap} gave no more goodput"
    within, bound = bounded(count, policy)
    return within, bound or limit


def bounded(count: int, policy: ModelPolicy) -> tuple[int, str | None]:
    """S1. With none allowed it is told also while none is wanted: nothing can be woken."""
    least, most = policy.min_replicas, policy.max_replicas
    if most == 0:
        return 0, "max: 0"
    if count < least:
        return least, f"min: {least}"
    if count > most:
        return most, f"max: {most}"
    return count, None


def pinned(pin: int, policy: ModelPolicy) -> tuple[int, str]:
    """A pin goes before all but the maximum."""
    most = policy.max_replicas
    return (pin, "pinned") if pin <= most else (most, f"max: {most}")
