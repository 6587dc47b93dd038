"""The autoscaler file: its keys with units, defaults and ranges, and what the core gets of it.

docs/autoscaler.md has a row for every key; a test compares it with the schema made here.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from tideserve.autoscaler.core.settings import Device, ScalingSettings
from tideserve.autoscaler.model_section import ModelSection, inherited
from tideserve.autoscaler.quantity import (
    MAX_CORE,
    MAX_SIZE,
    address_of,
    cores_of,
    host_port_of,
    mounted_of,
)
from tideserve.autoscaler.section import MAX_REPLICAS, Bytes, Seconds, Section

HostPort = Annotated[str, AfterValidator(host_port_of)]


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
                name: inherited(defaults, model) if isinstance(model, dict) else model
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
