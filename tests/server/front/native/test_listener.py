"""The unix sockets beside the port, as files."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tideserve.server.errors import StartError
from tideserve.server.front import FrontSettings
from tideserve.server.front.native.listener import Listeners


@contextmanager
def listening(**changes: Path) -> Iterator[Listeners]:
    listeners = Listeners()
    listeners.open(FrontSettings(port=0, **changes))  # type: ignore[arg-type]
    try:
        yield listeners
    finally:
        listeners.close()


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_other_users_reach_the_link_socket_and_not_the_own_one(tmp_path: Path) -> None:
    link, own = tmp_path / "new" / "link", tmp_path / "own"
    umask = os.umask(0o077)
    try:
        with listening(link_folder=link, own_folder=own):
            (own_socket,) = own.iterdir()
            assert mode_of(link) == 0o711
            assert mode_of(link / "front.sock") == 0o666
            assert mode_of(own) == 0o700
            connect(link / "front.sock")
            connect(own_socket)
    finally:
        os.umask(umask)
    assert list(link.iterdir()) == list(own.iterdir()) == []


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with listening(link_folder=tmp_path):
        assert mode_of(tmp_path) == 0o750


def test_what_a_killed_server_left_is_replaced_and_what_lives_is_not(tmp_path: Path) -> None:
    path = tmp_path / "front.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with listening(link_folder=tmp_path):
        connect(path)
        with (
            pytest.raises(StartError, match=r"--link-folder: .*another server listens there"),
            listening(link_folder=tmp_path, own_folder=tmp_path / "own"),
        ):
            pass
        connect(path)
        assert list((tmp_path / "own").iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 120, "file", "taken"])
def test_a_folder_that_cannot_have_a_socket_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "front.sock").write_text("no socket")
    with (
        pytest.raises(StartError, match=r"--link-folder: the socket \S+ cannot be bound"),
        listening(link_folder=tmp_path / name),
    ):
        pass
    assert (tmp_path / "taken" / "front.sock").read_text() == "no socket"
