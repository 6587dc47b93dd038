"""The image alone: `docker run` serves with processes inside."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
from tritonclient import grpc as triton

from tests.autoscaler.waiting import eventually
from tests.docker.calling import check_identity
from tests.docker.frontend import EXAMPLES
from tests.docker.looking import inspect

pytestmark = pytest.mark.docker
# Processes that ended and that nobody waited for.
_ZOMBIES = """
import pathlib
print(sum(" Z " in path.read_text() for path in pathlib.Path("/proc").glob("[0-9]*/stat")))
"""
_KILL = """
import os, pathlib, signal, sys
for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
    if path.parent.name != str(os.getpid()) and sys.argv[1].encode() in path.read_bytes():
        os.kill(int(path.parent.name), signal.SIGKILL)
"""


@pytest.fixture
def container(image: str, tmp_path: Path) -> Iterator[str]:
    """The server as the README starts it, but for the ports."""
    name = f"tideserve-test-{os.getpid()}"
    run = ["docker", "run", "--detach", f"--name={name}", "--health-interval=1s"]
    ports = ["--publish=127.0.0.1::8001", "--publish=127.0.0.1::8002"]
    subprocess.run(
        [*run, *ports, f"--volume={EXAMPLES}/identity:/models/identity:ro", image],
        check=True,
        capture_output=True,
    )
    try:
        yield name
    finally:
        subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)


def test_the_image_runs_without_root_and_is_asked_for_its_health(image: str) -> None:
    config = inspect(image)["Config"]
    assert config["User"] == "10001:10001"
    assert config["Healthcheck"]["Test"] == ["CMD", "tideserve", "health", "--live"]
    assert config["Entrypoint"] == ["tini", "--", "tideserve"]
    assert config["Cmd"][:4] == ["serve", "/models", "--host", "0.0.0.0"]
    assert config["Cmd"][4:] == ["--autoscaler", "/etc/tideserve/autoscaler.yaml"]


def test_docker_run_serves_is_healthy_heals_itself_and_stops_gracefully(container: str) -> None:
    eventually(lambda: inspect(container)["State"]["Health"]["Status"] == "healthy", timeout_s=60)
    published = inspect(container)["NetworkSettings"]["Ports"]
    (port,), (http_port,) = published["8001/tcp"], published["8002/tcp"]
    with triton.InferenceServerClient(f"127.0.0.1:{port['HostPort']}") as client:
        # Healthy is the server; its model may still be loading.
        eventually(lambda: client.is_model_ready("identity"), timeout_s=30)
        check_identity(client)
        assert "identity" in execute(container, "tideserve", "replicas", "--json")
        # Nobody is root in there, and large tensors are shared all the same.
        assert "tideserve_arenas 1.0" in scrape(http_port["HostPort"])
        # Its replicas become children of PID 1, which has to wait for them when they end.
        execute(container, "/opt/tideserve/bin/python", "-c", _KILL, "tideserve.autoscaler")
        check_identity(client)
        execute(container, "/opt/tideserve/bin/python", "-c", _KILL, "forkserver")
        check_identity(client)
    eventually(
        lambda: execute(container, "/opt/tideserve/bin/python", "-c", _ZOMBIES).strip() == "0"
    )
    subprocess.run(["docker", "stop", "--time=30", container], check=True, capture_output=True)
    state = inspect(container)["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False)


def scrape(port: str) -> str:
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def execute(container: str, *command: str) -> str:
    return subprocess.run(
        ["docker", "exec", container, *command], check=True, capture_output=True, text=True
    ).stdout
