"""The process launcher with real forks of a tiny entry module."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from multiprocessing import forkserver
from pathlib import Path

import pytest

from tests.autoscaler.waiting import eventually
from tideserve.autoscaler.core.fleet import Exit, ModelKey
from tideserve.autoscaler.errors import LaunchError, NoSuchReplicaError, StateDirError
from tideserve.autoscaler.launchers import Handle, ReplicaSpec
from tideserve.autoscaler.launchers.child import show_device
from tideserve.autoscaler.launchers.process import (
    PRELOAD,
    ProcessLauncher,
    ProcessSettings,
    cause_of,
    log_tail,
)
from tideserve.autoscaler.launchers.record import read_record

ENTRY = "tests.autoscaler.fake_replica"
DIGITS = ModelKey("digits", 1, "g1")
ROOT = Path(__file__).parents[3]
OpenLauncher = Callable[[], ProcessLauncher]


def spec(name: str, order: str, device: str = "cpu") -> ReplicaSpec:
    return ReplicaSpec(name, DIGITS, "127.0.0.1:1", token=order, device=device, threads=3)


def settings_of(folder: Path, kept_logs: int = 50) -> ProcessSettings:
    return ProcessSettings(
        folder / "state",
        ENTRY,
        preload=("tideserve.autoscaler.launchers.child",),
        kept_logs=kept_logs,
        weights_folder=folder / "weights",
    )


@pytest.fixture
def deaths() -> threading.Event:
    return threading.Event()


@pytest.fixture
def open_launcher(tmp_path: Path, deaths: threading.Event) -> Iterator[OpenLauncher]:
    """Launchers on one state folder; whatever still runs in it is killed at the end."""
    opened: list[ProcessLauncher] = []

    def open_one() -> ProcessLauncher:
        launcher = ProcessLauncher(settings_of(tmp_path), on_exit=deaths.set)
        launcher.open()
        opened.append(launcher)
        return launcher

    yield open_one
    for launcher in opened:
        launcher.close()
    last = open_one()
    for handle in last.list():
        last.kill(handle)
    last.close()


def test_what_is_forked_is_imported_without_grpcio() -> None:
    code = (
        "import sys, importlib; [*map(importlib.import_module, sys.argv[1:])]; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *PRELOAD], capture_output=True, text=True, timeout=60
    )
    modules = done.stdout.split()
    assert "tideserve.replica.process" in modules, done.stderr
    assert [module for module in modules if module.startswith("grpc")] == []


def exit_of(launcher: ProcessLauncher, name: str) -> Exit | None:
    return {handle.replica_id: handle for handle in launcher.list()}[name].exit


def pid_of(handle: Handle) -> int:
    return int(handle.where.removeprefix("pid "))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("order", "cause"),
    [
        ("exit:0", "exit code 0"),
        ("exit:3", "exit code 3"),
        ("thread:4", "exit code 4"),
        ("raise:no weights", "exit code 1"),
        (f"signal:{signal.SIGSEGV.value}", "killed by SIGSEGV"),
    ],
)
def test_an_exit_is_told_with_its_cause_and_its_log(
    open_launcher: OpenLauncher, deaths: threading.Event, order: str, cause: str
) -> None:
    launcher = open_launcher()
    launcher.start(spec("a", order))
    assert deaths.wait(5), "no death was told"
    ended = eventually(lambda: exit_of(launcher, "a"))
    assert ended.cause == cause
    assert ended.log_tail[0].startswith("order ")
    if order.startswith("raise"):
        assert ended.log_tail[-1] == "RuntimeError: no weights"


def test_an_exit_within_its_start_is_told(
    open_launcher: OpenLauncher, deaths: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = open_launcher()
    monkeypatch.setattr(f"{ProcessLauncher.__module__}.identity_of", lambda _: None)
    launcher.start(spec("a", "exit:3"))
    assert deaths.is_set()
    assert eventually(lambda: exit_of(launcher, "a")).cause == "exit code 3"


def test_an_ended_replica_is_listed_until_it_is_killed(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    launcher = open_launcher()
    handle = launcher.start(spec("a", "exit:0"))
    eventually(lambda: exit_of(launcher, "a"))
    assert [handle.replica_id for handle in launcher.list()] == ["a"]
    launcher.kill(handle)
    assert launcher.list() == []
    assert list((tmp_path / "state" / "records").iterdir()) == []
    launcher.kill(handle)


def test_a_replica_is_told_all_by_arguments_and_leads_its_own_session(
    open_launcher: OpenLauncher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launcher = open_launcher()
    order = f"tell:{tmp_path / 'told'}"
    handle = launcher.start(spec("a", order))
    eventually((tmp_path / "told").exists)
    told = json.loads((tmp_path / "told").read_text())
    assert told["settings"] == {
        "replica_id": "a",
        "address": "127.0.0.1:1",
        "token": order,
        "device": "cpu",
        "device_name": "cpu",
        "threads": 3,
        "log_file": None,
        "weights_folder": str(tmp_path / "weights"),
        "launched_at": told["settings"]["launched_at"],
    }
    assert told["pid"] == told["sid"] == pid_of(handle)
    assert told["environment"]["CUDA_VISIBLE_DEVICES"] == ""
    assert 0 < told["entered_at"] - told["settings"]["launched_at"] < 5
    proc = Path(f"/proc/{told['pid']}")
    assert order.encode() not in (proc / "cmdline").read_bytes()
    assert order.encode() not in (proc / "environ").read_bytes()
    assert order not in (tmp_path / "state" / "records" / "a.json").read_text()
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "state" / "logs" / "a.log").stat().st_mode & 0o777 == 0o600


def test_a_replica_runs_on_its_cores_and_with_as_many_threads(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    core = max(os.sched_getaffinity(0))
    pinned = replace(spec("a", f"tell:{tmp_path / 'told'}"), cores=frozenset({core}))
    open_launcher().start(pinned)
    eventually((tmp_path / "told").exists)
    told = json.loads((tmp_path / "told").read_text())
    assert told["cores"] == [core]
    assert told["settings"]["threads"] == 1


def test_cores_that_the_machine_has_not_are_said_in_words(open_launcher: OpenLauncher) -> None:
    launcher = open_launcher()
    launcher.start(replace(spec("a", "exit:0"), cores=frozenset({8000, 8001})))
    ended = eventually(partial(exit_of, launcher, "a"))
    assert ended is not None
    assert ended.cause == "exit code 1"
    assert "cores: expected CPUs of this machine" in ended.log_tail[-1]
    assert "got 8000, 8001" in ended.log_tail[-1]


def test_a_replica_sees_its_gpu_alone_and_calls_it_the_first(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    open_launcher().start(spec("a", f"tell:{tmp_path / 'told'}", device="gpu:2"))
    eventually((tmp_path / "told").exists)
    told = json.loads((tmp_path / "told").read_text())
    assert told["environment"]["CUDA_VISIBLE_DEVICES"] == "2"
    assert told["settings"]["device"] == "gpu:0"
    assert told["settings"]["device_name"] == "gpu:2"


@pytest.mark.parametrize(
    ("visible", "name", "shown"),
    [("4,6", "gpu:1", "6"), ("GPU-ab,GPU-cd", "gpu:0", "GPU-ab"), ("4", "cpu", "")],
)
def test_indexes_count_the_gpus_that_the_launcher_itself_sees(
    visible: str, name: str, shown: str
) -> None:
    environment = {"CUDA_VISIBLE_DEVICES": visible}
    show_device(name, environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == shown


def test_a_standby_is_recorded_and_adopted_without_a_model(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    first = open_launcher()
    handle = first.start(replace(spec("standby-0-ab", "pause"), key=None))
    eventually((tmp_path / "state" / "records" / "standby-0-ab.json").exists)
    first.close()
    (adopted,) = open_launcher().list()
    assert adopted == handle
    assert adopted.key is None


def test_a_log_is_shown_while_it_runs_and_after_it_is_forgotten(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    launcher = open_launcher()
    handle = launcher.start(spec("a", "exit:0"))
    eventually(lambda: exit_of(launcher, "a"))
    assert launcher.log("a", 5) == ("order exit",)
    launcher.kill(handle)
    assert launcher.list() == []
    assert launcher.log("a", 5) == ("order exit",)
    (tmp_path / "secret.log").write_text("not a replica's")
    for name in ("b", "../../secret", ""):
        with pytest.raises(NoSuchReplicaError):
            launcher.log(name, 5)


def test_warming_does_not_wait_and_is_told_when_it_is_done(
    open_launcher: OpenLauncher, deaths: threading.Event
) -> None:
    launcher = open_launcher()
    launcher.warm(frozenset({"onnxruntime"}))
    assert deaths.wait(10), "nobody was told"
    assert launcher.warm(frozenset())
    assert launcher.list() == []
    launcher.start(spec("a", "exit:3"))
    assert eventually(lambda: exit_of(launcher, "a")).cause == "exit code 3"


def test_the_launchers_main_module_is_not_run_again_in_a_replica(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    """Under pytest the main module would bring pytest with it."""
    open_launcher().start(spec("a", f"tell:{tmp_path / 'told'}"))
    eventually((tmp_path / "told").exists)
    assert json.loads((tmp_path / "told").read_text())["modules"] == []


def test_a_frozen_replica_that_ignores_sigterm_is_killed(open_launcher: OpenLauncher) -> None:
    launcher = open_launcher()
    handle = launcher.start(spec("a", "stubborn"))
    os.kill(pid_of(handle), signal.SIGSTOP)
    launcher.kill(handle)
    ended = eventually(lambda: exit_of(launcher, "a"))
    assert ended.cause == "killed by SIGKILL"


def test_a_later_launcher_adopts_what_runs_and_forgets_what_does_not(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    first = open_launcher()
    handle = first.start(spec("a", "pause", device="gpu:1"))
    gone = first.start(spec("b", "exit:0"))
    eventually(lambda: exit_of(first, "b"))
    eventually((tmp_path / "state" / "records" / "a.json").exists)
    first.close()
    second = open_launcher()
    (adopted,) = second.list()
    assert adopted == handle
    assert gone.replica_id not in {path.stem for path in (tmp_path / "state/records").iterdir()}
    second.kill(adopted)
    ended = eventually(lambda: exit_of(second, "a"))
    assert ended.cause == "ended, exit code unknown"


def test_a_record_whose_pid_is_another_process_now_is_not_adopted_and_not_killed(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    first = open_launcher()
    first.start(spec("a", "exit:0"))
    eventually(lambda: exit_of(first, "a"))
    path = tmp_path / "state" / "records" / "a.json"
    record = json.loads(path.read_text())
    record["identity"]["pid"] = os.getpid()
    path.write_text(json.dumps(record))
    assert open_launcher().list() == []
    assert not path.exists()


def test_the_newest_logs_are_kept(tmp_path: Path) -> None:
    launcher = ProcessLauncher(settings_of(tmp_path, kept_logs=2), on_exit=lambda: None)
    launcher.open()
    for name in ("a", "b", "c", "d"):
        handle = launcher.start(spec(name, "exit:0"))
        eventually(partial(exit_of, launcher, name))
        os.utime(tmp_path / "state/logs" / f"{name}.log", (ord(name), ord(name)))
        launcher.kill(handle)
    launcher.close()
    assert {path.stem for path in (tmp_path / "state/logs").iterdir()} == {"b", "c", "d"}


def test_a_state_folder_that_somebody_removed_is_made_anew_or_the_start_is_refused(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    launcher = open_launcher()
    shutil.rmtree(tmp_path / "state")
    launcher.start(spec("a", "exit:3"))
    ended = eventually(partial(exit_of, launcher, "a"))
    assert ended is not None
    assert ended.cause == "exit code 3"
    shutil.rmtree(tmp_path / "state")
    (tmp_path / "state").write_text("a file")
    with pytest.raises(LaunchError, match=r"the state folder .* cannot be used"):
        launcher.start(spec("b", "exit:0"))
    (tmp_path / "state").unlink()


def test_a_state_folder_that_cannot_be_made_is_refused_with_the_option_to_use(
    tmp_path: Path,
) -> None:
    (tmp_path / "state").write_text("a file")
    launcher = ProcessLauncher(settings_of(tmp_path), on_exit=lambda: None)
    with pytest.raises(StateDirError, match="--state-dir"):
        launcher.open()


PARENT = """
import sys
from pathlib import Path
from multiprocessing import forkserver
from tests.autoscaler.launchers.test_process import settings_of, spec
from tideserve.autoscaler.launchers.process import ProcessLauncher

launcher = ProcessLauncher(settings_of(Path(sys.argv[1])), on_exit=lambda: None)
launcher.open()
for name in ("a", "b"):
    launcher.start(spec(name, "pause"))
print(forkserver._forkserver._forkserver_pid, flush=True)
if sys.argv[2] == "exit":
    launcher.close()
    sys.exit(0)
if sys.argv[2] == "crash":
    raise SystemExit("crashed")
sys.stdin.read()
"""


@pytest.mark.parametrize("end", ["kill", "crash", "exit"])
def test_replicas_outlive_the_launcher_and_the_forkserver(
    open_launcher: OpenLauncher, tmp_path: Path, end: str
) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), end],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    forkserver_pid = int(parent.stdout.readline())
    records = tmp_path / "state" / "records"
    eventually(lambda: len(list(records.glob("*.json"))) == 2)
    if end == "kill":
        parent.kill()
    assert parent.wait(5) == {"kill": -signal.SIGKILL, "crash": 1, "exit": 0}[end]
    os.kill(forkserver_pid, signal.SIGKILL)
    eventually(lambda: not alive(forkserver_pid) or _is_zombie(forkserver_pid))
    parent.stdin.close()
    parent.stdout.close()
    launcher = open_launcher()
    assert sorted(handle.replica_id for handle in launcher.list()) == ["a", "b"]
    assert [handle.exit for handle in launcher.list()] == [None, None]


def test_the_death_of_the_forkserver_is_not_taken_for_that_of_replicas(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    launcher = open_launcher()
    handle = launcher.start(spec("a", "pause"))
    eventually((tmp_path / "state" / "records" / "a.json").exists)
    server: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    os.kill(server, signal.SIGKILL)
    eventually(lambda: _is_zombie(server))
    launcher.start(spec("b", "exit:4"))
    ended = eventually(lambda: exit_of(launcher, "b"))
    assert ended.cause == "exit code 4"
    assert exit_of(launcher, "a") is None
    launcher.kill(handle)
    ended = eventually(lambda: exit_of(launcher, "a"))
    assert ended.cause == "ended, exit code unknown"


def test_a_replica_writes_its_record_before_anything_else(
    open_launcher: OpenLauncher, tmp_path: Path
) -> None:
    launcher = open_launcher()
    handle = launcher.start(spec("a", "pause"))
    path = tmp_path / "state" / "records" / "a.json"
    eventually(path.exists)
    record = read_record(path)
    assert record is not None
    assert (record.replica_id, record.key) == ("a", ModelKey("digits", 1, "g1"))
    assert record.identity.pid == pid_of(handle)


def test_causes_are_words() -> None:
    assert cause_of(7) == "exit code 7"
    assert cause_of(-9) == "killed by SIGKILL"
    assert cause_of(-250) == "killed by signal 250"
    assert cause_of(None) == "ended, exit code unknown"


def test_a_log_tail_is_bounded_and_takes_any_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_bytes(b"\xff\xfe\n" * 1_000_000 + b"last")
    tail = log_tail(path)
    assert len(tail) == 20
    assert tail[-1] == "last"
    assert log_tail(tmp_path / "none") == ()


def test_a_log_tail_begins_with_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text("a" * 1_000_000 + "\nthe last line\n")
    assert log_tail(path) == ("the last line",)
    path.write_text("a" * 1_000_000)
    assert set(log_tail(path)[0]) == {"a"}


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True
