"""What a test asks a launcher and an engine."""

import json
import subprocess
from typing import Any

from tests.autoscaler.waiting import eventually
from tideserve.autoscaler.core.fleet import Exit, ModelKey
from tideserve.autoscaler.launchers import Handle, ReplicaSpec
from tideserve.autoscaler.launchers.docker import DockerLauncher

DIGITS = ModelKey("digits", 3, "g1")


def spec(
    name: str,
    key: ModelKey | None = DIGITS,
    *,
    token: str = "secret of a test",
    memory_bytes: int = 0,
) -> ReplicaSpec:
    return ReplicaSpec(name, key, "", token, threads=2, memory_bytes=memory_bytes)


def handle_of(launcher: DockerLauncher, name: str) -> Handle | None:
    return {handle.replica_id: handle for handle in launcher.list()}.get(name)


def exit_of(launcher: DockerLauncher, name: str, timeout_s: float = 10.0) -> Exit:
    """Waits for the replica's end."""

    def look() -> Exit | None:
        handle = handle_of(launcher, name)
        return None if handle is None else handle.exit

    return eventually(look, timeout_s)


def inspect(name: str, *options: str) -> dict[str, Any]:
    """A container as the engine has it."""
    output = subprocess.run(
        ["docker", *options, "inspect", name], check=True, capture_output=True, text=True
    ).stdout
    shown: list[dict[str, Any]] = json.loads(output)
    return shown[0]


def exists(name: str) -> bool:
    command = ["docker", "container", "inspect", name]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0
