"""The autoscaler file: its keys with units, defaults and ranges, and what the core gets of it.

docs/autoscaler.md has a row for every key; a test compares it with the schema made here.
"""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from tideserve.autoscaler.core.settings import (
    Device,
    ModelPolicy,
    QueueTarget,
    ScalingSettings,
    Schedule,
    StepLimits,
    Trigger,
)
from tideserve.autoscaler.quantity import (
    MAX_CORE,
    MAX_SIZE,
    address_of,
    bytes_of,
    cores_of,
    host_port_of,
    mounted_of,
    seconds_of,
)

MAX_REPLICAS: Final = 4096
_DAY_S: Final = 86_400.0

_QUANTITY_SCHEMA: Final = {"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}
Seconds = Annotated[
    float, BeforeValidator(seconds_of), WithJsonSchema({**_QUANTITY_SCHEMA, "x-unit": "s"})
]
Bytes = Annotated[
    int, BeforeValidator(bytes_of), WithJsonSchema({**_QUANTITY_SCHEMA, "x-unit": "bytes"})
]


HostPort = Annotated[str, AfterValidator(host_port_of)]


class Section(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth(cls, value: object) -> object:
        # No key is one of yes or no; `min: yes` would be 1.
        if isinstance(value, bool):
            said = f"expected a number, text or keys, got {str(value).lower()}"
            raise ValueError(said)  # noqa: TRY004 - pydantic's kind
        return value


class ServerSection(Section):
    """Which frontend it scales. `tideserve serve --autoscaler FILE` says so itself."""

    address: Annotated[str, AfterValidator(address_of)] = Field(
        default="127.0.0.1:8001",
        description="HOST:PORT of the frontend's gRPC port, or unix:/PATH.",
    )
    token_file: Path | None = Field(
        default=None, description="File with the frontend's token; by default $TIDESERVE_TOKEN."
    )


class PrometheusSection(Section):
    """A Prometheus server."""

    url: str = Field(description="Its address, such as http://127.0.0.1:9090.")
    interval: Seconds = Field(default=1.0, ge=0.1, le=300, description="How often it is asked.")

    @field_validator("url")
    @classmethod
    def _check_url(cls, url: str) -> str:
        # Judged by who will dial it; imported for files that have one (9 MB).
        import httpx

        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ValueError(
                f"expected a URL such as http://127.0.0.1:9090, got {url!r}: {error}"
            ) from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ValueError(f"expected a URL such as http://127.0.0.1:9090, got {url!r}")
        return url.rstrip("/")


class DockerSection(Section):
    """Replicas as containers of a Docker Engine."""

    image: str = Field(default="tideserve:cpu", min_length=1, description="The server's image.")
    frontend_address: HostPort = Field(
        description="HOST:PORT of the frontend, as the containers reach it."
    )
    models_source: Annotated[str, AfterValidator(mounted_of)] = Field(
        description="The model repository: a path of the engine's machine, or a volume's name.",
    )
    models_path: str = Field(
        default="",
        description="Where it is mounted, read-only; must be its path as the frontend has it. "
        "By default the same path, or /models for a volume.",
    )
    link_source: str = Field(
        default="",
        description="The frontend's --link-folder: a path of the engine's machine, or a volume's "
        "name. The containers dial its socket and share memory with the frontend; by default "
        "they dial frontend_address alone.",
    )
    network: str = Field(
        default="", description="The containers' network; by default the engine's."
    )
    owner: str = Field(
        default="",
        description="Marks this frontend's containers; by default the frontend's address.",
    )
    user: str = Field(default="", description="UID:GID in the containers; by default the image's.")
    memory: Bytes = Field(default=0, ge=0, description="Memory limit of a replica; 0: none.")
    cpus: float = Field(
        default=0.0, ge=0, le=MAX_CORE + 1, description="CPUs that a replica may use; 0: all."
    )
    engine_url: str = Field(
        default="",
        description="Of the Docker Engine; by default $DOCKER_HOST, else the local socket.",
    )

    @field_validator("models_path", "link_source")
    @classmethod
    def _check_path(cls, path: str, info: ValidationInfo) -> str:
        if path and info.field_name == "models_path" and not path.startswith("/"):
            raise ValueError(f"expected a path from the root such as /models, got {path!r}")
        return mounted_of(path) if path else path


class DockerLauncherSection(Section):
    """`launcher: {docker: {...}}`."""

    docker: DockerSection = Field(description="Containers of a Docker Engine.")


class PrometheusSourceSection(Section):
    """`source: {prometheus: {...}}`."""

    prometheus: PrometheusSection = Field(description="A Prometheus server.")


class DeviceSection(Section):
    """Something that replicas compute on."""

    name: str = Field(
        default="cpu", description="cpu, or gpu:INDEX.", pattern=r"^(cpu|gpu:(0|[1-9][0-9]{0,3}))$"
    )
    slots: int = Field(default=8, ge=1, le=MAX_REPLICAS, description="Replicas that fit on it.")
    memory: Bytes = Field(
        default=0, ge=0, description="Memory that replicas share; 0: not counted."
    )
    threads: int = Field(default=1, ge=0, le=1024, description="Threads of each replica's model.")
    cores: tuple[str, ...] = Field(
        default=(), description="CPU sets such as 0-3, which replicas take in turn; none: any CPU."
    )

    @field_validator("cores")
    @classmethod
    def _check_cores(cls, cores: tuple[str, ...]) -> tuple[str, ...]:
        for text in cores:
            cores_of(text)
        return cores

    def device(self) -> Device:
        return Device(
            self.name,
            self.slots,
            self.memory,
            self.threads,
            tuple(cores_of(text) for text in self.cores),
        )


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


def _inherited(defaults: Mapping[Any, Any], given: Mapping[Any, Any]) -> dict[Any, Any]:
    """Also within sections; lists are taken as a whole."""
    merged = {**defaults, **given}
    for key in defaults.keys() & given.keys():
        if isinstance(defaults[key], dict) and isinstance(given[key], dict):
            merged[key] = _inherited(defaults[key], given[key])
    return merged


def _default_devices() -> tuple[DeviceSection, ...]:
    """The CPU, with two replicas a core: models that wait leave it to others."""
    return (DeviceSection(name="cpu", slots=max(8, 2 * (os.cpu_count() or 1))),)


class AutoscalerFile(Section):
    """The whole file; an empty one is good."""

    server: ServerSection = Field(default=ServerSection(), description="The frontend.")
    source: Literal["frontend"] | PrometheusSourceSection = Field(
        default="frontend", description="Where loads come from: frontend, or {prometheus: {url}}."
    )
    prometheus: PrometheusSection | None = Field(
        default=None, description="For triggers; by default the source's."
    )
    launcher: Literal["process"] | DockerLauncherSection = Field(
        default="process", description="What runs replicas: process, or {docker: {...}}."
    )
    devices: tuple[DeviceSection, ...] = Field(
        default_factory=_default_devices,
        min_length=1,
        description="What replicas compute on; by default the CPU with 2 slots a core, at least 8.",
    )
    standby: int = Field(
        default=0, ge=0, le=64, description="Replicas kept joined without a model, to be given one."
    )
    prepared: int = Field(
        default=0, ge=0, le=64, description="Containers kept created and not started (docker)."
    )
    defaults: ModelSection = Field(
        default=ModelSection(),
        description="Of every model that is not in `models`.",
    )
    models: dict[str, ModelSection] = Field(default_factory=dict, description="By name.")

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, data: Any) -> Any:
        """What a model leaves out is as in `defaults`."""
        if not isinstance(data, dict):
            return data
        defaults, models = data.get("defaults") or {}, data.get("models")
        if isinstance(defaults, dict) and isinstance(models, dict):
            models = {name: {} if model is None else model for name, model in models.items()}
            merged = {
                name: _inherited(defaults, model) if isinstance(model, dict) else model
                for name, model in models.items()
            }
            return {**data, "models": merged}
        return data

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [device.name for device in self.devices]
        if len(set(names)) < len(names):
            raise ValueError(f"devices: expected different names, got {', '.join(names)}")
        source = self.source
        known = source.prometheus if isinstance(source, PrometheusSourceSection) else None
        if None not in (known, self.prometheus) and known != self.prometheus:
            raise ValueError(
                "prometheus: expected one Prometheus server, got another one in "
                "source.prometheus; leave this one out"
            )
        most_bytes = max((device.memory or MAX_SIZE) for device in self.devices)
        for name, model in {"defaults": self.defaults, **self.models}.items():
            if model.memory > most_bytes:
                raise ValueError(
                    f"memory of {name}: expected at most {most_bytes} bytes, the most that a "
                    f"device has, got {model.memory}"
                )
        if self.prometheus_server is None:
            for name, model in {"defaults": self.defaults, **self.models}.items():
                if model.triggers:
                    raise ValueError(
                        f"triggers of {name}: expected a Prometheus server to ask, give "
                        "prometheus: {url: http://HOST:9090}"
                    )
        return self

    @property
    def prometheus_server(self) -> PrometheusSection | None:
        """Which one triggers ask."""
        if self.prometheus is not None:
            return self.prometheus
        return self.source.prometheus if isinstance(self.source, PrometheusSourceSection) else None

    def scaling(self) -> ScalingSettings:
        return ScalingSettings(
            default=self.defaults.policy(),
            models={name: model.policy() for name, model in self.models.items()},
            devices=tuple(device.device() for device in self.devices),
            standby=self.standby,
            prepared=self.prepared,
        )
