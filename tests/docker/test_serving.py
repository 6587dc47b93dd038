"""Containers that serve: a frontend on this machine, tritonclient as the caller."""

import os
import subprocess
from collections.abc import Callable
from time import monotonic

import pytest
from tritonclient import grpc as triton

from tests.docker.calling import check_identity
from tests.docker.conftest import OpenLauncher
from tests.docker.frontend import EXAMPLES, TOKEN, Frontend
from tests.docker.looking import exit_of, spec
from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.launchers.docker import DockerLauncher
from tideserve.v1.control_pb2 import READY

pytestmark = pytest.mark.docker
# The targets of start-up tiers. Medians on two quiet cores: 0.7 and 0.6 s, and 0.27 s for a
# container that does nothing. Where that one takes longer just then, what else the machine does
# is not the launcher's: the start is held to as many times its target.
COLD_S = 2.0
PREPARED_S = 1.0
NOTHING_S = 0.3
STARTS = 5


@pytest.fixture
def launcher(
    frontend: Frontend, open_launcher: OpenLauncher, bridge_address: str
) -> DockerLauncher:
    """On the engine's default network, as users have it."""
    return open_launcher(
        frontend_address=f"{bridge_address}:{frontend.port}",
        network="",
        models_source=str(EXAMPLES),
    )


def test_replicas_in_containers_answer_tritonclient_through_a_kill_and_leave_when_drained(
    frontend: Frontend, launcher: DockerLauncher
) -> None:
    key = frontend.key_of("identity")
    for name in ("identity-1-0-a", "identity-1-1-b"):
        frontend.announce(name, key)
        launcher.start(spec(name, key, token=TOKEN))
        assert frontend.wait_for(name, READY).device == "cpu"
    with triton.InferenceServerClient(frontend.address) as client:
        check_identity(client)
        (first, _) = launcher.list()
        launcher.kill(first)
        check_identity(client)
        assert "SIGKILL" in exit_of(launcher, first.replica_id).cause
        check_identity(client)
    other = ({"identity-1-0-a", "identity-1-1-b"} - {first.replica_id}).pop()
    frontend.drain(other)
    assert exit_of(launcher, other).cause == "exit code 0"


def test_the_start_up_of_containers_is_told_by_phase_and_is_short(
    frontend: Frontend, launcher: DockerLauncher, image: str
) -> None:
    key = frontend.key_of("digits_onnx")

    def cold(number: int) -> float:
        return start_to_ready(frontend, launcher, key, f"cold-1-{number}-a")

    def prepared(number: int) -> float:
        name = f"prepared-1-{number}-a"
        launcher.prepare(spec(name, None, token=TOKEN))
        return start_to_ready(frontend, launcher, key, name)

    cold_s = shortest(cold, image)
    prepared_s = shortest(prepared, image)
    shown = {replica.id: replica for replica in frontend.snapshot().replicas}
    phases = {phase.name: phase.duration_s for phase in shown["cold-1-0-a"].phases}
    assert set(phases) == {"launch", "import", "load", "warm-up"}
    assert phases["launch"] > 0.05
    assert cold_s < COLD_S
    assert prepared_s < PREPARED_S


def shortest(start: Callable[[int], float], image: str) -> float:
    """Of some starts, each as it would be on a machine that is not busy."""
    return min(start(number) / busyness(image) for number in range(STARTS))


def busyness(image: str) -> float:
    """How many times as long as on quiet cores a container that does nothing takes now."""
    name = f"tideserve-nothing-{os.getpid()}"
    docker("create", f"--name={name}", "--entrypoint=true", image)
    began_s = monotonic()
    docker("start", "--attach", name)
    took_s = monotonic() - began_s
    docker("rm", "--force", name)
    return max(1.0, took_s / NOTHING_S)


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, capture_output=True)


def start_to_ready(frontend: Frontend, launcher: DockerLauncher, key: ModelKey, name: str) -> float:
    began_s = monotonic()
    frontend.announce(name, key)
    launcher.start(spec(name, key, token=TOKEN))
    frontend.wait_for(name, READY)
    return monotonic() - began_s
