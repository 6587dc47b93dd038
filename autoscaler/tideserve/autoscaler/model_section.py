"""The sections of `models` and `defaults`: what one model is to have."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import Field, model_validator

from tideserve.autoscaler.core.settings import (
    ModelPolicy,
    QueueTarget,
    Schedule,
    StepLimits,
    Trigger,
)
from tideserve.autoscaler.section import MAX_REPLICAS, Bytes, Seconds, Section

_DAY_S: Final = 86_400.0


class QueueLatencySection(Section):
    """This quantile of the queue wait shall stay below the target."""

    quantile: float = Field(default=0.95, gt=0, lt=1, description="Which share of the requests.")
    target: Seconds | None = Field(
        default=None,
        gt=0,
        le=3600,
        description="Their longest wait in the queue; by default what a batch of one row leaves "
        "of the latency target, without one 0.1 s.",
    )


class StepsSection(Section):
    """How fast the count may change."""

    up: int | None = Field(default=None, ge=1, description="Replicas more, at most, within `per`.")
    down: int | None = Field(
        default=None, ge=1, description="Replicas fewer, at most, within `per`."
    )
    per: Seconds = Field(
        default=10.0, gt=0, le=3600, description="The time that `up` and `down` are for."
    )


class ScheduleSection(Section):
    """More replicas at certain times."""

    cron: str = Field(description="When it begins: minute, hour, day, month, day of week.")
    duration: Seconds = Field(gt=0, le=31 * _DAY_S, description="How long it lasts.")
    min: int = Field(ge=1, le=MAX_REPLICAS, description="At least so many replicas meanwhile.")
    timezone: str = Field(default="UTC", description="Of `cron`, such as Europe/Berlin.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        schedule = self.schedule()
        try:
            CronSim(schedule.cron, datetime(2024, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise ValueError(
                f"cron: expected five fields such as '0 8 * * 1-5': {error}"
            ) from error
        return self

    def schedule(self) -> Schedule:
        try:
            zone = ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError) as error:  # a folder, a long name
            raise ValueError(
                f"timezone: expected a name such as Europe/Berlin, got {self.timezone!r}"
            ) from error
        return Schedule(self.cron, self.duration, self.min, zone)


class TriggerSection(Section):
    """Replicas by any number that Prometheus has."""

    name: str = Field(pattern=r"^[A-Za-z0-9_]+$", description="For the decision's reason.")
    query: str = Field(min_length=1, description="PromQL with one number as its result.")
    target: float = Field(gt=0, description="How much of it one replica is for.")


class ModelSection(Section):
    """What one model is to have. In `models` what is left out is as in `defaults`."""

    min: int = Field(
        default=1, ge=0, le=MAX_REPLICAS, description="Replicas, at least; 0: none if idle."
    )
    max: int = Field(default=8, ge=0, le=MAX_REPLICAS, description="Replicas, at most.")
    queue_latency: QueueLatencySection = Field(
        default=QueueLatencySection(),
        description="Target of the wait in the queue.",
    )
    latency_target: Seconds | None = Field(
        default=None,
        gt=0,
        description="Time for a batch; by default the model's tideserve.latency_target.",
    )
    growth_quantile: float = Field(
        default=0.9,
        ge=0,
        le=1,
        description="Which share of the growth seen within a start-up time is prepared for.",
    )
    hold: Seconds | None = Field(
        default=None,
        ge=0,
        description="Down only to the most wanted within; by default hold_factor x Tc.",
    )
    hold_factor: float = Field(
        default=3.0, ge=0, le=100, description="k in hold = k x Tc, the measured start-up time."
    )
    idle: Seconds = Field(
        default=60.0,
        ge=0,
        description="With min 0: after so long without a request the last one goes.",
    )
    steps: StepsSection = Field(default=StepsSection(), description="Step limits.")
    schedules: tuple[ScheduleSection, ...] = Field(default=(), description="Minimums by time.")
    triggers: tuple[TriggerSection, ...] = Field(
        default=(), description="Queries to Prometheus; the highest of all wants counts."
    )
    priority: int = Field(
        default=1,
        ge=1,
        le=1000,
        description="Lower numbers get devices first where there are too few.",
    )
    cost_per_replica_second: float = Field(
        default=1.0, ge=0, description="For the cost in metrics and reports."
    )
    memory: Bytes = Field(
        default=0, ge=0, description="Of one replica on its device; 0: not counted."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"expected min to be at most max, got min {self.min}, max {self.max}")
        for schedule in self.schedules:
            if schedule.min > self.max:
                raise ValueError(
                    f"schedules: expected min to be at most max, got min {schedule.min}, "
                    f"max {self.max}"
                )
        names = [trigger.name for trigger in self.triggers]
        if len(set(names)) < len(names):
            raise ValueError(f"expected triggers of different names, got {', '.join(names)}")
        return self

    def policy(self) -> ModelPolicy:
        return ModelPolicy(
            min_replicas=self.min,
            max_replicas=self.max,
            queue_target=QueueTarget(self.queue_latency.quantile, self.queue_latency.target),
            latency_target_s=self.latency_target,
            growth_quantile=self.growth_quantile,
            hold_factor=self.hold_factor,
            hold_s=self.hold,
            idle_s=self.idle,
            steps=StepLimits(self.steps.up, self.steps.down, self.steps.per),
            schedules=tuple(schedule.schedule() for schedule in self.schedules),
            triggers=tuple(Trigger(t.name, t.query, t.target) for t in self.triggers),
            priority=self.priority,
            cost_per_replica_s=self.cost_per_replica_second,
            memory_bytes=self.memory,
        )


def inherited(defaults: Mapping[Any, Any], given: Mapping[Any, Any]) -> dict[Any, Any]:
    """Also within sections; lists are taken as a whole."""
    merged = {**defaults, **given}
    for key in defaults.keys() & given.keys():
        if isinstance(defaults[key], dict) and isinstance(given[key], dict):
            merged[key] = inherited(defaults[key], given[key])
    return merged
