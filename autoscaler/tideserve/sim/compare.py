"""The systems that are compared, by name: ours and the baselines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from tideserve.autoscaler.core.decision import Decision, Policy
from tideserve.autoscaler.core.elastic import ElasticPolicy
from tideserve.autoscaler.core.fleet import ModelKey, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.core.settings import ScalingSettings
from tideserve.autoscaler.core.state import Rules
from tideserve.sim.baselines.knative import KnativePolicy, KpaSettings
from tideserve.sim.baselines.kubernetes import HpaPolicy, HpaSettings
from tideserve.sim.baselines.ray import RayServePolicy, RaySettings
from tideserve.sim.baselines.static import StaticPolicy
from tideserve.sim.scenario import Run, Scenario, run_together

OURS: Final = "tideserve"
STATIC: Final = "static"
BASELINES: Final = ("kpa-60", "kpa-70", "kpa-80", "hpa", "ray", STATIC)


class Apart:
    """A policy for each model by its name, none of which knows of the others: they have the slots
    that are left when their replicas are to start."""

    def __init__(self, policies: Mapping[str, Policy]) -> None:
        self._policies = policies

    def decide(
        self, snapshot: Snapshot, sample: Sample, now_s: float
    ) -> Mapping[ModelKey, Decision]:
        """One decision a model version."""
        decisions: dict[ModelKey, Decision] = {}
        for model in snapshot.models:
            alone = replace(snapshot, models=(model,))
            decisions |= self._policies[model.key.name].decide(alone, sample, now_s)
        return decisions


def policy_of(system: str, scenarios: Sequence[Scenario], settings: ScalingSettings) -> Policy:
    """Of all models of a run. Raises ValueError for a system that there is not."""
    if system not in (OURS, *BASELINES):
        raise ValueError(f"--against: expected one of {', '.join(BASELINES)}, got '{system}'")
    if system == OURS:
        return ElasticPolicy(settings)
    return Apart({one.name: _baseline(system, one, settings) for one in scenarios})


def _baseline(system: str, scenario: Scenario, settings: ScalingSettings) -> Policy:
    """A baseline aims at the requests that a replica computes at a time, those of b* rows: what
    its users would set, and what served it best over the start-up times tried (docs/simulation.md)."""
    bounds = settings.policy_of(scenario.name)
    least, most = bounds.min_replicas, bounds.max_replicas
    each_rows = scenario.mean_request_work
    rate = len(scenario.arrived_s) * each_rows / scenario.duration_s
    rows = scenario.best_rows(max(1.0, rate / scenario.rows_per_s))
    concurrency = max(1.0, rows / each_rows)
    match system.split("-"):
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
    scenarios: Sequence[Scenario],
    settings: ScalingSettings,
    rules: Rules,
    systems: Iterable[str],
    seed: int,
) -> list[Run]:
    """The same arrivals under each of them: a run for each model, and one for all where there are
    several. A static count is the most that ours had."""
    runs: list[Run] = []
    for system in systems:
        policy = policy_of(system, scenarios, settings)
        if system == STATIC and runs:
            policy = Apart(
                {
                    run.model: StaticPolicy(run.figures.most_replicas)
                    for run in runs[: len(scenarios)]
                }
            )
        runs += run_together(scenarios, policy, rules, seed, system=system)
    return runs
