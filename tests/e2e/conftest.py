"""Starts the real server: its own ports, its own state folder, its log kept for failures."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.server import EXAMPLES, Server


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers that are stopped, and looked after for orphans, when the test ends."""
    servers: list[Server] = []

    def start(repository: Path = EXAMPLES, *options: str, ready: bool = True) -> Server:
        server = Server(repository, tmp_path / f"state-{len(servers)}", options)
        servers.append(server)
        server.start()
        if ready:
            server.wait_ready()
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture(params=["native", "grpcio"])
def front(request: pytest.FixtureRequest) -> str:
    """Both fronts, one suite."""
    kind = request.param
    assert isinstance(kind, str)
    return kind
