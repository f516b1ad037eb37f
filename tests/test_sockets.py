"""What is asked of the kernel: read back from real sockets."""

import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from pushd.sockets import raise_descriptor_limit, tune_listener, watch_peer


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def test_accepted_connections_inherit_everything(listener: socket.socket) -> None:
    tune_listener(listener.fileno(), 100_000)
    with socket.create_connection(listener.getsockname()), listener.accept()[0] as accepted:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 200_000  # doubled: see socket(7)
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, count, interval, unacknowledged = (
            accepted.getsockopt(socket.IPPROTO_TCP, option)
            for option in (
                *(socket.TCP_KEEPIDLE, socket.TCP_KEEPCNT),
                *(socket.TCP_KEEPINTVL, socket.TCP_USER_TIMEOUT),
            )
        )
    assert (idle, count) == (60, 3)
    # A peer that vanished is gone within two minutes, idle or not.
    assert idle + count * interval <= 120
    assert unacknowledged <= 120_000


def test_unix_sockets_are_left_as_they_are(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        before = listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        tune_listener(listener.fileno(), 100_000)
        watch_peer(listener)
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == before
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0


def test_the_soft_limit_of_descriptors_becomes_the_hard_one() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
        assert raise_descriptor_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
