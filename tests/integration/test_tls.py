"""Clients by TLS: the transport hides its socket, and everything else is the same."""

import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from tests.harness import TIMEOUT, Pushd, RedisServer, free_port
from tests.integration.certificates import write_certificate

MEMORY_BOUND = 6 * 1024**2
"""One log and one remainder are well below; what is published in total is twelve times as much."""


def test_clients_by_tls(redis_server: RedisServer, tmp_path: Path, start_pushd: Callable[..., Pushd]) -> None:
    certificate = write_certificate(tmp_path / "server.pem", "127.0.0.1")
    port = free_port()
    pushd = start_pushd(
        *("--port", f"ssl:{port}:interface=127.0.0.1:privateKey={certificate}:certKey={certificate}"),
        *("--redis", redis_server.url, "--channel", "updates", "--slow", "skip", "--history", "1M"),
        *("--drain", "0.5"),
    )
    pushd.wait_subscribed()
    context = ssl.create_default_context(cafile=str(certificate))

    def connect() -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT)
        client = context.wrap_socket(plain, server_hostname="127.0.0.1")
        client.sendall(b"hello\r\n")
        assert client.recv(100) == b"hello\r\n"
        return client

    with connect() as reader, connect() as stalled, redis_server.client() as publisher:
        before = pushd.resident_bytes()
        for number in range(1500):
            message = b"%06d" % number + b"x" * 50_000
            publisher.publish("updates", message)
            assert receive(reader, len(message) + 2) == message + b"\r\n"
        assert pushd.resident_bytes() - before < MEMORY_BOUND
        pushd.terminate()
        stalled.close()
    assert "2 clients served, 0 refused, 1 cut off with something left to send; 1500 messages" in pushd.output


def receive(client: ssl.SSLSocket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        assert more
        data += more
    return data
