"""How the replica's sockets are set; what they carry is in test_unary.py and test_stream.py."""

import logging
import os
import socket
from pathlib import Path

import pytest

from tideserve.replica.sockets import CallSocket, authority_of, nearest_of, open_socket
from tideserve.v1 import http2


def test_a_silent_network_is_noticed_by_the_kernel() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        open_socket(f"127.0.0.1:{listener.getsockname()[1]}") as sock,
    ):
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        idle_s, interval_s, count = (
            sock.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle_s + interval_s * count <= 30
        assert 0 < sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) <= 30_000


def test_a_unix_socket_has_no_name_to_ask_for() -> None:
    assert authority_of("unix:/run/s") == "localhost"
    assert authority_of("[::1]:8001") == "[::1]:8001"


def test_the_local_address_is_dialled_while_somebody_listens_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s"
    local = f"unix:{path}"
    assert nearest_of("", "host:1") == "host:1"
    assert caplog.records == []
    with caplog.at_level(logging.WARNING):
        assert nearest_of(local, "host:1") == "host:1"
    assert f"host:1 is dialled, for {local} cannot be: " in caplog.text
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        assert nearest_of(local, "host:1") == local


def passing(end: socket.socket, text: bytes, data: bytes) -> None:
    """Sends bytes, and beside them a file that holds `text`."""
    read, write = os.pipe()
    os.write(write, text)
    os.close(write)
    socket.send_fds(end, [data], [read])
    os.close(read)


def test_the_latest_file_that_came_is_there_and_the_others_are_closed() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    ours, theirs = socket.socketpair()
    with theirs:
        end = CallSocket(ours, b"", takes_files=True)
        assert end.take_file() is None
        for text in (b"first", b"second"):
            passing(theirs, text, http2.frame(http2.PING, 0, 0, bytes(8)))
            end.turn()
        file = end.take_file()
        assert file is not None
        assert os.read(file, 100) == b"second"
        assert not os.get_inheritable(file)
        os.close(file)
        assert end.take_file() is None
        passing(theirs, b"third", http2.frame(http2.PING, 0, 0, bytes(8)))
        end.turn()
        end.close()
    assert set(Path("/proc/self/fd").iterdir()) == before


def test_who_takes_no_files_gets_none() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    ours, theirs = socket.socketpair()
    with theirs:
        end = CallSocket(ours, b"")
        passing(theirs, b"text", http2.frame(http2.PING, 0, 0, bytes(8)))
        end.turn()
        assert end.take_file() is None
        end.close()
    assert set(Path("/proc/self/fd").iterdir()) == before
