"""The Redis source against real servers that are late, lost, frozen, locked or encrypted."""

import contextlib
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness import Client, Pushd, RedisServer, free_port
from tests.integration.certificates import write_certificate


def arrives(client: Client, server: RedisServer, message: bytes) -> None:
    """Check that what is published now reaches a client."""
    with server.client() as publisher:
        assert publisher.publish("updates", message) == 1
    assert client.read_line() == message


def test_it_starts_without_redis_and_follows_once_there_is_one(start_pushd: Callable[..., Pushd]) -> None:
    port = free_port()
    pushd = start_pushd("--redis", f"redis://127.0.0.1:{port}", "--channel", "updates")
    with Client(pushd.port) as client:
        client.echo()
        pushd.wait_for(
            rf"No subscription at redis://127.0.0.1:{port}: .*refused.*; trying again in \d+\.\d s", count=2
        )
        client.echo()
        with RedisServer(port=port) as server:
            pushd.wait_subscribed()
            arrives(client, server, b"here I am")


def test_it_returns_to_a_redis_that_was_killed_and_restarted(start_pushd: Callable[..., Pushd]) -> None:
    with RedisServer() as first:
        pushd = start_pushd("--redis", first.url, "--channel", "updates")
        pushd.wait_subscribed()
        client = Client(pushd.port)
        client.echo()
        arrives(client, first, b"before")
    pushd.wait_for("No subscription at")
    client.echo()
    with RedisServer(port=first.port) as second, client:
        pushd.wait_subscribed(count=2)
        arrives(client, second, b"after")


def test_it_returns_after_client_kill(redis_server: RedisServer, start_pushd: Callable[..., Pushd]) -> None:
    pushd = start_pushd("--redis", redis_server.url, "--channel", "updates")
    pushd.wait_subscribed()
    with Client(pushd.port) as client, redis_server.client() as admin:
        client.echo()
        for count in (2, 3):
            assert admin.client_kill_filter(_type="pubsub") == 1
            pushd.wait_subscribed(count=count)
            arrives(client, redis_server, b"after")


def test_a_redis_that_is_frozen_at_start_is_given_up_and_tried_again(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    redis_server.signal(signal.SIGSTOP)
    pushd = start_pushd("--redis", redis_server.url, "--channel", "updates")
    with Client(pushd.port) as client:
        client.echo()
        pushd.wait_for("No subscription at .*: no answer within 5 s; trying again")
        redis_server.signal(signal.SIGCONT)
        pushd.wait_subscribed()
        client.echo()
        arrives(client, redis_server, b"thawed")


def test_a_wrong_password_is_tried_until_it_is_right(
    start_pushd: Callable[..., Pushd], tmp_path: Path
) -> None:
    password = tmp_path / "password"
    password.write_text("white rabbit\n")
    with RedisServer("--requirepass", "other") as server, server.client("other") as admin:
        pushd = start_pushd(
            "--redis", server.url, "--redis-password-file", str(password), "--channel", "updates"
        )
        pushd.wait_for("No subscription at .*: WRONGPASS .*; trying again", count=2)
        admin.config_set("requirepass", "white rabbit")
        pushd.wait_subscribed()
        with Client(pushd.port) as client:
            client.echo()
            assert admin.publish("updates", "unlocked") == 1
            assert client.read_line() == b"unlocked"
        assert "white rabbit" not in pushd.output


def test_a_full_redis_is_tried_until_there_is_room(start_pushd: Callable[..., Pushd]) -> None:
    with RedisServer("--maxclients", "1") as server:
        with server.client() as only:
            only.ping()
            pushd = start_pushd("--redis", server.url, "--channel", "updates")
            pushd.wait_for("No subscription at .*: ERR max number of clients reached; trying again")
        pushd.wait_subscribed()


def test_a_refused_channel_is_tried_until_it_is_allowed(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    with redis_server.client() as admin:
        admin.execute_command("ACL", "SETUSER", "pusher", "on", ">secret", "+@all", "resetchannels")
        url = redis_server.url.replace("redis://", "redis://pusher:secret@")
        pushd = start_pushd("--redis", url, "--channel", "updates")
        pushd.wait_for("No subscription at .*: NOPERM .*; trying again")
        admin.execute_command("ACL", "SETUSER", "pusher", "allchannels")
        pushd.wait_subscribed()
        with Client(pushd.port) as client:
            client.echo()
            arrives(client, redis_server, b"allowed")
        assert "secret" not in pushd.output


def test_a_unix_socket(start_pushd: Callable[..., Pushd], tmp_path: Path) -> None:
    path = tmp_path / "redis.sock"
    with RedisServer("--unixsocket", str(path)) as server:
        pushd = start_pushd("--redis", f"unix://{path}", "--channel", "updates")
        pushd.wait_subscribed()
        with Client(pushd.port) as client:
            client.echo()
            arrives(client, server, b"local")


class TlsFront:
    """A TLS listener before a real Redis: not every redis-server is built with TLS."""

    def __init__(self, redis_port: int, certificate: Path) -> None:
        self._redis_port = redis_port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=self._listener.accept()[:1], daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with (
            contextlib.suppress(OSError),
            self._context.wrap_socket(plain, server_side=True) as front,
            socket.create_connection(("127.0.0.1", self._redis_port)) as back,
        ):
            back.sendall(front.recv(65536))
            while data := back.recv(65536):
                front.sendall(data)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


@pytest.fixture
def front(redis_server: RedisServer, tmp_path: Path) -> Iterator[TlsFront]:
    front = TlsFront(redis_server.port, write_certificate(tmp_path / "server.pem", "127.0.0.1"))
    yield front
    front.close()


def test_tls_with_an_authority_of_ones_own(
    redis_server: RedisServer, front: TlsFront, tmp_path: Path, start_pushd: Callable[..., Pushd]
) -> None:
    url = f"rediss://127.0.0.1:{front.port}"
    pushd = start_pushd("--redis", url, "--redis-ca", str(tmp_path / "server.pem"), "--channel", "updates")
    pushd.wait_for(f'Subscribed to "updates" at {url}')
    with Client(pushd.port) as client:
        client.echo()
        arrives(client, redis_server, b"secretly")


@pytest.mark.parametrize("trusted", ["the system's authorities", "another authority", "another host"])
def test_tls_is_refused_where_the_certificate_is_not_good(
    redis_server: RedisServer, trusted: str, tmp_path: Path, start_pushd: Callable[..., Pushd]
) -> None:
    host = "127.0.0.2" if trusted == "another host" else "127.0.0.1"
    certificate = write_certificate(tmp_path / "server.pem", host)
    other = write_certificate(tmp_path / "other.pem", host)
    front = TlsFront(redis_server.port, certificate)
    ca = {
        "the system's authorities": (),
        "another authority": ("--redis-ca", str(other)),
        "another host": ("--redis-ca", str(certificate)),
    }[trusted]
    pushd = start_pushd("--redis", f"rediss://127.0.0.1:{front.port}", *ca, "--channel", "updates")
    line = pushd.wait_for("No subscription at rediss://.*: (.*); trying again", count=2)
    assert "verif" in line[1].lower() or "VerificationError" in line[1], line[1]
    assert "Subscribed" not in pushd.output
    assert "Traceback" not in pushd.output
    front.close()
