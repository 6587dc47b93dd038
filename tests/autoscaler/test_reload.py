"""Edits of the autoscaler file: good ones once, bad ones told once."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tideserve.autoscaler.config import AutoscalerFile
from tideserve.autoscaler.reload import LOOK_S, WatchedConfig


class Editor:
    """A file, a clock of its own, and what looks at both."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now_s = 0.0
        self.edits = 0
        self.write("standby: 1")
        self.watched = WatchedConfig(path, lambda: self.now_s)

    def write(self, text: str) -> None:
        self.path.write_text(text)
        # Each edit has a time of its own, however coarse the file system's clock.
        self.edits += 1
        os.utime(self.path, ns=(self.edits, self.edits))

    def look(self) -> AutoscalerFile | None:
        self.now_s += LOOK_S
        return self.watched.look()

    def looks(self) -> Iterator[AutoscalerFile]:
        for _ in range(4):
            if (found := self.look()) is not None:
                yield found


@pytest.fixture
def editor(tmp_path: Path) -> Editor:
    return Editor(tmp_path / "file.yaml")


def test_a_good_edit_is_given_once(editor: Editor) -> None:
    assert list(editor.looks()) == []
    editor.write("standby: 2")
    (found,) = editor.looks()
    assert found.standby == 2
    assert editor.watched.config is found


def test_a_file_that_is_still_being_written_is_not_read(editor: Editor) -> None:
    for text in ("", "st", "standby: 3"):
        editor.write(text)
        assert editor.look() is None
    (found,) = editor.looks()
    assert found.standby == 3


def test_a_bad_edit_is_told_once_and_changes_nothing(
    editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    editor.write("stadnby: 2")
    assert list(editor.looks()) == []
    assert editor.watched.config.standby == 1
    (message,) = caplog.messages
    assert "changes nothing" in message
    assert "did you mean standby?" in message
    editor.write("standby: 4")
    (found,) = editor.looks()
    assert found.standby == 4


def test_a_file_that_is_away_changes_nothing_until_it_is_back(
    editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    editor.path.unlink()
    assert list(editor.looks()) == []
    assert "cannot read" in caplog.text
    editor.write("standby: 5")
    (found,) = editor.looks()
    assert found.standby == 5


def test_another_file_put_in_its_place_is_an_edit(editor: Editor, tmp_path: Path) -> None:
    draft = tmp_path / "draft"
    draft.write_text("standby: 6")
    draft.rename(editor.path)
    (found,) = editor.looks()
    assert found.standby == 6


def test_the_same_values_again_are_no_edit(editor: Editor) -> None:
    editor.write("standby: 1 # as before")
    assert list(editor.looks()) == []


def test_what_is_read_at_the_start_only_is_named(
    editor: Editor, caplog: pytest.LogCaptureFixture
) -> None:
    editor.write("standby: 1\nserver: {address: 'h:1'}")
    (found,) = editor.looks()
    assert found.server.address == "h:1"
    assert "a change of server takes effect when the autoscaler is started again" in caplog.text


def test_the_file_is_not_looked_at_more_often_than_needed(editor: Editor) -> None:
    editor.write("standby: 2")
    for _ in range(10):
        assert editor.watched.look() is None
