"""The policy against a queue that obeys it: stories, and what must hold in each."""

from dataclasses import replace
from itertools import pairwise

import pytest

from tests.autoscaler.core.loads import KEY, Served, kind, steps
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.settings import ModelPolicy, ScalingSettings

FAST = ModelPolicy(min_replicas=1, max_replicas=8, hold_s=4.0)


def changes(counts: list[int]) -> int:
    return sum(a != b for a, b in pairwise(counts))


def test_a_step_is_served_within_the_start_up_and_a_few_looks_and_comes_back() -> None:
    world = Served(steps((10.0, 20.0), (30.0, 200.0), (200.0, 20.0)), FAST)
    world.run(10.0)
    assert world.desired()[-1] == 1
    world.run(0.5 + 3 * 0.25)
    assert world.ready * 80.0 >= 200.0
    world.run(3.0)
    assert world.queued < 20.0
    world.run(60.0)
    assert world.desired()[-1] == 1


def test_the_story_of_a_step_up_and_down() -> None:
    world = Served(steps((10.0, 20.0), (30.0, 200.0), (200.0, 20.0)), FAST).run(75.0)
    assert world.told() == [
        "  0.00 1: active",
        " 10.00 2: panic",
        " 10.25 4: panic",
        " 18.75 3: proactive",
        " 42.25 2: proactive",
        " 51.25 1: proactive",
    ]


def test_the_story_of_a_spike() -> None:
    world = Served(steps((10.0, 40.0), (13.0, 400.0), (60.0, 40.0)), FAST).run(60.0)
    assert world.told() == [
        "  0.00 1: active",
        " 10.00 4: panic",
        " 10.25 8: panic",
        " 14.75 6: proactive",
        " 15.00 4: proactive",
        " 19.50 2: proactive",
        " 38.75 1: proactive",
    ]


def test_the_story_of_zero_and_back() -> None:
    policy = ModelPolicy(min_replicas=0, max_replicas=8, idle_s=4.0, hold_s=4.0)
    world = Served(steps((5.0, 20.0), (25.0, 0.0), (35.0, 20.0)), policy).run(35.0)
    told = world.told()
    assert [line[7] for line in told[:3]] == ["1", "0", "1"]
    gone_s, back_s = float(told[1][:6]), float(told[2][:6])
    assert 8.5 <= gone_s <= 10.5
    assert 25.0 <= back_s <= 25.75


def test_a_spike_is_followed_up_and_not_at_once_down() -> None:
    world = Served(steps((10.0, 40.0), (13.0, 400.0), (60.0, 40.0)), FAST).run(60.0)
    counts = world.desired()
    assert max(counts) >= 4
    top = counts.index(max(counts))
    # The hold: as many for at least 4 s.
    assert min(counts[top : top + 16]) == max(counts)
    assert counts[-1] == 1


def test_flapping_load_does_not_flap_the_count() -> None:
    world = Served(lambda now_s: 200.0 if int(now_s / 2) % 2 else 20.0, FAST).run(120.0)
    assert changes(world.desired(20.0)) <= 20
    assert min(world.desired(20.0)) >= 2


def test_more_is_kept_ready_the_more_of_the_growth_is_prepared_for() -> None:
    """Ten seconds of 400 in every forty: a fifth of the moments before is within Tc of them."""

    def waves(now_s: float) -> float:
        return 400.0 if now_s % 40.0 >= 30.0 else 160.0

    calm, bold = (
        Served(waves, replace(FAST, growth_quantile=share), startup_s=5.0).run(300.0)
        for share in (0.0, 1.0)
    )
    ratios = [world.decisions[-1][1].inputs["growth_ratio"] for world in (calm, bold)]
    assert ratios[0] == 1.0
    assert ratios[1] > 1.5
    assert bold.replica_s > calm.replica_s


def test_a_steady_load_has_a_steady_count() -> None:
    world = Served(lambda now_s: 200.0, FAST).run(140.0)
    assert changes(world.desired(20.0)) <= 6
    assert set(world.desired(20.0)) <= {3, 4}


def test_s2_s3_a_dead_source_changes_nothing_however_long() -> None:
    world = Served(
        steps((10.0, 200.0), (400.0, 0.0)), FAST, dead_source=lambda now_s: now_s > 10.0
    ).run(300.0)
    after = world.desired(16.0)
    assert changes(after) == 0
    assert after[0] >= 3
    assert world.decisions[-1][1].reason == "no data: nothing changes"


def test_s3_replicas_that_cannot_start_never_lower_the_count() -> None:
    world = Served(steps((5.0, 20.0), (100.0, 200.0)), FAST, starts=False).run(60.0)
    counts = world.desired()
    assert all(b >= a for a, b in pairwise(counts))
    assert counts[-1] >= 3


def test_a_restart_in_the_middle_keeps_what_runs_for_its_hold() -> None:
    world = Served(lambda now_s: 40.0, FAST, ready=6).run(3.0)
    assert set(world.desired()) == {6}
    world.run(60.0)
    assert world.desired()[-1] == 1
    again = Served(lambda now_s: 200.0, FAST, ready=3).run(10.0)
    assert min(again.desired()) >= 3


@pytest.mark.parametrize("rate", [5.0, 60.0, 300.0])
def test_s1_desired_stays_within_its_bounds_at_any_load(rate: float) -> None:
    policy = ModelPolicy(min_replicas=2, max_replicas=3)
    world = Served(lambda now_s: rate if now_s < 30 else 0.0, policy, ready=2).run(60.0)
    assert {min(world.desired()), max(world.desired())} <= {2, 3}
    if rate == 300.0:
        assert any(decision.limited_by == "max: 3" for _, decision in world.decisions)


def test_the_same_seed_gives_the_same_story() -> None:
    first = Served(lambda now_s: 100.0, FAST).run(20.0)
    second = Served(lambda now_s: 100.0, FAST).run(20.0)
    assert first.told() == second.told()
    assert first.replica_s == second.replica_s


def test_new_settings_keep_what_was_learned() -> None:
    world = Served(lambda now_s: 200.0, FAST).run(30.0)
    world.elastic.adopt(ScalingSettings(default=ModelPolicy(max_replicas=2)))
    decision = world.step()
    assert (decision.desired, decision.limited_by) == (2, "max: 2")
    assert decision.inputs["rows_per_s_20s"] > 150.0


def test_a_version_that_retires_is_wanted_no_more() -> None:
    elastic = ElasticPolicy(ScalingSettings())
    world = Served(lambda now_s: 20.0, FAST)
    snapshot = world._snapshot()
    retiring = type(snapshot)(1, (type(snapshot.models[0])(KEY, wanted=False),), snapshot.replicas)
    decision = elastic.decide(retiring, world._sample(), 0.0)[KEY]
    assert (decision.desired, decision.limited_by) == (0, "not wanted")
    assert kind(decision) == "retires"
