from hypothesis import given
from hypothesis import strategies as st

from tideserve.autoscaler.core.failures import BackoffRules, Failures, failed, recovered

RULES = BackoffRules(give_up_after=100)


def row_of(count: int, rules: BackoffRules = RULES) -> Failures:
    failures = None
    for number in range(count):
        now_s = 100.0 * number
        failures = failed(failures, started_s=now_s, attributed=False, now_s=now_s, rules=rules)
    assert failures is not None
    return failures


@given(count=st.integers(min_value=1, max_value=60))
def test_the_wait_doubles_and_stays_within_half_a_second_and_thirty(count: int) -> None:
    failures = row_of(count)
    wait_s = failures.not_before_s - failures.last_s
    assert wait_s == min(30.0, 0.5 * 2 ** (count - 1))


def test_a_given_up_version_waits_for_the_long_pause() -> None:
    failures = row_of(5, BackoffRules())
    assert failures.given_up
    assert failures.not_before_s - failures.last_s == 60.0
    assert not row_of(4, BackoffRules()).given_up


def test_starts_of_one_round_fail_as_one() -> None:
    first = failed(None, started_s=0.0, attributed=False, now_s=1.0, rules=RULES)
    same = failed(first, started_s=0.0, attributed=False, now_s=2.0, rules=RULES)
    assert same is first


def test_deaths_laid_to_requests_count_each() -> None:
    first = failed(None, started_s=0.0, attributed=True, now_s=1.0, rules=RULES)
    second = failed(first, started_s=0.0, attributed=True, now_s=2.0, rules=RULES)
    assert second.count == 2


def test_a_replica_older_than_the_failure_proves_nothing() -> None:
    failures = failed(None, started_s=0.0, attributed=False, now_s=5.0, rules=RULES)
    assert not recovered(failures, started_s=4.0, ready_for_s=100.0, rules=RULES)
    assert recovered(failures, started_s=5.5, ready_for_s=0.0, rules=RULES)
