"""Every transcript still says what the core does; see `transcript` for the language."""

from pathlib import Path

import pytest

from tests.core.transcript import Transcript, scripts


@pytest.mark.parametrize("path", scripts(), ids=lambda path: path.stem)
def test_the_core_does_what_the_transcript_says(path: Path) -> None:
    text = path.read_text()
    assert Transcript().play(text) == text


def test_there_are_transcripts() -> None:
    assert len(scripts()) >= 14


def test_a_line_that_is_no_event_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an event, got 'dance r1'"):
        Transcript().play("dance r1\n")
