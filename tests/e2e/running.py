"""Servers that live as long as a `with`, for fixtures of any scope."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.e2e.server import Server


@contextmanager
def running(repository: Path, state: Path, *options: str, ready: bool = True) -> Iterator[Server]:
    """A server on free ports; `state` is its own folder, made where it is missing."""
    server = Server(repository, state, options)
    try:
        server.start()
        if ready:
            server.wait_ready()
        yield server
    finally:
        server.close()
