from dataclasses import replace
from pathlib import Path

import pytest

from tideserve.autoscaler.core.fleet import ModelKey
from tideserve.autoscaler.launchers.identity import ProcessIdentity
from tideserve.autoscaler.launchers.record import ReplicaRecord, read_record, write_record

RECORD = ReplicaRecord(
    replica_id="digits-1-0-aa",
    key=ModelKey("digits", 1, "g1"),
    device="cpu",
    identity=ProcessIdentity(pid=12, start_ticks=34, boot_id="b"),
    log_path="x.log",
)


@pytest.mark.parametrize("record", [RECORD, replace(RECORD, key=None)])
def test_what_is_written_is_read_and_no_draft_stays(tmp_path: Path, record: ReplicaRecord) -> None:
    path = tmp_path / "digits-1-0-aa.json"
    write_record(path, record)
    assert read_record(path) == record
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"replica_id": "x"}', '{"identity": 3}'])
def test_anything_else_is_no_record(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    assert read_record(path) is None


def test_a_missing_file_is_no_record(tmp_path: Path) -> None:
    assert read_record(tmp_path / "none.json") is None
