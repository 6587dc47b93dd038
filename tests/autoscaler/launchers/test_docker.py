"""The docker launcher over an engine in memory."""

import importlib
import logging
import sys
import threading
from collections.abc import Callable, Iterator

import pytest

from tests.autoscaler.launchers.fake_engine import FakeEngine, FakeMachine
from tests.autoscaler.waiting import eventually
from tideserve.autoscaler.core.fleet import Exit, ModelKey
from tideserve.autoscaler.errors import LaunchError, NoSuchReplicaError, SettingsError
from tideserve.autoscaler.launchers import Launcher, Preparer, ReplicaSpec
from tideserve.autoscaler.launchers.docker import DockerLauncher, DockerSettings
from tideserve.autoscaler.launchers.engine import (
    Container,
    DockerEngine,
    Ending,
    EngineDownError,
    EngineRefusedError,
)

KEY = ModelKey("digits", 3, "g1")
SETTINGS = DockerSettings(frontend_address="bridge:8001", poll_s=60.0)
OpenLauncher = Callable[[], DockerLauncher]


def spec(name: str = "a-1-0-x", key: ModelKey | None = KEY) -> ReplicaSpec:
    return ReplicaSpec(name, key, "", "a token")


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def exits() -> threading.Event:
    return threading.Event()


@pytest.fixture
def open_launcher(machine: FakeMachine, exits: threading.Event) -> Iterator[OpenLauncher]:
    opened: list[DockerLauncher] = []

    def open_one() -> DockerLauncher:
        launcher = DockerLauncher(SETTINGS, exits.set, connect=lambda: FakeEngine(machine))
        launcher.open()
        opened.append(launcher)
        return launcher

    yield open_one
    for launcher in opened:
        launcher.close()


@pytest.fixture
def launcher(open_launcher: OpenLauncher) -> DockerLauncher:
    return open_launcher()


def exit_of(launcher: DockerLauncher, name: str = "a-1-0-x") -> Exit:
    return eventually(lambda: {h.replica_id: h for h in launcher.list()}[name].exit)


def tried_again(machine: FakeMachine) -> None:
    """Waits until one more removal was asked for."""
    before = machine.calls.count("remove")

    def look() -> bool:
        machine.tell()
        return machine.calls.count("remove") > before

    eventually(look)


def test_it_is_a_launcher_that_prepares(launcher: DockerLauncher) -> None:
    as_launcher: Launcher = launcher
    assert isinstance(as_launcher, Preparer)


def test_making_one_asks_the_engine_nothing(machine: FakeMachine) -> None:
    DockerLauncher(SETTINGS, lambda: None, connect=lambda: FakeEngine(machine))
    assert machine.calls == []


def test_a_started_replica_is_listed_at_once(launcher: DockerLauncher) -> None:
    handle = launcher.start(spec())
    assert launcher.list() == [handle]
    assert (handle.key, handle.where, handle.prepared) == (KEY, "container a-1-0-x", False)


def test_an_exit_wakes_the_loop_and_says_why(
    launcher: DockerLauncher, machine: FakeMachine, exits: threading.Event
) -> None:
    launcher.start(spec())
    machine.end("a-1-0-x", Ending(1, log_tail=("no such model",)))
    assert exits.wait(10)
    assert exit_of(launcher) == Exit("exit code 1", ("no such model",))


def test_kill_ends_then_forgets_and_removes(launcher: DockerLauncher, machine: FakeMachine) -> None:
    handle = launcher.start(spec())
    launcher.kill(handle)
    assert "SIGKILL" in exit_of(launcher).cause
    launcher.kill(handle)
    assert launcher.list() == []
    eventually(lambda: not machine.containers)
    launcher.kill(handle)
    assert launcher.list() == []


def test_a_prepared_one_is_started_without_making_another(
    launcher: DockerLauncher, machine: FakeMachine
) -> None:
    assert launcher.prepare(spec(key=None)).prepared
    handle = launcher.start(spec())
    assert (handle.key, handle.prepared) == (KEY, False)
    assert len(machine.plans) == 1


def test_the_model_of_a_prepared_one_survives_looks_at_its_labels(
    launcher: DockerLauncher, machine: FakeMachine
) -> None:
    launcher.prepare(spec(key=None))
    launcher.start(spec())
    machine.end("a-1-0-x", Ending(0))
    exit_of(launcher)
    assert [handle.key for handle in launcher.list()] == [KEY]


def test_a_later_launcher_adopts_all_but_what_was_only_prepared(
    open_launcher: OpenLauncher, machine: FakeMachine
) -> None:
    first = open_launcher()
    first.start(spec("runs-1-0-x"))
    first.start(spec("ended-1-0-x"))
    first.prepare(spec("spare-0-x", None))
    first.close()
    machine.end("ended-1-0-x", Ending(3))
    adopted = {handle.replica_id: handle for handle in open_launcher().list()}
    assert adopted["runs-1-0-x"].key == KEY
    assert adopted["runs-1-0-x"].exit is None
    assert adopted["ended-1-0-x"].exit == Exit("exit code 3")
    assert "spare-0-x" not in adopted
    assert "spare-0-x" not in machine.containers


def test_an_engine_that_is_away_ends_nothing_and_is_complained_of_once(
    launcher: DockerLauncher, machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    handle = launcher.start(spec())
    machine.down = True
    machine.tell()
    launcher.kill(handle)
    eventually(lambda: "does not answer" in caplog.text)
    calls = len(machine.calls)
    eventually(lambda: len(machine.calls) > calls + 1)
    assert launcher.list() == [handle]
    assert caplog.text.count("does not answer") == 1
    calls_of_create = machine.calls.count("create")
    with pytest.raises(LaunchError, match="does not answer"):
        launcher.start(spec("b-1-0-x"))
    assert machine.calls.count("create") == calls_of_create
    machine.down = False
    # The kill that was asked for meanwhile is done when it is back.
    assert "SIGKILL" in exit_of(launcher).cause
    assert "answers again" in caplog.text


def test_a_launcher_may_open_before_its_engine(
    open_launcher: OpenLauncher, machine: FakeMachine
) -> None:
    open_launcher().start(spec())
    machine.down = True
    late = open_launcher()
    assert late.list() == []
    machine.down = False
    assert eventually(late.list)[0].replica_id == "a-1-0-x"


@pytest.mark.parametrize("call", ["create", "start"])
def test_a_start_whose_answer_got_lost_leaves_no_container(
    launcher: DockerLauncher, machine: FakeMachine, call: str
) -> None:
    machine.lost_answers.add(call)
    with pytest.raises(LaunchError, match="does not answer"):
        launcher.start(spec())
    eventually(lambda: not machine.containers)
    assert launcher.list() == []


def test_a_refused_start_is_worded_and_leaves_no_container(
    launcher: DockerLauncher, machine: FakeMachine
) -> None:
    machine.refusals["start"] = EngineRefusedError(500, "cannot allocate memory")
    with pytest.raises(LaunchError, match="has not the memory for container a-1-0-x"):
        launcher.start(spec())
    eventually(lambda: not machine.containers)
    # A later start of another replica is not held up.
    assert launcher.start(spec("b-1-0-x")).exit is None


def test_one_that_cannot_be_removed_is_not_adopted_again_and_is_complained_of_once(
    launcher: DockerLauncher, machine: FakeMachine, caplog: pytest.LogCaptureFixture
) -> None:
    handle = launcher.start(spec())
    machine.end("a-1-0-x", Ending(1))
    exit_of(launcher)
    machine.stuck = "driver failed to remove root filesystem"
    launcher.kill(handle)
    for _ in range(3):
        tried_again(machine)
        assert launcher.list() == []
    assert caplog.text.count("driver failed") == 1
    machine.stuck = ""
    machine.tell()
    eventually(lambda: not machine.containers)


def test_a_container_of_the_same_name_is_left_alone(
    launcher: DockerLauncher, machine: FakeMachine
) -> None:
    launcher.start(spec())
    with pytest.raises(LaunchError, match="is there already"):
        launcher.start(spec())
    assert machine.containers["a-1-0-x"].state == "running"


def test_one_that_was_removed_by_hand_has_ended(
    launcher: DockerLauncher, machine: FakeMachine
) -> None:
    launcher.start(spec())
    del machine.containers["a-1-0-x"]
    machine.tell()
    assert exit_of(launcher).cause == "its container was removed by somebody else"


def test_a_prepared_one_that_was_removed_by_hand_is_made_anew(
    launcher: DockerLauncher, machine: FakeMachine
) -> None:
    launcher.prepare(spec(key=None))
    del machine.containers["a-1-0-x"]
    launcher.start(spec())
    assert machine.containers["a-1-0-x"].state == "running"


def test_an_engine_that_cannot_say_how_one_ended_is_quoted(
    launcher: DockerLauncher, machine: FakeMachine
) -> None:
    launcher.start(spec())
    machine.refusals["ending"] = EngineRefusedError(500, "no inspection today")
    machine.end("a-1-0-x", Ending(0))
    assert "no inspection today" in exit_of(launcher).cause


def test_logs_come_from_the_engine_then_from_memory_and_of_strangers_not_at_all(
    launcher: DockerLauncher, machine: FakeMachine
) -> None:
    handle = launcher.start(spec())
    assert launcher.log("a-1-0-x", 1) == ("a-1-0-x",)
    machine.end("a-1-0-x", Ending(1, log_tail=("one", "two")))
    exit_of(launcher)
    launcher.kill(handle)
    eventually(lambda: not machine.containers)
    assert launcher.log("a-1-0-x", 1) == ("two",)
    with pytest.raises(NoSuchReplicaError, match="'b'"):
        launcher.log("b", 1)


def test_close_leaves_the_containers_and_no_thread(
    launcher: DockerLauncher, machine: FakeMachine
) -> None:
    launcher.start(spec())
    launcher.close()
    launcher.close()
    assert machine.containers["a-1-0-x"].state == "running"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("docker-")]


@pytest.mark.parametrize("url", ["tcp://h:port", "tcp://127.0.0.1:99999", "tcp://[::1", "nonsense"])
def test_an_address_of_no_engine_is_an_engine_that_does_not_answer(url: str) -> None:
    engine = DockerEngine("", {"DOCKER_HOST": url}, 1.0)
    with pytest.raises(EngineDownError, match=r"the Docker Engine at .* does not answer"):
        engine.containers("a=b")
    engine.close()


def test_what_is_asked_for_during_the_last_look_is_done_before_the_close_is_over(
    machine: FakeMachine,
) -> None:
    looking, closing = threading.Event(), threading.Event()

    class SlowEngine(FakeEngine):
        """One look lasts until the launcher is closed."""

        def containers(self, label: str) -> list[Container]:
            found = super().containers(label)
            if machine.slow and threading.current_thread() is not threading.main_thread():
                machine.slow = False
                looking.set()
                assert closing.wait(10)
            return found

        def close(self) -> None:
            closing.set()
            super().close()

    launcher = DockerLauncher(SETTINGS, lambda: None, connect=lambda: SlowEngine(machine))
    launcher.open()
    handle = launcher.start(spec())
    machine.end("a-1-0-x", Ending(0))
    exit_of(launcher)
    machine.slow = True
    machine.tell()
    assert looking.wait(10)
    launcher.kill(handle)
    launcher.close()
    assert machine.containers == {}


def test_without_the_sdk_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "docker", None)
    launcher = DockerLauncher(SETTINGS, lambda: None)
    with pytest.raises(SettingsError, match=r"pip install tideserve\[docker\]"):
        launcher.open()
    launcher.close()


def test_the_autoscaler_can_be_imported_without_the_sdk() -> None:
    module = importlib.import_module("tideserve.autoscaler.launchers.docker")
    assert not hasattr(module, "docker")
