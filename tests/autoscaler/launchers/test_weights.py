"""Shared weights that nobody opened for long go; all others stay."""

import os
from pathlib import Path

from tideserve.autoscaler.launchers.weights import KEPT_S, prune

NOW_S = 1e9


def made(folder: Path, model: str, *, used_s: float, other_s: float) -> Path:
    """A version with weights used at one time, and beside them what is older or newer."""
    version = folder / model
    key = version / "key"
    key.mkdir(parents=True)
    (key / "weights.bin").write_bytes(b"1")
    (version / "lock").touch()
    os.utime(version / "lock", (other_s, other_s))
    os.utime(key, (used_s, used_s))
    os.utime(version, (other_s, other_s))
    return version


def test_what_was_not_opened_for_long_goes(tmp_path: Path) -> None:
    long_ago_s, lately_s = NOW_S - KEPT_S - 1.0, NOW_S - KEPT_S + 1.0
    gone = made(tmp_path, "gone", used_s=long_ago_s, other_s=long_ago_s)
    used = made(tmp_path, "used", used_s=lately_s, other_s=long_ago_s)
    in_work = made(tmp_path, "in-work", used_s=long_ago_s, other_s=lately_s)
    (tmp_path / "odd").touch()
    prune(tmp_path, NOW_S)
    assert not gone.exists()
    assert used.exists()
    assert in_work.exists()


def test_what_another_machine_left_beside_used_ones_goes(tmp_path: Path) -> None:
    long_ago_s, lately_s = NOW_S - KEPT_S - 1.0, NOW_S - KEPT_S + 1.0
    version = made(tmp_path, "used", used_s=lately_s, other_s=long_ago_s)
    (version / "theirs").mkdir()
    os.utime(version / "theirs", (long_ago_s, long_ago_s))
    prune(tmp_path, NOW_S)
    assert sorted(path.name for path in version.iterdir()) == ["key", "lock"]


def test_no_folder_is_nothing_to_do(tmp_path: Path) -> None:
    prune(tmp_path / "none", NOW_S)
    assert not (tmp_path / "none").exists()
