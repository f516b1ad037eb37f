"""A Redis that answers and is not the right one, that cuts pushd off, or that is none at all."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable

import pytest

from tests.harness import Client, Pushd, RedisServer
from tests.servers import until

MIB = 1024 * 1024


class Listener:
    """Serves each connection on loopback in a thread of its own, until it is closed."""

    def __init__(self, serve: Callable[[socket.socket], None]) -> None:
        self._serve = serve
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}"
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.accepted += 1
                threading.Thread(target=self._guarded, args=(connection,), daemon=True).start()

    def _guarded(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            self._serve(connection)


def join(one: socket.socket, other: socket.socket) -> None:
    """Pass on all that comes from either, until one of them closes."""

    def forward(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=forward, args=(other, one), daemon=True)
    back.start()
    forward(one, other)
    back.join()


def test_an_address_that_has_moved_to_another_redis_is_noticed_by_the_probes(
    redis_server: RedisServer, start_pushd: Callable[..., Pushd]
) -> None:
    # As a floating IP: what is connected stays where it is, what connects comes to the new one.
    target = redis_server.port

    def serve(connection: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", target)) as server:
            join(connection, server)

    with Listener(serve) as floating, RedisServer() as other:
        pushd = start_pushd(
            *("--redis", floating.url, "--channel", "updates"),
            *("--redis-probe", "0.5", "--redis-ping", "0.1", "--redis-timeout", "0.5"),
        )
        pushd.wait_subscribed()
        with Client(pushd.port) as client:
            client.echo()
            redis_server.cli("PUBLISH", "updates", "before")
            assert client.read_line() == b"before"
            target = other.port
            pushd.wait_for("No subscription at .*: 2 probes in a row were published and did not arrive")
            pushd.wait_for("Subscribed to .* again")
            other.cli("PUBLISH", "updates", "after")
            assert client.read_line() == b"after"
        pushd.terminate()
        assert "1 probe;" in pushd.output


def test_being_cut_off_for_the_output_buffer_is_a_gap(start_pushd: Callable[..., Pushd]) -> None:
    with RedisServer("--client-output-buffer-limit", "pubsub 1mb 1mb 0") as server:
        pushd = start_pushd("--redis", server.url, "--channel", "updates")
        pushd.wait_subscribed()
        with Client(pushd.port) as client, server.client() as publisher:
            client.echo()
            pushd.signal(signal.SIGSTOP)
            until(
                lambda: publisher.publish("updates", b"x" * MIB) == 0,
                "Redis cuts off who does not read",
            )
            pushd.signal(signal.SIGCONT)
            line = pushd.wait_for("Subscribed to .* again, after .*")[0]
            counted = "client_output_buffer_limit_disconnections" in publisher.info("stats")
            assert ("output buffers (client-output-buffer-limit pubsub)" in line) is counted
            publisher.publish("updates", "after")
            while client.read_line() != b"after":
                pass


def endless(begin: bytes, rest: bytes) -> Callable[[socket.socket], None]:
    """Return a server that answers INFO with something that does not end."""

    def serve(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(begin)
        while True:
            connection.sendall(rest)

    return serve


def once(answer: bytes) -> Callable[[socket.socket], None]:
    """Return a server that answers INFO with this, and waits for the end."""

    def serve(connection: socket.socket) -> None:
        connection.recv(1024)
        connection.sendall(answer)
        while connection.recv(1024):
            pass

    return serve


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        (endless(b"$1000000000\r\n", b"x" * MIB), "protocol error: a reply of more than 33554432 bytes"),
        (endless(b"*100000000\r\n", b"$2\r\nxy\r\n" * 10_000), "a reply of more than|no answer to INFO"),
        (endless(b"", b"x" * MIB), "protocol error: Protocol error"),
        (endless(b"", b"+OK\r\n" * 10_000), "protocol error: "),
        (endless(b"", b"*1\r\n" * 10_000), "protocol error: "),
        (once(b"HTTP/1.1 400 Bad Request\r\n\r\n"), "protocol error: "),
        (once(b"*4294967295\r\n"), "protocol error: MemoryError"),
        (once(b"$5\r\nshort"), "no answer to INFO within 0.5 s"),
        (once(b""), "no answer to INFO within 0.5 s"),
    ],
)
def test_what_is_no_redis_is_left_and_tried_again(
    serve: Callable[[socket.socket], None], why: str, start_pushd: Callable[..., Pushd]
) -> None:
    with Listener(serve) as hostile:
        pushd = start_pushd("--redis", hostile.url, "--channel", "updates", "--redis-timeout", "0.5")
        before = pushd.resident_bytes()
        with Client(pushd.port) as client:
            pushd.wait_for(f"No subscription at {hostile.url}: .*({why}).*; trying again")
            until(lambda: hostile.accepted >= 3, "pushd tries again")
            client.echo()
            assert pushd.resident_bytes() - before < 400 * MIB
        pushd.terminate()
        assert "Server Shut Down" in pushd.output
        assert "Traceback" not in pushd.output
        assert "Unhandled" not in pushd.output
