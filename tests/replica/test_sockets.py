"""How the replica's sockets are set; what they carry is in test_unary.py and test_stream.py."""

import socket

from tideserve.replica.sockets import authority_of, open_socket


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
