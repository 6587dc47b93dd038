"""Replicas as containers: what is asked of the engine, and its answers in words. Pure."""

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tideserve.autoscaler.core.fleet import Exit, ModelKey
from tideserve.autoscaler.launchers import Handle, ReplicaSpec
from tideserve.autoscaler.launchers.engine import (
    Container,
    ContainerPlan,
    Ending,
    EngineRefusedError,
)
from tideserve.v1.link import LINK_MOUNT, LINK_SOCKET

OWNER: Final = "tideserve.owner"
REPLICA: Final = "tideserve.replica"
MODEL: Final = "tideserve.model"
VERSION: Final = "tideserve.version"
GENERATION: Final = "tideserve.generation"
DEVICE: Final = "tideserve.device"
PREPARED: Final = "tideserve.prepared"
LAUNCHER: Final = "tideserve.launcher"
_MIB: Final = 1024 * 1024
# Libraries size their pools by these when they are imported.
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# What a shell, and so an engine, adds to a signal's number to make an exit code.
_SIGNALED: Final = 128
_NETWORK_MISSING: Final = re.compile(r"network \S+ not found")


@dataclass(frozen=True, slots=True)
class DockerSettings:
    """How replicas run as containers.

    `frontend_address` is HOST:PORT as containers reach the frontend. `models_source` is a
    path of the engine's machine or the name of a volume; it is mounted, read-only, at
    `models_path`, which must be the repository's path as the frontend has it (empty: the
    same path, or /models for a volume). `link_source`, a path or volume too, has the frontend's
    unix socket, which is dialled before `frontend_address`. `owner` marks the containers of one frontend and
    must be unique on an engine (empty: `frontend_address`). `network`, `user` empty: the
    engine's and the image's. `memory_bytes`, `cpus` 0: not limited; a replica's own
    `memory_bytes` goes before. `tmp_bytes` is the size of /tmp, the only place to write to.
    `engine_url` empty: what DOCKER_HOST in `environment` says, else this machine's socket.
    """

    image: str = "tideserve:cpu"
    frontend_address: str = ""
    models_source: str = ""
    models_path: str = ""
    link_source: str = ""
    owner: str = ""
    network: str = ""
    user: str = ""
    memory_bytes: int = 0
    cpus: float = 0.0
    pids: int = 512
    tmp_bytes: int = 64 * _MIB
    log_max_bytes: int = 10 * _MIB
    log_files: int = 2
    engine_url: str = ""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    timeout_s: float = 10.0
    poll_s: float = 2.0

    @property
    def owner_label(self) -> str:
        """KEY=VALUE."""
        return f"{OWNER}={self.owner or self.frontend_address}"

    @property
    def mount_path(self) -> str:
        """Where replicas find the model repository."""
        if self.models_path:
            return self.models_path
        return self.models_source if self.models_source.startswith("/") else "/models"


def container_name(replica_id: str) -> str:
    """The replica's id, or with a letter before it where a container cannot be called so."""
    return replica_id if replica_id[:1].isalnum() else f"r{replica_id}"


def plan_of(
    spec: ReplicaSpec, settings: DockerSettings, *, launcher: str, prepared: bool, now_s: float
) -> ContainerPlan:
    """A container of one replica. `now_s` is unix time; one that is prepared is not told,
    for it cannot know when it will be started. `launcher` names the life of who asks.

    The token goes by the environment: arguments and labels are shown to more eyes.
    """
    # A container is given one GPU and counts those it sees from 0.
    is_gpu = spec.device.startswith("gpu:")
    command = [
        "replica",
        f"--replica-id={spec.replica_id}",
        f"--address={settings.frontend_address or spec.address}",
        f"--device={'gpu:0' if is_gpu else spec.device}",
        f"--threads={spec.threads}",
    ]
    if settings.link_source:
        command.append(f"--local-address=unix:{LINK_MOUNT}/{LINK_SOCKET}")
    if not prepared:
        command.append(f"--launched-at={now_s:.6f}")
    environment = {"TIDESERVE_TOKEN": spec.token, "HOME": "/tmp"}  # noqa: S108 - a tmpfs of its own
    environment |= dict.fromkeys(_THREAD_VARIABLES, str(spec.threads))
    if not is_gpu:
        environment["NVIDIA_VISIBLE_DEVICES"] = "void"
    container: dict[str, Any] = {
        "image": settings.image,
        "name": container_name(spec.replica_id),
        "command": command,
        "environment": environment,
        "labels": _labels(spec, settings, launcher, prepared=prepared),
        "healthcheck": {"test": ["NONE"]},  # the image's asks a frontend
    }
    if settings.user:
        container["user"] = settings.user
    return ContainerPlan(container["name"], container, _host(spec, settings, is_gpu=is_gpu))


def handle_of(container: Container) -> Handle | None:
    """None for a container whose labels are not what `plan_of` gives."""
    labels = container.labels
    replica_id = labels.get(REPLICA)
    if not replica_id or container_name(replica_id) != container.name:
        return None
    return Handle(
        replica_id=replica_id,
        key=_key_of(labels),
        device=labels.get(DEVICE, "cpu"),
        where=f"container {container.name}",
        prepared=container.prepared,
    )


def exit_of(ending: Ending) -> Exit:
    """The end of a container in words."""
    code = ending.exit_code
    if ending.error:
        cause = f"the engine could not run it: {ending.error}"
    elif ending.out_of_memory:
        limit_mib = ending.memory_limit_bytes / _MIB
        limit = f" of {limit_mib:.0f} MiB" if limit_mib else ""
        cause = f"out of memory: killed at its limit{limit} (exit code {code})"
    elif code > _SIGNALED and code - _SIGNALED in list(signal.Signals):
        cause = f"killed by {signal.Signals(code - _SIGNALED).name} (exit code {code})"
    else:
        cause = f"exit code {code}"
    return Exit(cause, ending.log_tail)


def refusal_in_words(error: EngineRefusedError, name: str, settings: DockerSettings) -> str:
    """Why a container was not started, and what to do about it."""
    said = error.explanation
    lower = said.lower()
    if "no such image" in lower:
        return (
            f"the image {settings.image!r} is not at the engine: make it with "
            f"`docker build --target cpu -t {settings.image} .`, pull it, or name another"
        )
    if _NETWORK_MISSING.search(lower):
        return (
            f"the network {settings.network!r} is not at the engine: make it with "
            f"`docker network create {settings.network}`, or name another"
        )
    if error.status == 409 and "name" in lower:
        return (
            f"a container named {name} is there already and is not this autoscaler's: "
            f"`docker rm -f {name}` removes it ({said})"
        )
    if "bind source path does not exist" in lower:
        missing = said.rpartition(": ")[2]
        key = "link_source" if missing == settings.link_source else "models_source"
        return (
            f"{key} {missing!r} does not exist on the engine's machine: "
            "expected a folder there, or the name of a volume"
        )
    if "could not select device driver" in lower:
        return f"the engine has no driver for GPUs: install the NVIDIA Container Toolkit ({said})"
    if "minimum memory limit" in lower:
        return f"the memory limit of container {name} is less than the engine allows: {said}"
    if "cannot allocate memory" in lower or "memory limit" in lower:
        return f"the engine has not the memory for container {name}: {said}"
    if "port is already allocated" in lower or "address already in use" in lower:
        return f"a port of container {name} is taken already: {said}"
    return f"the engine refused container {name}: {said}"


def _labels(
    spec: ReplicaSpec, settings: DockerSettings, launcher: str, *, prepared: bool
) -> dict[str, str]:
    owner, _, value = settings.owner_label.partition("=")
    labels = {
        owner: value,
        REPLICA: spec.replica_id,
        DEVICE: spec.device,
        LAUNCHER: launcher,
        PREPARED: "true" if prepared else "false",
    }
    if spec.key is not None:
        labels[MODEL] = spec.key.name
        labels[VERSION] = str(spec.key.version)
        labels[GENERATION] = spec.key.generation
    return labels


def _key_of(labels: Mapping[str, str]) -> ModelKey | None:
    version = labels.get(VERSION, "")
    if MODEL not in labels or not version.isdecimal():
        return None
    return ModelKey(labels[MODEL], int(version), labels.get(GENERATION, ""))


def _host(spec: ReplicaSpec, settings: DockerSettings, *, is_gpu: bool) -> dict[str, Any]:
    host: dict[str, Any] = {
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges"],
        "read_only": True,
        "tmpfs": {"/tmp": f"size={settings.tmp_bytes},mode=1777"},  # noqa: S108
        "pids_limit": settings.pids,
        "restart_policy": {"Name": "no"},
        "log_config": {
            "type": "json-file",
            "config": {
                "max-size": str(settings.log_max_bytes),
                "max-file": str(settings.log_files),
            },
        },
    }
    if settings.network:
        host["network_mode"] = settings.network
    folders = (settings.models_source, settings.mount_path), (settings.link_source, LINK_MOUNT)
    if mounts := [_mount(source, target) for source, target in folders if source]:
        host["mounts"] = mounts
    memory_bytes = spec.memory_bytes or settings.memory_bytes
    if memory_bytes:
        # Equal: no swap, which would hide the shortage behind slow answers.
        host["mem_limit"] = host["memswap_limit"] = memory_bytes
    if settings.cpus:
        host["nano_cpus"] = round(settings.cpus * 1e9)
    if spec.cores:
        host["cpuset_cpus"] = ",".join(str(core) for core in sorted(spec.cores))
    if is_gpu:
        index = spec.device.removeprefix("gpu:")
        host["device_requests"] = [{"device_ids": [index], "capabilities": [["gpu"]]}]
    return host


def _mount(source: str, target: str) -> dict[str, Any]:
    is_path = source.startswith("/")
    mount: dict[str, Any] = {
        "Type": "bind" if is_path else "volume",
        "Source": source,
        "Target": target,
        "ReadOnly": True,
    }
    if not is_path:
        mount["VolumeOptions"] = {"NoCopy": True}
    return mount
