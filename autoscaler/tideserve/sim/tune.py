"""Which few settings of an autoscaler file hold the attainment asked for at the least cost."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import inf
from typing import Final

from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.settings import ModelPolicy, ScalingSettings
from tideserve.autoscaler.core.state import Rules
from tideserve.sim.scenario import Run, Scenario, run_scaled

# From the dearest to the cheapest: how long a count is held, in start-up times.
HOLD_FACTORS: Final = (6.0, 4.0, 3.0, 2.0, 1.0, 0.5)
# Of the growth that is prepared for. It goes with the hold: the less of it, the longer a hold costs
# the same, so all pairs are tried.
GROWTH_QUANTILES: Final = (0.9, 0.7, 0.5)
# Halvings of the way from the best hold to the next shorter one: 6 and 4 may become 5, 5.5, 5.25, 5.125.
HOLD_STEPS: Final = 4
# What is planned for, as a share of the latency target: less of it means smaller batches, and
# more replicas.
TARGET_SHARES: Final = (0.7, 0.85, 1.0, 1.15)


@dataclass(frozen=True, slots=True)
class Goal:
    """At least this share in time, and at most so many turns of the desired count an hour."""

    attainment: float
    reversals_per_hour: float = inf


@dataclass(frozen=True, slots=True)
class Candidate:
    """One combination, and what it comes to."""

    policy: ModelPolicy
    standby: int
    run: Run


def tune(
    scenario: Scenario,
    settings: ScalingSettings,
    rules: Rules,
    goal: Goal,
    seed: int,
    on_candidate: Callable[[Candidate], None] = lambda _: None,
) -> tuple[Candidate, list[Candidate]]:
    """The cheapest that reaches `goal`, or what comes nearest to it where none does; and all
    that were tried. One setting after the other, each from the best so far: growth and hold,
    then the target that is planned for, then standbys, then the bound from above."""
    tried: list[Candidate] = []
    base = settings.policy_of(scenario.name)
    target_s = base.latency_target_s or scenario.target_s

    def attempt(policy: ModelPolicy, standby: int) -> None:
        if any(one.policy == policy and one.standby == standby for one in tried):
            return
        models = {**settings.models, scenario.name: policy}
        changed = replace(settings, models=models, standby=standby)
        run = run_scaled(scenario, ElasticPolicy(changed), replace(rules, standby=standby), seed)
        tried.append(Candidate(policy, standby, run))
        on_candidate(tried[-1])

    attempt(base, settings.standby)
    for quantile, factor in product(GROWTH_QUANTILES, HOLD_FACTORS):
        policy = replace(base, growth_quantile=quantile, hold_factor=factor, hold_s=None)
        attempt(policy, settings.standby)
    best = best_of(tried, goal)
    shorter = max((f for f in HOLD_FACTORS if f < best.policy.hold_factor), default=None)
    if shorter is not None and best.policy.hold_s is None:
        for _ in range(HOLD_STEPS):
            factor = (shorter + best.policy.hold_factor) / 2
            attempt(replace(best.policy, hold_factor=factor), best.standby)
            nearer = best_of(tried, goal)
            if nearer is best:
                shorter = factor
            best = nearer
    for share in TARGET_SHARES:
        attempt(replace(best.policy, latency_target_s=share * target_s), best.standby)
    best = best_of(tried, goal)
    for standby in (0, 1, 2):
        attempt(best.policy, standby)
    best = best_of(tried, goal)
    # No fewer than were used: what one run could do without, another one may need.
    bound = max(1, best.run.figures.most_replicas, best.policy.min_replicas)
    attempt(replace(best.policy, max_replicas=bound), best.standby)
    return best_of(tried, goal), tried


def best_of(tried: list[Candidate], goal: Goal) -> Candidate:
    """The nearest to the share in time, then to the turns, then the cheapest."""

    def rank(one: Candidate) -> tuple[float, float, float, int]:
        figures = one.run.figures
        return (
            max(0.0, goal.attainment - figures.attainment),
            max(0.0, figures.reversals_per_hour - goal.reversals_per_hour),
            figures.replica_s,
            one.policy.max_replicas,
        )

    return min(tried, key=rank)
