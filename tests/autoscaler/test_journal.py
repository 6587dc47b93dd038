"""The decision log: what is written, when, and what is not."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tideserve.autoscaler.core.actions import Action, Assign, Drain, Kill, Prepare, Report, Start
from tideserve.autoscaler.core.decision import Decision
from tideserve.autoscaler.core.fleet import Model, ModelKey, Replica, ReplicaState, Snapshot
from tideserve.autoscaler.core.load import Sample
from tideserve.autoscaler.journal import DecisionLog

KEY = ModelKey("digits", 1, "g")
SNAPSHOT = Snapshot(
    1,
    (Model(KEY),),
    (
        Replica("a", KEY, ReplicaState.READY),
        Replica("b", KEY, ReplicaState.STARTING),
        Replica("s", None, ReplicaState.STANDBY),
    ),
)


class Metrics:
    """Keeps which counts changed."""

    def __init__(self) -> None:
        self.changed: list[Sequence[ModelKey]] = []

    def record(
        self,
        now_s: float,
        snapshot: Snapshot,
        decisions: Mapping[ModelKey, Decision],
        changed: Sequence[ModelKey],
    ) -> None:
        self.changed.append(list(changed))


def record(log: DecisionLog, decision: Decision, *actions: Action) -> None:
    log.record(5.0, SNAPSHOT, Sample(unix_s=1000.0), {KEY: decision}, actions)


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "decisions.jsonl"


def test_a_change_is_a_line_with_inputs_reason_limit_and_effect(path: Path) -> None:
    log = DecisionLog(path, Metrics())
    log.open()
    decision = Decision(3, "panic: 9 rows wait", "max: 3", {"rows_per_s_20s": 1 / 3})
    record(log, decision, Start("c", KEY, "cpu", ""), Assign("s", KEY, ""), Drain("a", ""))
    log.close()
    assert lines(path) == [
        {
            "unix_s": 1000.0,
            "model": "digits",
            "version": 1,
            "desired": 3,
            "ready": 1,
            "starting": 1,
            "reason": "panic: 9 rows wait",
            "limited_by": "max: 3",
            "inputs": {"rows_per_s_20s": 0.333333},
            "actions": ["start c", "assign s", "drain a"],
        }
    ]
    assert log.recent() == lines(path)


def test_the_same_again_is_no_line_but_something_done_is(path: Path) -> None:
    metrics = Metrics()
    log = DecisionLog(path, metrics)
    log.open()
    record(log, Decision(1, "one"))
    record(log, Decision(1, "another reason"))
    record(log, Decision(1, "one"), Kill("a", "lost"))
    record(log, Decision(1, "one", "min: 1"))
    log.close()
    assert [(e["reason"], e["actions"]) for e in lines(path)] == [
        ("one", []),
        ("one", ["kill a"]),
        ("one", []),
    ]
    record(log, Decision(2, "two"))
    # The metric counts changes of desired; another limit alone is a line only.
    assert metrics.changed == [[KEY], [], [], [], [KEY]]


def test_a_start_that_failed_is_a_line_with_its_cause(path: Path) -> None:
    log = DecisionLog(path, Metrics())
    log.open()
    record(log, Decision(1, "one"))
    record(log, Decision(1, "one"), Report("a", "could not be started: no image", failed_starts=1))
    log.close()
    assert lines(path)[1]["actions"] == ["report a: could not be started: no image"]


def test_what_is_done_for_no_model_is_a_line_of_its_own(path: Path) -> None:
    log = DecisionLog(path, Metrics())
    log.open()
    record(log, Decision(1, "one"))
    record(log, Decision(1, "one"), Start("t", None, "cpu", ""), Prepare("p", "cpu", ""))
    log.close()
    assert lines(path)[1:] == [{"unix_s": 1000.0, "actions": ["start t", "prepare p"]}]


def test_a_later_autoscaler_appends_and_a_large_file_is_put_aside(path: Path) -> None:
    for _ in range(2):
        log = DecisionLog(path, Metrics(), max_file_bytes=1000)
        log.open()
        record(log, Decision(1, "one"))
        log.close()
    assert len(lines(path)) == 2
    log = DecisionLog(path, Metrics(), max_file_bytes=1000)
    log.open()
    for count in range(20):
        record(log, Decision(count, "x"))
    log.close()
    old = path.with_name("decisions.jsonl.1")
    assert 1000 <= old.stat().st_size < 1400
    assert path.stat().st_size < 1000
    assert len(log.recent()) == 20
    assert len(log.recent(3)) == 3
    assert log.recent(0) == []


def test_a_file_that_cannot_be_written_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("")
    log = DecisionLog(tmp_path / "taken" / "decisions.jsonl", Metrics())
    log.open()
    record(log, Decision(1, "one"))
    record(log, Decision(2, "two"))
    log.close()
    assert len(log.recent()) == 2
    (message,) = caplog.messages
    assert "cannot be written" in message


def test_a_folder_that_comes_back_is_written_to_within_ten_seconds(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    path = tmp_path / "taken" / "decisions.jsonl"
    log = DecisionLog(path, Metrics())
    log.open()
    for now_s, desired in ((0.0, 1), (9.0, 2), (10.0, 3)):
        log.record(now_s, SNAPSHOT, Sample(unix_s=0.0), {KEY: Decision(desired, "x")}, ())
        if now_s == 0.0:
            (tmp_path / "taken").unlink()
    log.close()
    assert [line["desired"] for line in lines(path)] == [3]


def test_a_file_that_cannot_be_put_aside_is_told_and_written_on(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = DecisionLog(path, Metrics(), max_file_bytes=300)
    log.open()
    in_the_way = path.with_name("decisions.jsonl.1")
    (in_the_way / "full").mkdir(parents=True)
    for count in range(6):
        record(log, Decision(count, "x"))
    log.close()
    assert [line["desired"] for line in lines(path)] == list(range(6))
    (message,) = caplog.messages
    assert "cannot be written" in message


def test_a_full_disk_is_told_again_after_it_was_well(caplog: pytest.LogCaptureFixture) -> None:
    log = DecisionLog(Path("/dev/full"), Metrics())
    log.open()
    record(log, Decision(1, "one"))
    record(log, Decision(2, "two"))
    log.close()
    assert len(caplog.messages) == 1
    assert [entry["desired"] for entry in log.recent()] == [1, 2]
