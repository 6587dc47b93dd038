"""Deadlines: which have passed, and what is kept of those that are over."""

from hypothesis import given
from hypothesis import strategies as st

from tideserve.server.front.native.deadlines import Deadlines


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "add", "drop", "passed"]), st.integers(0, 100)),
        max_size=60,
    )
)
def test_those_that_have_passed_are_told_once_and_the_earliest_first(
    steps: list[tuple[str, int]],
) -> None:
    deadlines, expected = Deadlines(), dict[int, float]()
    for call_id, (step, number) in enumerate(steps):
        if step == "add":
            deadlines.add(call_id, float(number))
            expected[call_id] = float(number)
        elif step == "drop":
            deadlines.drop(number)
            expected.pop(number, None)
        else:
            late = sorted((end_s, id_) for id_, end_s in expected.items() if end_s < number)
            assert deadlines.passed(number) == [id_ for _, id_ in late]
            for _, id_ in late:
                del expected[id_]
        assert len(deadlines) == len(expected)
        assert all(deadlines[id_] == end_s for id_, end_s in expected.items())


def test_what_is_over_does_not_pile_up() -> None:
    deadlines = Deadlines()
    for call_id in range(100_000):
        deadlines.add(call_id, 1e9)
        if call_id >= 100:
            deadlines.drop(call_id - 100)
        if call_id % 50 == 0:
            assert deadlines.passed(0.0) == []
            assert len(deadlines._heap) < 1500
    assert len(deadlines) == 100


def test_those_that_have_not_passed_are_not_looked_at() -> None:
    """All were, twenty times a second."""

    class Counted(float):
        compared = 0

        def __lt__(self, other: object) -> bool:
            Counted.compared += 1
            assert isinstance(other, float)
            return float(self) < float(other)

    deadlines = Deadlines()
    for call_id in range(10_000):
        deadlines.add(call_id, Counted(100.0 + call_id))
    assert deadlines.passed(50.0) == []
    Counted.compared = 0
    for _ in range(20):
        assert deadlines.passed(50.0) == []
    assert Counted.compared <= 20
    assert deadlines.passed(100.5) == [0]
