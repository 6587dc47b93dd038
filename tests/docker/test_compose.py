"""The frontend and the autoscaler of compose.yaml, run as it says, without the compose plugin."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import tritonclient.grpc as triton
import yaml

from tests.autoscaler.waiting import eventually
from tests.docker.calling import check_identity

pytestmark = [pytest.mark.docker, pytest.mark.e2e, pytest.mark.timeout(180)]

ROOT: Final = Path(__file__).parents[2]
COMPOSE: Final[dict[str, Any]] = yaml.safe_load((ROOT / "compose.yaml").read_text())
NETWORK: Final = COMPOSE["networks"]["serving"]["name"]
MODELS: Final = COMPOSE["volumes"]["models"]["name"]
LINK: Final = COMPOSE["volumes"]["link"]["name"]
SOCKET: Final = "/var/run/docker.sock"
TOKEN: Final = "a-token-for-the-compose-test"
LABEL: Final = "--filter=label=tideserve.owner=frontend:8001"


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def logs(container: str) -> str:
    command = ["docker", "logs", container]
    return subprocess.run(command, check=True, capture_output=True, text=True).stderr


def run(name: str, image: str, *more: str) -> str:
    """Starts a service as compose would; the container's name."""
    service = COMPOSE["services"][name]
    container = f"tideserve-compose-{name}-{os.getpid()}"
    environment = {**service["environment"], "TIDESERVE_TOKEN": TOKEN}
    volumes = [
        _volume(text)
        for text in service["volumes"]
        if not text.startswith(("frontend-state", "autoscaler-state"))
    ]
    docker(
        *("run", "--detach", f"--name={container}", f"--network={NETWORK}"),
        f"--network-alias={name}",
        *(["--read-only"] if service["read_only"] else []),
        *(f"--tmpfs={path}" for path in service["tmpfs"]),
        *(f"--cap-drop={one}" for one in service["cap_drop"]),
        *(f"--security-opt={one}" for one in service["security_opt"]),
        *(f"--volume={volume}" for volume in volumes),
        f"--volume={container}:/var/lib/tideserve",
        *(f"--env={key}={value}" for key, value in environment.items()),
        *more,
        image,
        *service["command"],
    )
    return container


def _volume(text: str) -> str:
    source, _, rest = text.partition(":")
    if source in ("models", "link"):
        return f"{COMPOSE['volumes'][source]['name']}:{rest}"
    return f"{ROOT / source}:{rest}" if source.startswith("./") else text


@pytest.fixture
def models() -> Iterator[Path]:
    """A repository that every user can read."""
    folder = Path(tempfile.mkdtemp(prefix="tideserve-compose-"))
    folder.chmod(0o755)
    shutil.copytree(ROOT / "examples/models/identity", folder / "identity")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def services(image: str, models: Path) -> Iterator[tuple[str, str]]:
    """Frontend and autoscaler, with the network and the volume of the file."""
    docker("network", "create", NETWORK)
    options = COMPOSE["volumes"]["models"]["driver_opts"] | {"device": str(models)}
    docker("volume", "create", *(f"--opt={k}={v}" for k, v in options.items()), MODELS)
    started: list[str] = []
    try:
        started.append(run("frontend", image, "--publish=127.0.0.1::8001"))
        group = Path(SOCKET).stat().st_gid
        started.append(run("autoscaler", image, f"--group-add={group}", "--no-healthcheck"))
        yield started[0], started[1]
        docker("stop", "--time=30", started[1])
        assert docker("ps", "--all", "--quiet", LABEL).split() == []
    finally:
        for container in started:
            sys.stdout.write(docker("logs", container))
        left = docker("ps", "--all", "--quiet", LABEL).split()
        docker("rm", "--force", "--volumes", *started, *left)
        docker("volume", "rm", MODELS, LINK, *started)
        docker("network", "rm", NETWORK)


def test_a_frontend_in_a_container_is_scaled_by_an_autoscaler_in_another(
    services: tuple[str, str],
) -> None:
    frontend, _ = services
    port = docker("port", frontend, "8001/tcp").strip().rpartition(":")[2]
    eventually(lambda: docker("ps", "--quiet", LABEL).split(), timeout_s=40)
    with triton.InferenceServerClient(f"127.0.0.1:{port}") as client:
        eventually(lambda: client.is_model_ready("identity"), timeout_s=40)
        check_identity(client)
        before = docker("ps", "--quiet", LABEL).split()
        for container in before:
            assert "joined unix:/run/tideserve/front.sock" in logs(container)
        docker("kill", *before)
        check_identity(client)
        assert not set(before) & set(docker("ps", "--quiet", LABEL).split())


def test_only_the_autoscaler_holds_the_socket() -> None:
    holders = [
        name
        for name, service in COMPOSE["services"].items()
        if any(SOCKET in volume for volume in service.get("volumes", ()))
    ]
    assert holders == ["autoscaler"]
    for name in ("frontend", "autoscaler"):
        service = COMPOSE["services"][name]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
