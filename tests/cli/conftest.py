from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.client.fake_server import FakeServer
from tideserve.cli.__main__ import app
from tideserve.cli.catalog import installed_catalog

Run = Callable[..., Result]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeServer]:
    """A server that the environment names, and a user without tokens."""
    server = FakeServer()
    server.start()
    monkeypatch.setenv("TIDESERVE_ADDRESS", server.address)
    monkeypatch.delenv("TIDESERVE_TOKEN", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "runtime"))
    yield server
    server.stop()


@pytest.fixture
def run(server: FakeServer) -> Run:
    """Runs `tideserve ARGUMENTS`; the result has stdout, stderr and exit_code."""

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app(installed_catalog(), arguments), arguments)

    return run
