import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tideserve.client import (
    NO_RETRY,
    InvalidArgument,
    ModelError,
    ResourceExhausted,
    RetryPolicy,
    Unavailable,
)
from tideserve.client.retry import Attempts, Decision, GiveUp, Retry, decide
from tideserve.client.statuses import error_of, pushback_s_of

INF = float("inf")


def middle() -> float:
    return 0.5


def wait_s(decision: Decision) -> float:
    assert isinstance(decision, Retry), decision
    return decision.wait_s


def test_waits_double_until_the_longest_one() -> None:
    policy = RetryPolicy(max_attempts=9, initial_backoff_s=0.1, max_backoff_s=0.5)
    waits = [wait_s(decide(policy, Unavailable("x"), n, INF, middle)) for n in range(1, 6)]
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.5, 0.5])


@given(draw=st.floats(0, 1, exclude_max=True), attempts=st.integers(1, 8))
def test_jitter_moves_a_wait_by_its_share_at_most(draw: float, attempts: int) -> None:
    policy = RetryPolicy(max_attempts=9, jitter=0.2)
    plain = wait_s(decide(policy, Unavailable("x"), attempts, INF, middle))
    moved = wait_s(decide(policy, Unavailable("x"), attempts, INF, lambda: draw))
    assert 0.8 * plain - 1e-12 <= moved <= 1.2 * plain + 1e-12


@given(draw=st.floats(0, 1, exclude_max=True), pushback=st.floats(0, 10))
def test_a_push_back_is_never_shortened(draw: float, pushback: float) -> None:
    error = ResourceExhausted("full", pushback_s=pushback)
    wait = wait_s(decide(RetryPolicy(), error, 1, INF, lambda: draw))
    assert pushback <= wait <= pushback * 1.2 + 1e-12


def test_a_push_back_of_unavailable_is_obeyed_too() -> None:
    error = Unavailable("starting", pushback_s=1.5)
    assert wait_s(decide(RetryPolicy(), error, 1, INF, lambda: 0.0)) == 1.5


def test_a_negative_push_back_ends_it() -> None:
    error = ResourceExhausted("full", pushback_s=-1.0)
    assert decide(RetryPolicy(), error, 1, INF, middle) == GiveUp(
        "the server wants no further attempt"
    )


def test_a_wait_past_the_deadline_is_not_begun() -> None:
    error = ResourceExhausted("full", pushback_s=2.0)
    assert isinstance(decide(RetryPolicy(), error, 1, 1.9, lambda: 0.0), GiveUp)
    assert isinstance(decide(RetryPolicy(), error, 1, 2.1, lambda: 0.0), Retry)


def test_attempts_are_bounded() -> None:
    policy = RetryPolicy(max_attempts=3)
    assert isinstance(decide(policy, Unavailable("x"), 2, INF, middle), Retry)
    assert isinstance(decide(policy, Unavailable("x"), 3, INF, middle), GiveUp)
    assert isinstance(decide(NO_RETRY, Unavailable("x"), 1, INF, middle), GiveUp)


def test_other_errors_are_not_retried() -> None:
    assert isinstance(decide(RetryPolicy(), ModelError("raised"), 1, INF, middle), GiveUp)


def test_a_message_that_is_too_large_is_not_sent_again() -> None:
    error = ResourceExhausted("SERVER: Received message larger than max (9 vs. 8)")
    assert isinstance(decide(RetryPolicy(), error, 1, INF, middle), GiveUp)


def test_attempts_share_one_deadline() -> None:
    attempts = Attempts(RetryPolicy(initial_backoff_s=1.0), 3.0, now_s=10.0, uniform=middle)
    assert attempts.begin(10.0) == 3.0
    assert attempts.failed(Unavailable("x"), 11.0) == Retry(1.0, "backoff after attempt 1 of 4")
    assert attempts.begin(12.0) == 1.0
    assert isinstance(attempts.failed(Unavailable("x"), 12.5), GiveUp)
    assert Attempts(RetryPolicy(), INF, 0.0, middle).begin(5.0) is None


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ((), None),
        ((("other", "1"),), None),
        ((("grpc-retry-pushback-ms", "250"),), 0.25),
        ((("grpc-retry-pushback-ms", "0"),), 0.0),
        ((("grpc-retry-pushback-ms", "-5"),), -1.0),
        ((("grpc-retry-pushback-ms", "soon"),), -1.0),
    ],
)
def test_push_back_metadata(metadata: tuple[tuple[str, str], ...], expected: float | None) -> None:
    assert pushback_s_of(metadata) == expected
    error = error_of(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", metadata)
    assert error.pushback_s == expected


@pytest.mark.parametrize(
    ("field", "policy"),
    [
        ("max_attempts", {"max_attempts": 0}),
        ("backoff", {"initial_backoff_s": 0.0}),
        ("backoff", {"initial_backoff_s": 3.0}),
        ("multiplier", {"multiplier": 0.5}),
        ("jitter", {"jitter": 1.0}),
    ],
)
def test_a_policy_that_cannot_be_is_refused(field: str, policy: dict[str, float]) -> None:
    with pytest.raises(InvalidArgument, match=field):
        RetryPolicy(**policy)  # type: ignore[arg-type]
