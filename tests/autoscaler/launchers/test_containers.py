"""A replica's container as it is asked for, and the engine's answers in words."""

import pytest

from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.launchers import ReplicaSpec
from tideserve.autoscaler.launchers.containers import (
    DockerSettings,
    container_name,
    exit_of,
    handle_of,
    plan_of,
    refusal_in_words,
)
from tideserve.autoscaler.launchers.engine import (
    Container,
    ContainerPlan,
    Ending,
    EngineRefusedError,
)

KEY = ModelKey("digits", 3, "g1")
SETTINGS = DockerSettings(frontend_address="bridge:8001", models_source="/srv/models")
SECRET = "a secret of this test"


def plan(
    settings: DockerSettings = SETTINGS, *, device: str = "cpu", prepared: bool = False
) -> ContainerPlan:
    spec = ReplicaSpec(
        "digits-3-0-ab", KEY, "other:1", SECRET, device, threads=2, cores=frozenset({3, 1})
    )
    return plan_of(spec, settings, launcher="l1", prepared=prepared, now_s=12.5)


def test_the_container_runs_tideserve_replica_and_may_do_nothing_else() -> None:
    made = plan()
    assert made.container["command"] == [
        "replica",
        "--replica-id=digits-3-0-ab",
        "--address=bridge:8001",
        "--device=cpu",
        "--threads=2",
        "--launched-at=12.500000",
    ]
    assert made.container["environment"]["OMP_NUM_THREADS"] == "2"
    assert made.host["cap_drop"] == ["ALL"]
    assert made.host["read_only"]
    assert made.host["restart_policy"] == {"Name": "no"}
    assert made.host["cpuset_cpus"] == "1,3"
    assert "mem_limit" not in made.host


def test_the_token_is_in_the_environment_alone_and_no_repr_shows_it() -> None:
    made = plan()
    assert made.container["environment"]["TIDESERVE_TOKEN"] == SECRET
    shown = {**made.container, "environment": {}}
    assert SECRET not in f"{shown}{made.host}{made!r}"


def test_models_are_mounted_read_only_where_the_frontend_has_them() -> None:
    (mount,) = plan().host["mounts"]
    assert (mount["Type"], mount["Source"], mount["Target"], mount["ReadOnly"]) == (
        "bind",
        "/srv/models",
        "/srv/models",
        True,
    )
    (mount,) = plan(DockerSettings(models_source="/srv/models", models_path="/m")).host["mounts"]
    assert mount["Target"] == "/m"
    (mount,) = plan(DockerSettings(models_source="weights")).host["mounts"]
    assert (mount["Type"], mount["Target"]) == ("volume", "/models")
    assert "mounts" not in plan(DockerSettings()).host


def test_the_frontends_socket_is_dialled_where_it_is_mounted() -> None:
    made = plan(DockerSettings(frontend_address="f:1", link_source="/srv/link"))
    assert "--address=f:1" in made.container["command"]
    assert "--local-address=unix:/run/tideserve/front.sock" in made.container["command"]
    (mount,) = made.host["mounts"]
    assert (mount["Type"], mount["Source"], mount["Target"], mount["ReadOnly"]) == (
        "bind",
        "/srv/link",
        "/run/tideserve",
        True,
    )
    (models, link) = plan(DockerSettings(models_source="m", link_source="volume")).host["mounts"]
    assert (models["Source"], link["Type"], link["Source"]) == ("m", "volume", "volume")


def test_a_replica_on_a_gpu_sees_that_one_only_as_its_first() -> None:
    made = plan(device="gpu:3")
    assert made.host["device_requests"] == [{"device_ids": ["3"], "capabilities": [["gpu"]]}]
    assert "--device=gpu:0" in made.container["command"]
    assert made.container["labels"]["tideserve.device"] == "gpu:3"
    assert plan().container["environment"]["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_limits_of_the_replica_go_before_those_of_all() -> None:
    settings = DockerSettings(memory_bytes=100, cpus=1.5)
    spec = ReplicaSpec("a-1-0-x", KEY, "", SECRET, memory_bytes=200)
    host = plan_of(spec, settings, launcher="l1", prepared=False, now_s=0.0).host
    assert (host["mem_limit"], host["memswap_limit"]) == (200, 200)
    assert host["nano_cpus"] == 1_500_000_000


def test_a_prepared_one_is_not_told_a_launch_time() -> None:
    made = plan(prepared=True)
    assert not any("launched-at" in word for word in made.container["command"])
    assert made.container["labels"]["tideserve.prepared"] == "true"


def test_labels_give_the_handle_back() -> None:
    made = plan(device="gpu:3")
    handle = handle_of(Container(made.name, made.container["labels"], "running"))
    assert handle is not None
    assert (handle.replica_id, handle.key, handle.device) == ("digits-3-0-ab", KEY, "gpu:3")
    assert not handle.prepared


@pytest.mark.parametrize(
    "labels",
    [{}, {"tideserve.replica": "another"}],
    ids=["without", "copied from another container"],
)
def test_a_container_with_other_labels_is_nobodys(labels: dict[str, str]) -> None:
    assert handle_of(Container("some", labels, "running")) is None


def test_a_version_label_that_is_no_number_leaves_the_model_unknown() -> None:
    labels = {"tideserve.replica": "a1", "tideserve.model": "m", "tideserve.version": "new"}
    handle = handle_of(Container("a1", labels, "running"))
    assert handle is not None
    assert handle.key is None


def test_a_model_whose_name_no_container_may_have_gets_a_letter_before() -> None:
    assert container_name("digits-1-0-ab") == "digits-1-0-ab"
    assert container_name("_private-1-0-ab") == "r_private-1-0-ab"


@pytest.mark.parametrize(
    ("ending", "cause"),
    [
        (Ending(0), "exit code 0"),
        (Ending(4), "exit code 4"),
        (Ending(137), "killed by SIGKILL (exit code 137)"),
        (Ending(139), "killed by SIGSEGV (exit code 139)"),
        (Ending(255), "exit code 255"),
        (
            Ending(127, error="exec: no such file"),
            "the engine could not run it: exec: no such file",
        ),
        (
            Ending(137, out_of_memory=True, memory_limit_bytes=64 * 2**20),
            "out of memory: killed at its limit of 64 MiB (exit code 137)",
        ),
        (
            Ending(137, out_of_memory=True),
            "out of memory: killed at its limit (exit code 137)",
        ),
    ],
)
def test_an_end_is_said_in_words(ending: Ending, cause: str) -> None:
    assert exit_of(ending).cause == cause


@pytest.mark.parametrize(
    ("status", "said", "words"),
    [
        (404, "No such image: tideserve:cpu", "docker build --target cpu -t tideserve:cpu"),
        (404, "network serving not found", "docker network create serving"),
        (409, 'Conflict. The container name "/a" is already in use', "docker rm -f a"),
        (
            400,
            "bind source path does not exist: /srv/models",
            "models_source '/srv/models' does not",
        ),
        (400, "bind source path does not exist: /run/link", "link_source '/run/link' does not"),
        (500, "could not select device driver", "NVIDIA Container Toolkit"),
        (500, "fork/exec: cannot allocate memory", "has not the memory"),
        (400, "Minimum memory limit allowed is 6MB", "container a is less than the engine allows"),
        (500, "Bind for 0.0.0.0:1 failed: port is already allocated", "a port of container a"),
        (500, "something new", "the engine refused container a: something new"),
    ],
)
def test_a_refusal_says_what_to_do(status: int, said: str, words: str) -> None:
    settings = DockerSettings(
        network="serving", models_source="/srv/models", link_source="/run/link"
    )
    assert words in refusal_in_words(EngineRefusedError(status, said), "a", settings)
