"""A folder for shared weights, and models of any size that are worth it."""

from pathlib import Path

import pytest

from tideserve.replica.backends import shared_weights


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(shared_weights, "MIN_BYTES", 1)
    return tmp_path / "weights"
