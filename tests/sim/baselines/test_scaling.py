"""Published rules of other autoscalers, by hand-computed sequences."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tideserve.autoscaler.core.decision import Decision, Policy
from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Load, Sample
from tideserve.sim.baselines.knative import KnativePolicy, KpaSettings
from tideserve.sim.baselines.kubernetes import HpaPolicy, HpaSettings
from tideserve.sim.baselines.ray import RayServePolicy, RaySettings
from tideserve.sim.baselines.static import StaticPolicy

KEY = ModelKey("m", 1, "a")
OTHER = ModelKey("other", 1, "a")


def fleet(key: ModelKey, ready: int, starting: int = 0) -> tuple[Replica, ...]:
    states = [ReplicaState.READY] * ready + [ReplicaState.STARTING] * starting
    # One that drains is no capacity to any of them.
    states.append(ReplicaState.DRAINING)
    return tuple(Replica(f"{key.name}-{number}", key, state) for number, state in enumerate(states))


def sample(now_s: float, concurrency: int) -> Sample:
    half = concurrency // 2
    load = Load(now_s, queued_requests=half, leased_requests=concurrency - half)
    return Sample(unix_s=now_s, loads={KEY: load})


def look(
    policy: Policy, now_s: float, concurrency: int | None, ready: int = 1, starting: int = 0
) -> Decision:
    seen = Sample(unix_s=now_s) if concurrency is None else sample(now_s, concurrency)
    snapshot = Snapshot(1, (Model(KEY),), fleet(KEY, ready, starting))
    return policy.decide(snapshot, seen, now_s)[KEY]


class Run:
    """Looks every second. `to` runs on through a time, included; the last decision stays."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._next_s = 0
        self.counts: list[int] = []

    def to(self, until_s: int, concurrency: int, ready: int = 1, starting: int = 0) -> Decision:
        for now_s in range(self._next_s, until_s + 1):
            decision = look(self._policy, float(now_s), concurrency, ready, starting)
            self.counts.append(decision.desired)
        self._next_s = until_s + 1
        return decision


def kpa(**changes: float) -> KnativePolicy:
    return KnativePolicy(KpaSettings(**{"target_concurrency": 10.0, "max_replicas": 50} | changes))  # type: ignore[arg-type]


def hpa(**changes: float) -> HpaPolicy:
    return HpaPolicy(HpaSettings(**{"target_concurrency": 10.0, "max_replicas": 50} | changes))  # type: ignore[arg-type]


def ray(**changes: float) -> RayServePolicy:
    return RayServePolicy(RaySettings(**{"max_replicas": 50} | changes))  # type: ignore[arg-type]


# --- Knative ------------------------------------------------------------------------------


def test_kpa_follows_the_stable_window() -> None:
    run = Run(kpa())
    run.to(99, 10, ready=2)
    # 29 s of 18 requests: 10 + 8 x 29 / 60 = 13.9, two replicas at 7. 31 s: 14.1, three.
    before = run.to(128, 18, ready=2)
    assert before.desired == 2
    after = run.to(130, 18, ready=2)
    assert (after.desired, after.limited_by) == (3, None)
    assert after.reason == "stable: concurrency 14.1 over 60 s, target 7 a replica"


def test_kpa_panics_by_the_short_window_and_goes_down_only_when_it_is_over() -> None:
    run = Run(kpa())
    assert run.to(60, 1).desired == 1
    # (2 x 70 + 4 x 1) / 6 = 24, four replicas for one that is READY; then 47, then 70.
    panics = run.to(62, 70)
    assert panics.desired == 4
    assert panics.reason == "panic: concurrency 24.0 over 6 s, target 7 a replica"
    assert run.to(64, 70).desired == 7
    assert run.to(66, 70).desired == 10
    # The last sign was at 66 s.
    held = run.to(127, 1, ready=10)
    assert (held.desired, held.limited_by) == (10, "panic: not below 10")
    over = run.to(128, 1, ready=10)
    assert (over.desired, over.limited_by) == (5, "max_scale_down_rate: 5")
    assert over.reason == "stable: concurrency 1.0 over 60 s, target 7 a replica"
    assert run.to(130, 1, ready=5).desired == 2
    assert run.to(132, 1, ready=2).desired == 1


@pytest.mark.parametrize(("concurrency", "mode"), [(7, "stable"), (8, "panic")])
def test_kpa_panics_where_twice_the_ready_ones_are_wanted(concurrency: int, mode: str) -> None:
    assert look(kpa(), 0.0, concurrency).reason.startswith(mode)


def test_kpa_provisions_in_panic_for_the_stable_window_where_that_is_more() -> None:
    run = Run(kpa())
    run.to(0, 7)
    run.to(90, 70, ready=10)
    assert run.to(93, 0, ready=10).reason.startswith("stable")
    # Nine die: 2 x 70 / 6 = 23.3, four for one that is READY; 56 x 70 / 60 = 65.3, ten.
    panics = run.to(94, 0, ready=1)
    assert (panics.desired, panics.reason[:23]) == (10, "panic: concurrency 23.3")


def test_kpa_with_several_ready_begins_in_panic() -> None:
    run = Run(kpa())
    begun = run.to(60, 0, ready=3)
    assert (begun.desired, begun.limited_by) == (3, "panic: not below 3")
    # floor(3 / 2) stay, of no more than the one minimum.
    assert run.to(62, 0, ready=3).desired == 1


def test_kpa_goes_up_by_at_most_a_factor_of_the_ready_ones() -> None:
    decision = look(kpa(max_scale_up_rate=2.0), 0.0, 70, ready=1)
    assert (decision.desired, decision.limited_by) == (2, "max_scale_up_rate: 2")


@pytest.mark.parametrize(("utilization", "count"), [(0.6, 17), (0.7, 15), (0.8, 13)])
def test_kpa_aims_at_a_share_of_the_target(utilization: float, count: int) -> None:
    assert look(kpa(utilization=utilization), 0.0, 100).desired == count


def test_kpa_repeats_its_decision_between_ticks() -> None:
    run = Run(kpa())
    run.to(0, 1)
    run.to(2, 700)
    assert run.counts[:2] == [1, 1]
    assert run.counts[2] > 1


def test_kpa_goes_to_zero_after_the_stable_window_and_the_grace_and_wakes_at_once() -> None:
    run = Run(kpa(min_replicas=0))
    active = run.to(59, 0)
    assert (active.desired, active.limited_by) == (1, "stable_s: active for less than 60 s")
    grace = run.to(89, 0)
    assert (grace.desired, grace.limited_by) == (1, "scale_to_zero_grace_s: 30")
    assert run.to(90, 0).desired == 0
    assert run.to(92, 0, ready=0).desired == 0
    # 93 s is between two ticks. The window is empty again at 154 s.
    assert run.to(93, 1, ready=0).desired == 1
    assert run.to(183, 0).desired == 1
    assert run.to(184, 0).desired == 0


# --- Kubernetes ---------------------------------------------------------------------------


def test_hpa_decides_at_its_syncs() -> None:
    run = Run(hpa())
    waits = run.to(14, 30, ready=2)
    assert (waits.desired, waits.reason) == (2, "no metric before 15 s")
    first = run.to(15, 30, ready=2)
    assert first.desired == 3
    assert first.reason == "concurrency 15.0 a replica over 15 s, target 10"
    assert run.to(29, 45, ready=3).desired == 3
    # (14 x 45 + 1 x 45) / 15: the readings of 16 to 30 s.
    assert run.to(30, 45, ready=3).desired == 5


@pytest.mark.parametrize(
    ("concurrency", "count"), [(18, 2), (20, 2), (22, 2), (23, 3), (31, 4), (0, 2)]
)
def test_hpa_leaves_what_is_within_tolerance(concurrency: int, count: int) -> None:
    """Of two replicas: 1.1 times the target is within it, 1.15 is not. 0 waits to be stable."""
    assert Run(hpa()).to(15, concurrency, ready=2).desired == count


def test_hpa_adds_four_or_as_many_as_there_are_in_a_period() -> None:
    run = Run(hpa())
    limited = run.to(15, 200, ready=2)
    assert (limited.desired, limited.limited_by) == (6, "scale up: 4 in 15 s")
    assert run.to(30, 200, ready=6).desired == 12
    assert run.to(45, 200, ready=12).desired == 20


def test_hpa_counts_what_earlier_syncs_added_within_the_period() -> None:
    run = Run(hpa(sync_s=5.0))
    assert run.to(5, 200, ready=2).desired == 6
    assert run.to(19, 200, ready=2).desired == 6
    assert run.to(20, 200, ready=6).desired == 12


@pytest.mark.parametrize(("concurrency", "count"), [(38, 4), (43, 4), (45, 5), (19, 4)])
def test_hpa_counts_those_that_start_as_idle(concurrency: int, count: int) -> None:
    """Two of four are READY. 38: up without the others, down with them: no change. 43: within
    tolerance with them. 45: 1.125, five. 19: within tolerance without them."""
    assert Run(hpa()).to(15, concurrency, ready=2, starting=2).desired == count


def test_hpa_goes_down_to_the_most_recommended_in_five_minutes() -> None:
    run = Run(hpa())
    run.to(60, 40, ready=4)
    run.to(210, 10, ready=4)
    run.to(225, 24, ready=4)
    held = run.to(359, 10, ready=4)
    assert (held.desired, held.limited_by) == (4, "stabilization: 4 within 300 s")
    # Four were recommended at 60 s last; three at 225 s.
    partly = run.to(360, 10, ready=4)
    assert (partly.desired, partly.limited_by) == (3, "stabilization: 3 within 300 s")
    assert run.to(524, 10, ready=3).desired == 3
    assert run.to(525, 10, ready=3).desired == 1


def test_hpa_stays_within_its_bounds() -> None:
    run = Run(hpa(min_replicas=2, max_replicas=5))
    assert run.to(14, 200, ready=1).desired == 2
    most = run.to(30, 200, ready=2)
    assert (most.desired, most.limited_by) == (5, "max: 5")


def test_hpa_does_not_go_down_on_the_word_of_too_many_requests() -> None:
    run = Run(hpa())
    run.to(0, 50, ready=10)
    # 25 a replica is too much, and yet five would do: no change, not even after 300 s.
    assert run.to(330, 50, ready=2).desired == 10


def test_hpa_without_a_ready_replica_has_no_metric() -> None:
    run = Run(hpa())
    decision = run.to(15, 100, ready=0, starting=3)
    assert (decision.desired, decision.reason) == (3, "no metric of a READY replica")


def test_hpa_leaves_zero_by_the_concurrency_alone() -> None:
    run = Run(hpa(min_replicas=0))
    assert run.to(300, 0).desired == 0
    assert run.to(315, 21, ready=0).desired == 3


# --- Ray Serve ----------------------------------------------------------------------------


def test_ray_goes_up_after_the_delay_by_what_is_wanted_then() -> None:
    run = Run(ray())
    assert run.to(99, 2).desired == 1
    # Read at 100 s; wanted from 101 s on: (29 x 2 + 8) / 30 = 2.2, two replicas.
    waits = run.to(130, 8)
    assert waits.desired == 1
    assert waits.limited_by == "upscale_delay_s: 4 wanted for 29.0 of 30 s"
    done = run.to(131, 8)
    assert (done.desired, done.limited_by) == (4, None)
    assert done.reason == "8.0 ongoing over 30 s, target 2 a replica"


def test_ray_reads_requests_at_intervals_only() -> None:
    run = Run(ray(upscale_delay_s=0.0))
    run.to(100, 2)
    run.to(109, 100)
    assert set(run.counts) == {1}
    run.to(115, 100)
    assert run.counts[-1] > 1


def test_ray_starts_the_delay_anew_when_the_want_passes() -> None:
    run = Run(ray(upscale_delay_s=40.0))
    run.to(99, 2)
    run.to(109, 8)
    # One reading of 8 is within the look-back from 101 to 139 s: 39 s.
    run.to(149, 2)
    run.to(159, 8)
    run.to(300, 2)
    assert set(run.counts) == {1}


def test_ray_goes_down_after_its_longer_delay() -> None:
    run = Run(ray())
    run.to(99, 8, ready=4)
    # From 110 s on: 8 - 6 x 10 / 30 = 6, three replicas.
    assert run.to(709, 2, ready=4).desired == 4
    assert run.to(710, 2, ready=4).desired == 1


def test_ray_lets_the_last_one_go_alone_and_wakes_at_once() -> None:
    run = Run(ray(min_replicas=0, downscale_delay_s=10.0))
    run.to(9, 0, ready=2)
    assert run.to(10, 0, ready=2).desired == 1
    assert run.to(20, 0).desired == 1
    assert run.to(21, 0).desired == 0
    assert run.to(30, 0, ready=0).desired == 0
    wakes = run.to(31, 3, ready=0)
    assert (wakes.desired, wakes.reason) == (1, "no running replica, 3 requests wait")
    assert run.to(35, 3, ready=0, starting=1).desired == 1


@pytest.mark.parametrize(
    ("up", "down", "ready", "concurrency", "count"),
    [
        (1.0, 1.0, 2, 12, 6),
        (0.5, 1.0, 2, 12, 4),  # 2 + 0.5 (6 - 2)
        (2.0, 1.0, 2, 12, 10),
        (1.0, 0.5, 4, 2, 3),  # 4 - 0.5 (4 - 1) = 2.5
        (1.0, 0.1, 4, 2, 3),  # 3.7 would stay at four
    ],
)
def test_ray_goes_a_part_of_the_way(
    up: float, down: float, ready: int, concurrency: int, count: int
) -> None:
    policy = ray(
        upscaling_factor=up, downscaling_factor=down, upscale_delay_s=0.0, downscale_delay_s=0.0
    )
    assert look(policy, 0.0, concurrency, ready).desired == count


def test_ray_stays_within_its_bounds() -> None:
    most = look(ray(upscale_delay_s=0.0, max_replicas=3), 0.0, 100, ready=2)
    assert (most.desired, most.limited_by) == (3, "max: 3")
    least = look(ray(downscale_delay_s=0.0, min_replicas=2), 0.0, 0, ready=4)
    assert (least.desired, least.limited_by) == (2, "min: 2")


# --- all ----------------------------------------------------------------------------------

POLICIES: list[Callable[[], Policy]] = [kpa, hpa, ray, lambda: StaticPolicy(3)]


@pytest.mark.parametrize("make", POLICIES)
def test_a_version_that_retires_gets_none(make: Callable[[], Policy]) -> None:
    snapshot = Snapshot(1, (Model(KEY, wanted=False), Model(OTHER)), fleet(OTHER, 3))
    decisions = make().decide(snapshot, Sample(unix_s=0.0), 0.0)
    assert {key: decision.desired for key, decision in decisions.items()} == {KEY: 0, OTHER: 3}
    assert decisions[KEY].limited_by == "not wanted"


@pytest.mark.parametrize("make", [kpa, hpa, ray])
def test_s2_without_data_nothing_changes(make: Callable[[], Policy]) -> None:
    policy = make()
    assert look(policy, 0.0, None, ready=4).desired == 4
    assert look(policy, 1.0, 0, ready=4).desired == 4
    lost = look(policy, 400.0, None, ready=0)
    assert (lost.desired, lost.reason) == (4, "no data: nothing changes")
    snapshot = Snapshot(1, (Model(KEY),), fleet(KEY, 1))
    old = policy.decide(snapshot, sample(400.0, 0), 406.0)[KEY]
    assert (old.desired, old.reason) == (4, "no data: nothing changes")


@pytest.mark.parametrize("make", [kpa, hpa, ray])
def test_each_version_has_its_own_past(make: Callable[[], Policy]) -> None:
    policy, alone = make(), make()
    snapshot = Snapshot(1, (Model(KEY), Model(OTHER)), (*fleet(KEY, 1), *fleet(OTHER, 1)))
    for now_s in range(100):
        busy, idle = Load(float(now_s), queued_requests=90), Load(float(now_s))
        both = Sample(unix_s=0.0, loads={KEY: busy, OTHER: idle})
        decisions = policy.decide(snapshot, both, float(now_s))
        assert decisions[KEY] == look(alone, float(now_s), 90)
        assert decisions[OTHER].desired == 1
    assert decisions[KEY].desired > 1


def test_a_static_count_stays() -> None:
    policy = StaticPolicy(3)
    assert {look(policy, float(at), at, ready=at).desired for at in range(5)} == {3}


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([kpa, hpa, ray]),
    least=st.integers(0, 4),
    more=st.integers(1, 6),
    looks=st.lists(
        st.tuples(
            st.sampled_from([0.25, 1.0, 7.0, 40.0]),
            st.one_of(st.none(), st.integers(0, 500)),
            st.integers(0, 12),
            st.integers(0, 4),
        ),
        min_size=1,
        max_size=40,
    ),
)
def test_s1_bounds_hold(
    kind: Callable[..., Policy],
    least: int,
    more: int,
    looks: list[tuple[float, int | None, int, int]],
) -> None:
    policy = kind(min_replicas=least, max_replicas=least + more)
    now_s = 0.0
    for gap_s, concurrency, ready, starting in looks:
        now_s += gap_s
        decision = look(policy, now_s, concurrency, ready, starting)
        assert least <= decision.desired <= least + more
        assert decision.reason
