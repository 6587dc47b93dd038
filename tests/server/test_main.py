"""The command around the server: what it does to the process."""

import gc
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tideserve.server import __main__ as command


class _App:
    """Stands in for the server: notes what is frozen when."""

    frozen_at_start = -1
    frozen_at_serve = -1

    def __init__(self, *_: Any, **__: Any) -> None:
        """Nothing to make."""

    def start(self) -> None:
        _App.frozen_at_start = gc.get_freeze_count()

    def serve(self) -> None:
        _App.frozen_at_serve = gc.get_freeze_count()

    def request_stop(self) -> None:
        """Nothing to stop."""


@pytest.fixture(autouse=True)
def _process_as_before() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    gc.unfreeze()
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_what_the_start_made_is_frozen_before_it_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "App", _App)
    gc.unfreeze()
    command.serve(tmp_path)
    assert _App.frozen_at_start == 0
    assert _App.frozen_at_serve > 1000
    assert gc.isenabled()
