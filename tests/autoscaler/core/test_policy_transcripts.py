"""A source that is away and comes back: what a person reads in the log."""

import pytest

from tests.autoscaler.core.loads import Served
from tideserve.autoscaler.core.settings import ModelPolicy


@pytest.mark.parametrize("least", [0, 1])
@pytest.mark.parametrize("away_s", [20.0, 40.0, 100.0])
def test_s3_a_source_that_comes_back_scales_nothing_in_under_load(
    least: int, away_s: float
) -> None:
    world = Served(
        lambda now_s: 200.0,
        ModelPolicy(min_replicas=least, max_replicas=8),
        ready=3,
        dead_source=lambda now_s: 30.0 < now_s <= 30.0 + away_s,
    ).run(30.0 + away_s + 30.0)
    assert min(world.desired()) >= 3


def test_the_story_of_an_outage_after_which_nobody_asks() -> None:
    world = Served(
        lambda now_s: 200.0 if now_s < 40.0 else 0.0,
        ModelPolicy(min_replicas=0, max_replicas=8, hold_s=4.0, idle_s=10.0),
        ready=3,
        dead_source=lambda now_s: 30.0 < now_s <= 130.0,
    ).run(150.0)
    assert world.told() == [
        "  0.00 3: hold",
        "134.50 1: active",
        "140.25 0: idle",
    ]
    # Where data comes back (130.25), the hold and the idle time begin anew.
    assert set(world.desired(30.0)[: 4 * 104]) == {3}
