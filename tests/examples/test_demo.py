"""The demo's scenario, figures and picture; tests/e2e runs the whole of it."""

from collections import Counter
from pathlib import Path

from examples.demo.load import Answers
from examples.demo.picture import draw
from examples.demo.recording import Moment, figures
from examples.demo.scenario import PHASES, Phase, arrivals, duration_s, rate_at

STEPS = (Phase("quiet", 2.0, 10.0), Phase("step", 3.0, 100.0), Phase("wake", 2.0, 10.0))


def moment(at_s: float, ready: int, *, starting: int = 0, desired: int = 1) -> Moment:
    return Moment(at_s, 0.0, 0.0, ready, starting, desired, 0, 0.01, "because")


def test_arrivals_are_the_same_for_the_same_seed_and_as_many_as_the_rates_say() -> None:
    sent = list(arrivals(PHASES, 7))
    assert sent == list(arrivals(PHASES, 7))
    assert sent != list(arrivals(PHASES, 8))
    assert sent == sorted(sent)
    assert sent[-1] < duration_s(PHASES)
    expected = sum(phase.duration_s * phase.rate for phase in PHASES)
    assert abs(len(sent) - expected) < 4 * expected**0.5


def test_nothing_is_sent_in_a_phase_without_load() -> None:
    silent = [phase.name for phase in PHASES if phase.rate == 0.0]
    assert silent == ["zero"]
    assert all(rate_at(PHASES, at_s) > 0.0 for at_s in arrivals(PHASES, 7))


def test_the_rate_is_that_of_the_phase() -> None:
    assert [rate_at(STEPS, at_s) for at_s in (-1.0, 0.0, 2.0, 4.9, 5.0, 7.0)] == [
        0.0,
        10.0,
        100.0,
        100.0,
        10.0,
        0.0,
    ]


def test_figures_of_a_run() -> None:
    moments = [
        moment(0.0, 1),
        moment(1.0, 1),
        moment(2.0, 1, desired=3),
        moment(2.5, 1, starting=2, desired=3),
        moment(3.0, 3, desired=3),
        moment(4.5, 0, desired=0),
        moment(6.0, 1),
    ]
    answers = Answers([(0.5, 0.01), (2.5, 0.2), (5.1, 0.3), (5.4, 0.02)], Counter({"lost": 2}))
    found = figures(moments, answers, STEPS)
    assert (found.requests, found.failed) == (6, 2)
    assert (found.most_ready, found.fewest_ready_after, found.last_ready) == (3, 0, 1)
    assert found.first_ready_s == 1.0
    assert found.wake_s == 0.3
    assert found.replica_s == 1.0 + 1.0 + 0.5 + 1.5 + 4.5
    assert found.decisions == 3
    assert found.latency_p95_s["1. quiet"] == 0.01


def test_a_step_that_no_replica_follows_has_no_figure() -> None:
    found = figures([moment(0.0, 1), moment(6.0, 1)], Answers(), STEPS)
    assert found.first_ready_s is None
    assert found.wake_s is None


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    out = tmp_path / "new" / "demo.png"
    draw([moment(0.0, 1), moment(2.0, 1, desired=3), moment(6.0, 3)], STEPS, 0.1, "a note", out)
    assert out.read_bytes().startswith(b"\x89PNG")
