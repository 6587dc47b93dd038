"""The systems that are compared, by name: ours and the baselines."""

from collections.abc import Iterable
from typing import Final

from tideserve.autoscaler.core.decision import Policy
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.settings import ScalingSettings
from tideserve.autoscaler.core.state import Rules
from tideserve.sim.baselines.knative import KnativePolicy, KpaSettings
from tideserve.sim.baselines.kubernetes import HpaPolicy, HpaSettings
from tideserve.sim.baselines.ray import RayServePolicy, RaySettings
from tideserve.sim.baselines.static import StaticPolicy
from tideserve.sim.scenario import Run, Scenario, run_scaled

OURS: Final = "tideserve"
BASELINES: Final = ("kpa-60", "kpa-70", "kpa-80", "hpa", "ray", "static")


def policy_of(system: str, scenario: Scenario, settings: ScalingSettings) -> Policy:
    """A baseline aims at the requests that a replica computes at a time, those of b* rows: what
    its users would set, and what served it best over the start-up times tried (docs/simulation.md)."""
    if system not in (OURS, *BASELINES):
        raise ValueError(f"--against: expected one of {', '.join(BASELINES)}, got '{system}'")
    bounds = settings.policy_of(scenario.name)
    least, most = bounds.min_replicas, bounds.max_replicas
    each_rows = scenario.mean_request_rows
    rate = len(scenario.arrived_s) * each_rows / scenario.duration_s
    rows = scenario.best_rows(max(1.0, rate / scenario.rows_per_s))
    concurrency = max(1.0, rows / each_rows)
    match system.split("-"):
        case ["tideserve"]:
            return ElasticPolicy(settings)
        case ["kpa", percent]:
            return KnativePolicy(
                KpaSettings(
                    target_concurrency=concurrency,
                    utilization=int(percent) / 100.0,
                    min_replicas=least,
                    max_replicas=most,
                )
            )
        case ["hpa"]:
            return HpaPolicy(
                # It has no way to zero.
                HpaSettings(
                    target_concurrency=concurrency,
                    min_replicas=max(1, least),
                    max_replicas=most,
                )
            )
        case ["ray"]:
            return RayServePolicy(
                RaySettings(
                    target_ongoing_requests=concurrency, min_replicas=least, max_replicas=most
                )
            )
        case ["static"]:
            return StaticPolicy(max(1, most))
        case _:
            raise AssertionError(f"{system} has a name and no rule")


def compare(
    scenario: Scenario,
    settings: ScalingSettings,
    rules: Rules,
    systems: Iterable[str],
    seed: int,
) -> list[Run]:
    """The same arrivals under each of them. A static count is the most that ours had."""
    runs: list[Run] = []
    for system in systems:
        policy = policy_of(system, scenario, settings)
        if isinstance(policy, StaticPolicy) and runs:
            policy = StaticPolicy(runs[0].figures.most_replicas)
        runs.append(run_scaled(scenario, policy, rules, seed, system=system))
    return runs
