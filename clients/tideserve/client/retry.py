"""Whether a failed attempt is repeated, and when: a pure decision.

Exponential backoff with jitter, bounded attempts, the server's push-back first
(`grpc-retry-pushback-ms`, gRFC A6), never past the deadline.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Final

import grpc

from tideserve.client.errors import InvalidArgument, TideserveClientError

# gRPC's own sentence for a message over a size limit: the next attempt is as large.
_TOO_LARGE: Final = "larger than max"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`max_attempts` counts the first one: 1 never repeats.

    The n-th wait is `initial_backoff_s * multiplier**(n-1)`, at most `max_backoff_s`, times
    a random factor in [1-jitter, 1+jitter]. A wait the server asked for is never shortened:
    its factor is in [1, 1+jitter], so that those turned away together do not return together.
    """

    max_attempts: int = 4
    initial_backoff_s: float = 0.05
    max_backoff_s: float = 2.0
    multiplier: float = 2.0
    jitter: float = 0.2
    codes: frozenset[grpc.StatusCode] = frozenset(
        {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}
    )

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise InvalidArgument(f"max_attempts: expected 1 or more, got {self.max_attempts}")
        if self.initial_backoff_s <= 0 or self.max_backoff_s < self.initial_backoff_s:
            raise InvalidArgument(
                "backoff: expected 0 < initial_backoff_s <= max_backoff_s, got "
                f"{self.initial_backoff_s} and {self.max_backoff_s}"
            )
        if self.multiplier < 1:
            raise InvalidArgument(f"multiplier: expected 1 or more, got {self.multiplier}")
        if not 0 <= self.jitter < 1:
            raise InvalidArgument(f"jitter: expected at least 0 and below 1, got {self.jitter}")


NO_RETRY: Final = RetryPolicy(max_attempts=1)


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after `wait_s`."""

    wait_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Raise the last error."""

    reason: str


Decision = Retry | GiveUp


def decide(
    policy: RetryPolicy,
    error: TideserveClientError,
    attempts: int,
    left_s: float,
    uniform: Callable[[], float],
) -> Decision:
    """What follows the failed attempt number `attempts` (from 1) with `left_s` to the deadline.

    `uniform` draws from [0, 1).
    """
    if error.code not in policy.codes:
        return GiveUp(f"{_name(error.code)} is not retried")
    if error.code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in error.message:
        return GiveUp("the message is too large")
    if attempts >= policy.max_attempts:
        return GiveUp(f"attempt {attempts} of {policy.max_attempts} failed")
    pushback_s = error.pushback_s
    if pushback_s is not None and pushback_s < 0:
        return GiveUp("the server wants no further attempt")
    if pushback_s is not None:
        wait_s = pushback_s * (1 + policy.jitter * uniform())
        reason = f"the server asked for {pushback_s:g} s"
    else:
        factor = 1 + policy.jitter * (2 * uniform() - 1)
        wait_s = _backoff_s(policy, attempts) * factor
        reason = f"backoff after attempt {attempts} of {policy.max_attempts}"
    if wait_s >= left_s:
        return GiveUp(f"a wait of {wait_s:.3g} s would pass the deadline in {left_s:.3g} s")
    return Retry(wait_s, reason)


def _backoff_s(policy: RetryPolicy, attempts: int) -> float:
    backoff_s = policy.initial_backoff_s
    for _ in range(attempts - 1):
        if backoff_s >= policy.max_backoff_s:
            break
        backoff_s *= policy.multiplier
    return min(backoff_s, policy.max_backoff_s)


def _name(code: grpc.StatusCode | None) -> str:
    return "an error without a status" if code is None else code.name


class Attempts:
    """The attempts of one call: counts them and keeps the one deadline they share."""

    def __init__(
        self,
        policy: RetryPolicy,
        timeout_s: float,
        now_s: float,
        uniform: Callable[[], float],
    ) -> None:
        self._policy = policy
        self._deadline_s = now_s + timeout_s
        self._uniform = uniform
        self.count = 0

    def begin(self, now_s: float) -> float | None:
        """Counts an attempt; what gRPC takes as its timeout in seconds, None for no deadline."""
        self.count += 1
        left_s = self._deadline_s - now_s
        return None if left_s == inf else max(left_s, 0.0)

    def failed(self, error: TideserveClientError, now_s: float) -> Decision:
        return decide(self._policy, error, self.count, self._deadline_s - now_s, self._uniform)
