"""How long what was wanted keeps replicas: down only to the most that was wanted within H, by one
only after 2 H, so that noise around a whole number of replicas starts and ends none.
"""

from typing import Final

from tideserve.autoscaler.core.settings import ModelPolicy

# Times with what was wanted then, oldest first; counts fall from entry to entry.
Wants = tuple[tuple[float, int], ...]

MIN_HOLD_S: Final = 5.0
_MAX_WANTS: Final = 512


def hold_s_of(policy: ModelPolicy, startup_s: float) -> float:
    """H: what the file says, or a multiple of the start-up time."""
    if policy.hold_s is not None:
        return policy.hold_s
    return max(MIN_HOLD_S, policy.hold_factor * startup_s)


def remembered(wants: Wants, count: int, hold_s: float, now_s: float) -> Wants:
    """Wants within 2 H, with that of this moment. Only the most since some moment is ever asked
    for, so one that a later one reaches is dropped."""
    kept = [(at_s, n) for at_s, n in wants if at_s >= now_s - 2.0 * hold_s and n > count]
    return (*kept, (now_s, count))[-_MAX_WANTS:]


def lowered(last: int, wants: Wants, hold_s: float, now_s: float) -> tuple[int, float]:
    """To how many it goes down from `last`, which is the same while it holds, and the hold by which
    that was judged."""
    most = max(count for at_s, count in wants if at_s >= now_s - hold_s)
    if most == last - 1 and last > 1:
        most = max(count for _, count in wants)
        hold_s *= 2.0
    return min(last, most), hold_s
