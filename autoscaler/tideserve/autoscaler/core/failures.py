"""Backoff and crash loops of one model version (design 15.1): values and pure rules."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BackoffRules:
    """After the n-th failure in a row the next start waits min(max_s, first_s * 2^(n-1)).

    From `give_up_after` on it waits `give_up_pause_s`, and the version counts as
    crash-looping. A version whose last failure was a death laid to a request has recovered
    once a later replica was READY for `stable_s`; after a failed start READY is enough.
    """

    first_s: float = 0.5
    max_s: float = 30.0
    give_up_after: int = 5
    give_up_pause_s: float = 60.0
    stable_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Failures:
    """Failures in a row. No start before `not_before_s`; while there are any, one at a time."""

    count: int
    last_s: float
    not_before_s: float
    attributed: bool
    given_up: bool


def failed(
    before: Failures | None,
    *,
    started_s: float,
    attributed: bool,
    now_s: float,
    rules: BackoffRules,
) -> Failures:
    """One more failure.

    Starts that were made before the last failure was known failed in the same round: a
    round counts once, or eight replicas started together would be a crash loop at once.
    """
    if before is not None and not attributed and started_s < before.last_s:
        return before
    count = 1 if before is None else before.count + 1
    given_up = count >= rules.give_up_after
    if given_up:
        pause_s = rules.give_up_pause_s
    else:
        pause_s = min(rules.max_s, rules.first_s * 2.0 ** (count - 1))
    return Failures(
        count=count,
        last_s=now_s,
        not_before_s=now_s + pause_s,
        attributed=attributed,
        given_up=given_up,
    )


def recovered(
    failures: Failures, started_s: float, ready_for_s: float, rules: BackoffRules
) -> bool:
    """Whether a READY replica, started then, shows that the failures are over."""
    if started_s < failures.last_s:
        return False
    return not failures.attributed or ready_for_s >= rules.stable_s
