from hypothesis import given
from hypothesis import strategies as st

from tideserve.autoscaler.core.hold import Wants, hold_s_of, lowered, remembered
from tideserve.autoscaler.core.settings import ModelPolicy

HOLD_S = 10.0


def after(story: list[tuple[float, int]]) -> Wants:
    wants: Wants = ()
    for at_s, count in story:
        wants = remembered(wants, count, HOLD_S, at_s)
    return wants


def test_the_hold_is_what_the_file_says_or_a_multiple_of_the_start_up_time() -> None:
    assert hold_s_of(ModelPolicy(hold_s=1.0), startup_s=60.0) == 1.0
    assert hold_s_of(ModelPolicy(hold_factor=3.0), startup_s=20.0) == 60.0
    assert hold_s_of(ModelPolicy(hold_factor=3.0), startup_s=0.1) == 5.0


def test_it_goes_down_to_the_most_wanted_within_the_hold() -> None:
    wants = after([(0.0, 8), (5.0, 4), (11.0, 2)])
    assert lowered(8, wants, HOLD_S, 11.0) == (4, HOLD_S)
    assert lowered(8, wants, HOLD_S, 10.0) == (8, HOLD_S)


def test_by_one_it_goes_only_after_twice_the_hold() -> None:
    wants = after([(0.0, 8), (5.0, 7), (15.0, 7)])
    assert lowered(8, wants, HOLD_S, 15.0) == (8, 2 * HOLD_S)
    wants = remembered(wants, 7, HOLD_S, 21.0)
    assert lowered(8, wants, HOLD_S, 21.0) == (7, 2 * HOLD_S)


def test_what_there_was_at_first_holds_as_if_it_had_been_wanted() -> None:
    wants = after([(12.0, 8), (20.0, 2)])
    assert lowered(8, wants, HOLD_S, 22.0) == (8, HOLD_S)
    assert lowered(8, wants, HOLD_S, 22.1) == (2, HOLD_S)


@given(st.lists(st.tuples(st.floats(0.0, 3.0), st.integers(0, 9)), min_size=1, max_size=40))
def test_what_is_forgotten_would_not_have_been_the_most(steps: list[tuple[float, int]]) -> None:
    now_s = 0.0
    wants: Wants = ()
    story: list[tuple[float, int]] = []
    for step_s, count in steps:
        now_s += step_s
        story.append((now_s, count))
        wants = remembered(wants, count, HOLD_S, now_s)
        for span_s in (HOLD_S, 2 * HOLD_S):
            since_s = now_s - span_s
            expected = max(n for at_s, n in story if at_s >= since_s)
            assert max(n for at_s, n in wants if at_s >= since_s) == expected
