"""The docker launcher with a real engine and containers of the real image.

No frontend is there: a replica looks for one for 20 s, long enough to be looked at.
"""

import json
import os
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.autoscaler.waiting import eventually
from tests.docker.conftest import OpenLauncher
from tests.docker.frontend import EXAMPLES
from tests.docker.looking import DIGITS, exists, exit_of, handle_of, inspect, spec
from tideserve.autoscaler.errors import LaunchError, NoSuchReplicaError
from tideserve.autoscaler.launchers.docker import DockerLauncher

pytestmark = pytest.mark.docker
MIB = 1024 * 1024


@pytest.fixture
def greedy_image(image: str) -> Iterator[str]:
    """The server's image, but what runs in it writes a GiB. A replica under too small a limit
    would not do: the kernel drops and reads its program's pages again, for minutes."""
    name = "tideserve-test:greedy"
    entrypoint = json.dumps(["python3", "-c", "b'x' * (1 << 30)"])
    subprocess.run(
        ["docker", "build", "--quiet", "--tag", name, "-"],
        input=f"FROM {image}\nENTRYPOINT {entrypoint}\n".encode(),
        check=True,
        capture_output=True,
    )
    yield name
    subprocess.run(["docker", "image", "rm", "--force", name], check=True, capture_output=True)


def test_a_replica_is_a_locked_down_container_with_the_token_in_its_environment_only(
    open_launcher: OpenLauncher,
) -> None:
    launcher = open_launcher(
        models_source=str(EXAMPLES), memory_bytes=256 * MIB, cpus=0.5, log_max_bytes=MIB
    )
    handle = launcher.start(spec("locked-1-0-a"))
    assert handle.where == "container locked-1-0-a"
    assert handle.key == DIGITS
    shown = inspect("locked-1-0-a")
    config, host = shown["Config"], shown["HostConfig"]
    assert config["User"] == "10001:10001"
    assert host["ReadonlyRootfs"]
    assert host["CapDrop"] == ["ALL"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["Memory"] == host["MemorySwap"] == 256 * MIB
    assert host["NanoCpus"] == 500_000_000
    assert host["LogConfig"]["Config"] == {"max-size": str(MIB), "max-file": "2"}
    (mount,) = [mount for mount in shown["Mounts"] if mount["Type"] == "bind"]
    assert (mount["Source"], mount["Destination"], mount["RW"]) == (
        str(EXAMPLES),
        str(EXAMPLES),
        False,
    )
    assert "TIDESERVE_TOKEN=secret of a test" in config["Env"]
    assert "secret of a test" not in str(config["Labels"]) + str(config["Cmd"])


def test_a_killed_replica_wakes_the_loop_stays_listed_with_its_end_and_is_removed_next(
    open_launcher: OpenLauncher, exits: threading.Event
) -> None:
    launcher = open_launcher()
    handle = launcher.start(spec("killed-1-0-a"))
    assert not exits.is_set()
    launcher.kill(handle)
    assert exits.wait(10)
    assert exit_of(launcher, "killed-1-0-a").cause == "killed by SIGKILL (exit code 137)"
    launcher.kill(handle)
    assert handle_of(launcher, "killed-1-0-a") is None
    eventually(lambda: not exists("killed-1-0-a"))
    launcher.kill(handle)


def test_a_replica_that_fails_says_its_exit_code_and_its_last_words(
    open_launcher: OpenLauncher, exits: threading.Event
) -> None:
    launcher = open_launcher(frontend_address="nowhere")
    launcher.start(spec("failing-1-0-a"))
    assert exits.wait(10)
    ending = exit_of(launcher, "failing-1-0-a")
    assert ending.cause == "exit code 2"
    assert "expected HOST:PORT" in ending.log_tail[-1]
    assert launcher.log("failing-1-0-a", 1) == ending.log_tail[-1:]


def test_logs_of_a_removed_replica_are_remembered_and_those_of_none_are_an_error(
    open_launcher: OpenLauncher,
) -> None:
    launcher = open_launcher(frontend_address="nowhere")
    handle = launcher.start(spec("gone-1-0-a"))
    ending = exit_of(launcher, "gone-1-0-a")
    launcher.kill(handle)
    eventually(lambda: not exists("gone-1-0-a"))
    assert launcher.log("gone-1-0-a", 20) == ending.log_tail
    with pytest.raises(NoSuchReplicaError, match="never-1-0-a"):
        launcher.log("never-1-0-a", 20)


def test_running_out_of_memory_is_said_in_words(
    open_launcher: OpenLauncher, greedy_image: str
) -> None:
    launcher = open_launcher(image=greedy_image)
    launcher.start(spec("greedy-1-0-a", memory_bytes=128 * MIB))
    cause = exit_of(launcher, "greedy-1-0-a").cause
    assert cause == "out of memory: killed at its limit of 128 MiB (exit code 137)"


def test_a_later_launcher_adopts_what_runs_and_what_ended_and_removes_what_was_prepared(
    open_launcher: OpenLauncher,
) -> None:
    first = open_launcher()
    first.start(spec("kept-1-0-a"))
    ended = first.start(spec("ended-1-0-a"))
    first.prepare(spec("spare-0-a", None))
    first.kill(ended)
    exit_of(first, "ended-1-0-a")
    first.close()

    second = open_launcher()
    adopted = {handle.replica_id: handle for handle in second.list()}
    assert set(adopted) == {"kept-1-0-a", "ended-1-0-a"}
    assert adopted["kept-1-0-a"].key == DIGITS
    assert adopted["kept-1-0-a"].exit is None
    assert adopted["ended-1-0-a"].exit is not None
    assert not exists("spare-0-a")


def test_containers_of_another_owner_are_not_ours(open_launcher: OpenLauncher) -> None:
    other = open_launcher(owner="another frontend")
    other.start(spec("theirs-1-0-a"))
    mine = open_launcher()
    assert mine.list() == []
    with pytest.raises(LaunchError, match="docker rm -f theirs-1-0-a"):
        mine.start(spec("theirs-1-0-a"))
    assert inspect("theirs-1-0-a")["State"]["Running"]


def test_a_prepared_container_is_started_with_the_model_known_and_may_be_thrown_away(
    open_launcher: OpenLauncher,
) -> None:
    launcher = open_launcher()
    prepared = launcher.prepare(spec("prepared-0-a", None))
    assert prepared.prepared
    assert inspect("prepared-0-a")["State"]["Status"] == "created"
    started = launcher.start(spec("prepared-0-a"))
    assert started.key == DIGITS
    assert not started.prepared
    unused = launcher.prepare(spec("unused-0-a", None))
    launcher.kill(unused)
    eventually(lambda: not exists("unused-0-a"))
    eventually(lambda: not launcher_prepares(launcher))
    handle = handle_of(launcher, "prepared-0-a")
    assert handle is not None
    assert handle.key == DIGITS


def test_a_prepared_container_that_somebody_removed_is_made_anew(
    open_launcher: OpenLauncher,
) -> None:
    launcher = open_launcher(poll_s=60.0)
    launcher.prepare(spec("stolen-0-a", None))
    docker("rm", "stolen-0-a")
    launcher.start(spec("stolen-0-a"))
    assert inspect("stolen-0-a")["State"]["Running"]


def test_a_container_that_somebody_removed_has_ended(
    open_launcher: OpenLauncher, exits: threading.Event
) -> None:
    launcher = open_launcher()
    handle = launcher.start(spec("taken-1-0-a"))
    docker("rm", "--force", "taken-1-0-a")
    assert exits.wait(10)
    assert exit_of(launcher, "taken-1-0-a").cause
    launcher.kill(handle)
    assert launcher.list() == []


def test_models_may_be_a_volume(open_launcher: OpenLauncher) -> None:
    name = f"tideserve-test-models-{os.getpid()}"
    options = ["type=none", "o=bind,ro", f"device={EXAMPLES}"]
    docker("volume", "create", *(f"--opt={option}" for option in options), name)
    try:
        launcher = open_launcher(models_source=name)
        handle = launcher.start(spec("volume-1-0-a"))
        (mount,) = [m for m in inspect("volume-1-0-a")["Mounts"] if m["Type"] == "volume"]
        assert (mount["Name"], mount["Destination"], mount["RW"]) == (name, "/models", False)
        assert listed_in("volume-1-0-a", "/models/identity") == {"1", "config.pbtxt"}
        launcher.kill(handle)
        exit_of(launcher, "volume-1-0-a")
        docker("rm", "--force", "volume-1-0-a")
    finally:
        docker("volume", "rm", "--force", name)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": "tideserve:missing"}, "docker build --target cpu -t tideserve:missing"),
        ({"network": "no-such-network"}, "docker network create no-such-network"),
        ({"models_source": "/no/such/folder"}, "'/no/such/folder' does not exist"),
        ({"memory_bytes": MIB}, "less than the engine allows: Minimum memory limit"),
    ],
)
def test_what_the_engine_refuses_is_said_with_what_to_do_and_leaves_nothing(
    open_launcher: OpenLauncher, changes: dict[str, object], words: str
) -> None:
    launcher = open_launcher(**changes)
    with pytest.raises(LaunchError, match=words):
        launcher.start(spec("refused-1-0-a"))
    assert launcher.list() == []
    eventually(lambda: not exists("refused-1-0-a"))


def listed_in(container: str, folder: str) -> set[str]:
    command = ["docker", "exec", container, "ls", folder]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def docker(*arguments: str) -> None:
    subprocess.run(["docker", *arguments], check=True, capture_output=True)


def launcher_prepares(launcher: DockerLauncher) -> bool:
    return any(handle.prepared for handle in launcher.list())
