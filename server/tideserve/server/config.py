"""What a server is started with: checked whole, before anything starts."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tideserve.server.errors import StartError
from tideserve.server.front import FrontSettings
from tideserve.server.service.repository import ModelControl

FRONTS = ("auto", "native", "grpcio")


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Of `tideserve serve`. `replicas` None: what each model's instance_group says, else 1, unless there is an
    `autoscaler_file`.
    `own_autoscaler` False: another process scales. `shutdown_timeout_s` bounds how long admitted requests may take
    to finish once a stop was asked for. `arena_bytes`: of each replica's shared memory for inputs, and as much
    for outputs; 0: tensors travel in messages."""

    repository: Path
    front: FrontSettings = field(default_factory=FrontSettings)
    front_kind: str = "auto"
    http_port: int = 8002
    replicas: int | None = None
    autoscaler_file: Path | None = None
    own_autoscaler: bool = True
    autoscaler_http_port: int | None = None
    threads: int | None = None
    model_control: ModelControl = ModelControl.NONE
    load_models: tuple[str, ...] = ()
    poll_interval_s: float = 2.0
    shutdown_timeout_s: float = 30.0
    arena_bytes: int = 64 * 1024 * 1024
    triton_metrics: bool = False
    shared_memory: bool = True
    log_level: str = "info"


def check(settings: ServeSettings) -> None:
    """Raises `StartError` that names every setting that is out of range."""
    problems = list(_problems(settings))
    if problems:
        raise StartError("; ".join(problems))


def _problems(settings: ServeSettings) -> Iterator[str]:
    front = settings.front
    if settings.front_kind not in FRONTS:
        yield f"--front: expected one of {', '.join(FRONTS)}, got '{settings.front_kind}'"
    for name, port in (("--grpc-port", front.port), ("--http-port", settings.http_port)):
        if not 0 <= port <= 65535:
            yield f"{name}: expected a port from 0 (any free one) to 65535, got {port}"
    if front.port == settings.http_port != 0:
        yield f"--http-port: expected another port than --grpc-port, got {front.port} for both"
    for name, value, low, high in (
        ("--replicas", _or_one(settings.replicas), 0, 1024),
        ("--max-message-bytes", front.max_message_bytes, 1024, 2**31 - 1),
        ("--arena-bytes", settings.arena_bytes, 0, 2**40),
        ("--max-concurrent-streams", front.max_concurrent_streams, 1, 2**31 - 1),
        ("--max-connections", _or_one(front.max_connections), 1, 2**31 - 1),
        ("--autoscaler-http-port", settings.autoscaler_http_port or 0, 0, 65535),
        ("--threads", _or_one(settings.threads), 1, 1024),
        ("--poll-interval-s", settings.poll_interval_s, 0.1, 86400.0),
        ("--shutdown-timeout-s", settings.shutdown_timeout_s, 0.0, 86400.0),
        ("--keepalive-time-s", front.keepalive_time_s, 1.0, 1e6),
        ("--busy-poll-us", front.busy_poll_s * 1e6, 0, 10_000),
        ("--keepalive-timeout-s", front.keepalive_timeout_s, 0.1, 1e6),
    ):
        if not low <= value <= high:
            yield f"{name}: expected {low} to {high}, got {value}"
    scaled = settings.autoscaler_file is not None or not settings.own_autoscaler
    if scaled and (settings.replicas is not None or settings.threads is not None):
        yield "--autoscaler: expected it without --replicas and --threads: the file says both"
    if settings.autoscaler_file is not None and not settings.autoscaler_file.is_file():
        yield f"--autoscaler: expected a file or none, got {settings.autoscaler_file}"
    if settings.load_models and settings.model_control is not ModelControl.EXPLICIT:
        yield (
            "--load-model: expected --model-control explicit with it, got "
            f"--model-control {settings.model_control.value}"
        )


def _or_one(value: int | None) -> int:
    return 1 if value is None else value
