"""The loop with real forks and a real control plane; replicas are a tiny entry module."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.autoscaler.fake_control import TOKEN, FakeControl
from tests.autoscaler.waiting import eventually
from tideserve.autoscaler.core.failures import BackoffRules
from tideserve.autoscaler.core.fixed import FixedCount
from tideserve.autoscaler.core.state import Rules
from tideserve.autoscaler.launchers.identity import identity_of
from tideserve.autoscaler.launchers.process import ProcessLauncher, ProcessSettings
from tideserve.autoscaler.launchers.record import read_record
from tideserve.autoscaler.loop import Ending, Loop, LoopSettings
from tideserve.autoscaler.sources.frontend import (
    FrontendControl,
    FrontendSettings,
    FrontendWatch,
    open_channel,
)
from tideserve.autoscaler.wake import Wake
from tideserve.v1 import control_pb2

QUICK = Rules(backoff=BackoffRules(first_s=0.01, max_s=0.02, give_up_after=3, give_up_pause_s=60.0))


class Autoscaler:
    """A loop with its parts, in a thread of the test."""

    def __init__(
        self, frontend: FakeControl, folder: Path, order: str, generation: int, rules: Rules
    ) -> None:
        settings = FrontendSettings(frontend.address, TOKEN, generation)
        wake = Wake()
        self.ending: Ending | None = None
        self.orphaned = False
        self._channel = open_channel(settings)
        self._watch = FrontendWatch(self._channel, settings, wake.ring)
        self._launcher = ProcessLauncher(
            ProcessSettings(
                folder / "state",
                "tests.autoscaler.fake_replica",
                preload=("tideserve.autoscaler.launchers.child",),
            ),
            wake.ring,
        )
        self.loop = Loop(
            self._watch,
            self._watch,
            FrontendControl(self._channel, settings),
            self._launcher,
            FixedCount(1),
            LoopSettings(frontend.address, order, stop_timeout_s=3.0, rules=rules),
            wake,
            life=generation,
            orphaned=lambda: self.orphaned,
        )
        self._launcher.open()
        self._watch.start()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        self.ending = self.loop.run()

    def join(self) -> Ending | None:
        self._thread.join(10)
        self._watch.close()
        self._launcher.close()
        self._channel.close()
        return self.ending


Begin = Callable[..., Autoscaler]


@pytest.fixture
def frontend() -> Iterator[FakeControl]:
    control = FakeControl()
    control.serve_model("digits")
    yield control
    control.stop()


@pytest.fixture
def begin(frontend: FakeControl, tmp_path: Path) -> Iterator[Begin]:
    """Autoscalers on one folder; the last stop kills what is left."""
    begun: list[Autoscaler] = []

    def begin_one(order: str = "pause", rules: Rules = QUICK) -> Autoscaler:
        autoscaler = Autoscaler(frontend, tmp_path, order, len(begun) + 1, rules)
        begun.append(autoscaler)
        return autoscaler

    yield begin_one
    for autoscaler in begun:
        autoscaler.loop.stop()
        autoscaler.loop.stop()
    for autoscaler in begun:
        autoscaler.join()
    for pid in pids(tmp_path):
        os.kill(pid, signal.SIGKILL)


def pids(folder: Path) -> list[int]:
    """The replica processes that run."""
    records = [read_record(path) for path in (folder / "state/records").glob("*.json")]
    return [
        record.identity.pid
        for record in records
        if record is not None and identity_of(record.identity.pid) == record.identity
    ]


def test_a_killed_replica_is_reported_and_replaced(
    frontend: FakeControl, begin: Begin, tmp_path: Path
) -> None:
    begin()
    (first,) = eventually(lambda: pids(tmp_path))
    os.kill(first, signal.SIGKILL)
    (report,) = eventually(lambda: frontend.said("ReportExit"))
    assert (report.cause, report.failed_starts) == ("killed by SIGKILL", 0)
    assert eventually(lambda: pids(tmp_path)) != [first]
    assert len(frontend.said("Announce")) == 2


def test_a_replica_that_cannot_start_is_reported_with_its_log_and_then_given_up(
    frontend: FakeControl, begin: Begin
) -> None:
    frontend.announced_state = control_pb2.STARTING
    begin("raise:no weights in model.onnx")
    eventually(lambda: len(frontend.said("ReportExit")) == 3)
    reports = frontend.said("ReportExit")
    assert [report.failed_starts for report in reports] == [1, 2, 3]
    assert reports[0].log_tail[-1] == "RuntimeError: no weights in model.onnx"
    assert [bool(report.give_up_reason) for report in reports] == [False, False, True]
    assert reports[2].give_up_reason.startswith(
        "replicas of model 'digits' version 1 failed 3 times in a row, the last one with exit "
        "code 1; the last line of its log: RuntimeError: no weights in model.onnx"
    )
    assert len(frontend.said("Announce")) == 3


def test_a_retiring_model_has_its_replica_drained(
    frontend: FakeControl, begin: Begin, tmp_path: Path
) -> None:
    begin()
    (before,) = eventually(lambda: pids(tmp_path))
    frontend.on_drain = lambda _: os.kill(before, signal.SIGTERM)
    with frontend.lock:
        frontend.snapshot.models[0].wanted = False
    frontend.push()
    (report,) = eventually(lambda: frontend.said("ReportExit"))
    assert (report.cause, report.failed_starts) == ("killed by SIGTERM", 0)
    assert pids(tmp_path) == []


def test_a_stop_drains_and_leaves_no_process(
    frontend: FakeControl, begin: Begin, tmp_path: Path
) -> None:
    autoscaler = begin()
    (pid,) = eventually(lambda: pids(tmp_path))
    frontend.on_drain = lambda _: os.kill(pid, signal.SIGTERM)
    autoscaler.loop.stop()
    assert autoscaler.join() is Ending.STOPPED
    assert len(frontend.said("DrainReplica")) == 1
    assert pids(tmp_path) == []


def test_a_newer_autoscaler_adopts_the_replica_and_the_older_one_leaves(
    frontend: FakeControl, begin: Begin, tmp_path: Path
) -> None:
    older = begin()
    before = eventually(lambda: pids(tmp_path))
    newer = begin()
    frontend.push()
    eventually(lambda: frontend.generation == 2)
    frontend.stop()  # ends the older one's Watch, as a frontend does when a newer one comes
    again = FakeControl(frontend.port, epoch=2)
    again.generation = 2
    again.serve_model("digits")
    try:
        assert older.join() is Ending.SUPERSEDED
        (announce,) = eventually(lambda: again.said("Announce"))
        assert [replica.replica_id for replica in announce.replicas] == [
            path.stem for path in (tmp_path / "state/records").glob("*.json")
        ]
        assert pids(tmp_path) == before
        newer.loop.stop()
        newer.loop.stop()
        assert newer.join() is Ending.STOPPED
        eventually(lambda: pids(tmp_path) == [])
    finally:
        again.stop()


def test_a_standby_takes_the_place_of_a_replica_that_dies_and_is_replaced(
    frontend: FakeControl, begin: Begin, tmp_path: Path
) -> None:
    begin(rules=replace(QUICK, standby=1))
    eventually(lambda: len(pids(tmp_path)) == 2)
    records = {path.stem: read_record(path) for path in (tmp_path / "state/records").iterdir()}
    (spare,) = (name for name in records if name.startswith("standby-"))
    (model,) = records.keys() - {spare}
    of_model, of_spare = records[model], records[spare]
    assert of_model is not None
    assert of_spare is not None
    os.kill(of_model.identity.pid, signal.SIGKILL)
    (assign,) = eventually(lambda: frontend.said("AssignModel"))
    assert (assign.replica_id, assign.model_name) == (spare, "digits")
    eventually(lambda: len(pids(tmp_path)) == 2)
    assert of_spare.identity.pid in pids(tmp_path)
    newest = frontend.said("Announce")[-1]
    assert [one.model_name for one in newest.replicas] == [""]


def test_an_orphans_replica_lives_on(begin: Begin, tmp_path: Path) -> None:
    autoscaler = begin()
    before = eventually(lambda: pids(tmp_path))
    autoscaler.orphaned = True
    assert autoscaler.join() is Ending.ORPHANED
    assert pids(tmp_path) == before
