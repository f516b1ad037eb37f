"""Real clients of Redis at the embedded broker, and a real redis-server to compare it with."""

import contextlib
import os
import pty
import re
import select
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest
import pytest_twisted
import redis
import txredisapi
from redis.backoff import NoBackoff
from redis.retry import Retry
from twisted.internet.defer import DeferredQueue, ensureDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint
from twisted.internet.threads import deferToThread

from pushd.message import Batch, Kind, Topic
from pushd.sources.embedded import MAX_UNREAD, BrokerFactory
from pushd.sources.resp import array, bulk
from tests.harness import TIMEOUT, Client, Process, RedisServer, redis_program
from tests.upstream import Told

if TYPE_CHECKING:
    from twisted.internet.base import ReactorBase
    from twisted.internet.tcp import Port

T = TypeVar("T")

UPDATES = Topic(b"updates")
NEWS = Topic(b"news.*", Kind.PATTERN)
RABBIT = b"follow the white rabbit"


class Broker:
    """A broker on a port of its own, whose deliveries are kept."""

    def __init__(self, reactor: "ReactorBase", *topics: Topic, password: bytes | None = None) -> None:
        self.batches: list[Batch] = []
        self._reactor = reactor
        self._factory = BrokerFactory(
            topics, self.batches.append, Told(), clock=cast("Any", reactor), wall=time.time, password=password
        )
        listen = cast("Callable[..., Port]", reactor.listenTCP)  # type: ignore[attr-defined]
        self._listening = listen(0, self._factory, interface="127.0.0.1")
        self.port: int = self._listening.getHost().port

    async def stop(self) -> None:
        await self._listening.stopListening()

    async def meets(self, client: Callable[[], T]) -> T:
        """Run a blocking client on a thread, while the broker serves it here."""
        return await deferToThread(client).addTimeout(2 * TIMEOUT, cast("Any", self._reactor))

    def payloads(self, topic: Topic) -> list[bytes]:
        return [payload for batch in self.batches if batch.topic == topic for payload in batch.payloads]


@pytest_twisted.async_yield_fixture
async def broker(reactor: "ReactorBase") -> AsyncIterator[Broker]:
    broker = Broker(reactor, UPDATES, NEWS)
    yield broker
    await broker.stop()


def run(program: str, port: int, *words: str) -> str:
    """Run a client program to its end and return what it printed."""
    command = [redis_program(program), "-h", "127.0.0.1", "-p", str(port), *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=TIMEOUT)
    return done.stdout


class TestRedisCli:
    @pytest.mark.parametrize("options", [(), ("-2",), ("-3",)])
    @pytest_twisted.ensureDeferred
    async def test_publish(self, options: tuple[str, ...], broker: Broker) -> None:
        words = (*options, "PUBLISH", "updates", RABBIT.decode())
        assert await broker.meets(lambda: run("redis-cli", broker.port, *words)) == "1\n"
        assert broker.batches == [Batch(UPDATES, [RABBIT])]

    @pytest.mark.parametrize("option", ["-2", "-3"])
    @pytest_twisted.ensureDeferred
    async def test_subscribe(self, option: str, broker: Broker) -> None:
        def client() -> None:
            command = [redis_program("redis-cli"), "-p", str(broker.port), option, "PSUBSCRIBE", "new*"]
            with Process(command) as subscriber:
                subscriber.wait_for("^psubscribe$")
                assert run("redis-cli", broker.port, "PUBLISH", "news.tech", "hello") == "2\n"
                subscriber.wait_for("^hello$")
                assert subscriber.output.split("\n")[-4:] == ["pmessage", "new*", "news.tech", "hello"]

        await broker.meets(client)

    @pytest.mark.parametrize("option", ["-2", "-3"])
    @pytest_twisted.ensureDeferred
    async def test_interactive(self, option: str, broker: Broker, tmp_path: Path) -> None:
        def client() -> None:
            with Terminal(
                [redis_program("redis-cli"), "-p", str(broker.port), option], home=tmp_path
            ) as terminal:
                prompt = rf"127\.0\.0\.1:{broker.port}> "
                terminal.wait_for(prompt)
                terminal.type('PUBLISH updates "follow the white rabbit"')
                terminal.wait_for(r"\(integer\) 1\r?\n")
                terminal.type("FOO bar")
                terminal.wait_for(r"\(error\) ERR unknown command 'FOO', with args beginning with: 'bar'")
                terminal.type("INFO")
                terminal.wait_for("pushd_version:")
                terminal.type("SUBSCRIBE other")
                terminal.wait_for(r'1\) "subscribe"\r?\n2\) "other"\r?\n3\) \(integer\) 1')
                assert run("redis-cli", broker.port, "PUBLISH", "other", "hello") == "1\n"
                terminal.wait_for(r'1\) "message"\r?\n2\) "other"\r?\n3\) "hello"')

        await broker.meets(client)
        assert broker.payloads(UPDATES) == [RABBIT]

    @pytest_twisted.ensureDeferred
    async def test_password(self, reactor: "ReactorBase") -> None:
        broker = Broker(reactor, UPDATES, password=b"secret")
        publish = ("PUBLISH", "updates", "x")
        try:
            for options in (
                ("-a", "secret"),
                ("-3", "-a", "secret"),
                ("--user", "default", "--pass", "secret"),
            ):
                words = ("--no-auth-warning", *options, *publish)
                assert await broker.meets(partial(run, "redis-cli", broker.port, *words)) == "1\n"
            refused = await broker.meets(lambda: run("redis-cli", broker.port, *publish))
            assert refused.strip() == "NOAUTH Authentication required."
        finally:
            await broker.stop()
        assert broker.payloads(UPDATES) == [b"x"] * 3


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, command: list[str], *, home: Path) -> None:
        self._ours, theirs = pty.openpty()
        environment = os.environ | {"HOME": str(home), "TERM": "dumb", "REDISCLI_HISTFILE": os.devnull}
        self._child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        os.close(theirs)
        self._screen = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_error: object) -> None:
        self._child.kill()
        self._child.wait(TIMEOUT)
        os.close(self._ours)

    def type(self, line: str) -> None:
        os.write(self._ours, line.encode() + b"\r")

    def wait_for(self, pattern: str) -> None:
        """Return once this is on the screen, behind what was waited for before."""
        deadline = time.monotonic() + TIMEOUT
        while not (found := re.search(pattern, self._screen)):
            ready, _, _ = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} not in {self._screen!r}"
            self._screen += os.read(self._ours, 65536).decode(errors="backslashreplace")
        self._screen = self._screen[found.end() :]


@pytest.mark.parametrize("protocol", [2, 3])
class TestRedisPy:
    @pytest_twisted.ensureDeferred
    async def test_publish(self, protocol: int, broker: Broker) -> None:
        payloads = [b"", b"\r\n", b"\xff\xfe", b"007", b"x" * 2**20]

        def client() -> None:
            with redis.Redis(port=broker.port, protocol=protocol, client_name="test", db=1) as server:
                assert server.ping()
                assert server.echo("x") == b"x"
                assert [server.publish("updates", payload) for payload in payloads] == [1] * len(payloads)
                assert "pushd_version" in server.info()
                with pytest.raises(redis.ResponseError, match="unknown command 'GET'"):
                    server.get("x")

        await broker.meets(client)
        assert broker.batches == [Batch(UPDATES, [payload]) for payload in payloads]

    @pytest_twisted.ensureDeferred
    async def test_pipeline(self, protocol: int, broker: Broker) -> None:
        payloads = [b"%d" % number for number in range(10_000)]

        def client() -> None:
            with redis.Redis(port=broker.port, protocol=protocol) as server:
                pipeline = server.pipeline(transaction=False)
                for payload in payloads:
                    pipeline.publish("news.tech", payload)
                assert pipeline.execute() == [1] * len(payloads)

        await broker.meets(client)
        assert broker.payloads(NEWS) == payloads
        assert len(broker.batches) < len(payloads) / 100

    @pytest_twisted.ensureDeferred
    async def test_pubsub(self, protocol: int, broker: Broker) -> None:
        def client() -> None:
            with redis.Redis(port=broker.port, protocol=protocol) as server, server.pubsub() as pubsub:
                pubsub.subscribe("updates")
                pubsub.psubscribe("up*")
                heard = [pubsub.get_message(timeout=TIMEOUT) for _ in range(2)]
                assert [(each["type"], each["data"]) for each in heard] == [
                    ("subscribe", 1),
                    ("psubscribe", 2),
                ]
                assert server.publish("updates", b"\xff") == 3
                heard = [pubsub.get_message(timeout=TIMEOUT) for _ in range(2)]
                assert [(each["type"], each["channel"], each["data"]) for each in heard] == [
                    ("message", b"updates", b"\xff"),
                    ("pmessage", b"updates", b"\xff"),
                ]
                pubsub.ping()
                assert pubsub.get_message(timeout=TIMEOUT)["type"] == "pong"
                pubsub.unsubscribe()
                pubsub.punsubscribe()
                heard = [pubsub.get_message(timeout=TIMEOUT) for _ in range(2)]
                assert [each["type"] for each in heard] == ["unsubscribe", "punsubscribe"]
                assert server.publish("updates", b"") == 1

        await broker.meets(client)

    @pytest_twisted.ensureDeferred
    async def test_password(self, protocol: int, reactor: "ReactorBase") -> None:
        broker = Broker(reactor, UPDATES, password=b"secret")

        def client() -> None:
            with redis.Redis(port=broker.port, protocol=protocol, password="secret") as server:
                assert server.publish("updates", "x") == 1
            server = redis.Redis(
                port=broker.port, protocol=protocol, password="wrong", retry=Retry(NoBackoff(), 0)
            )
            with server, pytest.raises(redis.AuthenticationError):
                server.ping()

        try:
            await broker.meets(client)
        finally:
            await broker.stop()


class Listener(txredisapi.SubscriberProtocol):  # type: ignore[misc]
    """Hands on what it hears."""

    def messageReceived(self, pattern: bytes | None, channel: bytes, message: bytes) -> None:
        self.factory.heard.put((pattern, channel, message))


@pytest_twisted.ensureDeferred
async def test_txredisapi(broker: Broker, reactor: "ReactorBase") -> None:
    factory = txredisapi.RedisFactory(None, None, 1, charset=None, convertNumbers=False)
    factory.protocol = Listener
    factory.heard = DeferredQueue()
    connected = factory.deferred

    async def client() -> None:
        factory.startConnecting(TCP4ClientEndpoint(reactor, "127.0.0.1", broker.port))
        subscriber = await connected
        await subscriber.subscribe([b"updates"])
        await subscriber.psubscribe([b"new*"])
        publisher = await txredisapi.Connection(port=broker.port, reconnect=False, charset=None)
        assert await publisher.publish("updates", b"\xff") == 2
        assert await publisher.publish("news.tech", b"007") == 2
        assert await publisher.ping() == b"PONG"
        await publisher.disconnect()
        assert await factory.heard.get() == (None, b"updates", b"\xff")
        assert await factory.heard.get() == (b"new*", b"news.tech", b"007")

    try:
        await ensureDeferred(client()).addTimeout(TIMEOUT, cast("Any", reactor))
    finally:
        await factory.disconnect()
    assert broker.batches == [Batch(UPDATES, [b"\xff"]), Batch(NEWS, [b"007"], [b"news.tech"])]


@pytest.mark.parametrize("words", [("PUBLISH", "updates", "hello"), ("-t", "ping")])
@pytest_twisted.ensureDeferred
async def test_redis_benchmark(words: tuple[str, ...], broker: Broker) -> None:
    options = ("-n", "10000", "-P", "16", "-q", *words)
    printed = await broker.meets(lambda: run("redis-benchmark", broker.port, *options))
    assert "requests per second" in printed
    assert broker.payloads(UPDATES) == [b"hello"] * (10_000 if "PUBLISH" in words else 0)


LINES = rb"""
PING
ping 'a b'
PING a b
ECHO "\x00\xff\n\q\\"
ECHO 'it\'s'
ECHO a"b c"

SELECT 1
SELECT 16
SELECT -1
SELECT x
CLIENT
CLIENT FOO
client id x
CLIENT SETNAME x
FOO
foo bar 'b z'
"F\nO" "\r\n"
''
PUBLISH
PUBLISH a b c
FOO aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb cc
AUTH x
AUTH default x
AUTH a b
HELLO 1
HELLO x
HELLO 2 FOO
HELLO 2 AUTH default
HELLO 2 SETNAME
HELLO 2 AUTH a b
UNSUBSCRIBE
PUNSUBSCRIBE x
SUBSCRIBE
SUBSCRIBE a b a
PSUBSCRIBE *
PING
PING x
PUBLISH a x
ECHO x
UNSUBSCRIBE b c
UNSUBSCRIBE
UNSUBSCRIBE
PUNSUBSCRIBE
RESET
PUBLISH a x
$5
+PING
*0
*-1
QUIT"""  # noqa: E501
FAULTS = (
    b"PING 'x",
    b'PING "x"y',
    b"*x",
    b"*10000000000",
    b"*1\r\n:5",
    b"*1\r\n*1",
    b"*1\r\n$-1",
    b"*1\r\n$x",
)


@pytest_twisted.ensureDeferred
async def test_answers_as_redis_does(broker: Broker, redis_server: RedisServer) -> None:
    """To the byte; other versions have other words."""
    if "redis_version:7.0." not in run("redis-cli", redis_server.port, "INFO", "server"):
        pytest.skip("no Redis 7.0")

    def answers(port: int) -> list[bytes]:
        found = []
        for stream in (LINES.replace(b"\n", b"\r\n"), *FAULTS):
            with Client(port) as client:
                client.send(stream + b"\r\n")
                found.append(client.read_to_end())
        return found

    ours, real = await broker.meets(lambda: (answers(broker.port), answers(redis_server.port)))
    assert ours[0].split(b"\r\n") == real[0].split(b"\r\n")
    assert ours == real


PATTERNS = rb"""
* ** ? a a* *a a*b *a*b* a?b [ab] [^ab] [a-c] [c-a] [] [^] []a] [ [^ [a [^a [a- [a-] [a-]] [a-c [\]] [\^] [^\]] [\a-c]
[a-\]b [a\ [\ \* \a \ a\ \\ ] - ^ [*] [?] a[b]*c *[b] *\ a** *? ?*
"""  # noqa: E501
CHANNELS = rb"a b c d ab aab abab abc axb ] [ - ^ \ * ? \* \\ \b a\ ]] a]"
BINARY = (b"", b"\x00", b"\x90", b"\xff", b"\r\n", b"[\xff-\x80]")


@pytest_twisted.ensureDeferred
async def test_patterns_match_as_in_redis(broker: Broker, redis_server: RedisServer) -> None:
    def matched(port: int) -> set[tuple[bytes, bytes]]:
        found: set[tuple[bytes, bytes]] = set()
        with redis.Redis(port=port) as server, server.pubsub() as pubsub:
            for pattern in (*PATTERNS.split(), *BINARY):
                pubsub.psubscribe(pattern)
                assert pubsub.get_message(timeout=TIMEOUT)["type"] == "psubscribe"
                for channel in (*CHANNELS.split(), *BINARY):
                    if server.publish(channel, "x"):
                        found.add((pattern, channel))
                pubsub.punsubscribe()
                while pubsub.get_message(timeout=TIMEOUT)["type"] != "punsubscribe":
                    pass
        return found

    ours, real = await broker.meets(lambda: (matched(broker.port), matched(redis_server.port)))
    assert ours == real


class TestMisbehaving:
    @pytest_twisted.ensureDeferred
    async def test_a_subscriber_that_never_reads(self, broker: Broker) -> None:
        def client() -> bytes:
            with Client(broker.port, receive_buffer=65536) as subscriber:
                subscriber.send(b"SUBSCRIBE updates\r\n")
                while subscriber.read_line() != b":1":
                    pass
                with redis.Redis(port=broker.port) as server:
                    counts = [server.publish("updates", b"x" * 2**20) for _ in range(64)]
                assert (counts[0], counts[-1]) == (2, 1)
                received = b""
                with contextlib.suppress(ConnectionResetError):
                    received = subscriber.read_to_end()
                return received

        assert len(await broker.meets(client)) < 64 * 2**20 - MAX_UNREAD
        assert len(broker.payloads(UPDATES)) == 64

    @pytest_twisted.ensureDeferred
    async def test_a_client_that_sends_and_never_reads(self, broker: Broker) -> None:
        """It is read no further, until it reads; then nothing is missing."""
        request = array([bulk(b"ECHO"), bulk(b"x" * 65536)])
        answer = bulk(b"x" * 65536)

        def client() -> None:
            with socket.create_connection(("127.0.0.1", broker.port), TIMEOUT) as link:
                link.setblocking(False)
                sent = received = 0
                while select.select([], [link], [], 0.5)[1]:
                    sent += link.send(request[sent % len(request) :])
                    assert sent < 64 * 2**20
                link.settimeout(TIMEOUT)
                whole = sent // len(request)
                while received < whole * len(answer):
                    received += len(link.recv(65536))
                assert received == whole * len(answer)

        await broker.meets(client)

    @pytest_twisted.ensureDeferred
    async def test_a_client_that_is_cut_off(self, broker: Broker) -> None:
        """What came of a request that has no end is forgotten."""

        def client() -> None:
            for stream in (b"*3\r\n$7\r\nPUBLISH\r\n$7\r\nupdates\r\n$100\r\nx", b"PUBLISH updates x", b"*1"):
                with Client(broker.port) as cut_off:
                    cut_off.send(b"PING\r\n" + stream)
                    assert cut_off.read_line() == b"+PONG"
            assert run("redis-cli", broker.port, "PUBLISH", "updates", "y") == "1\n"

        await broker.meets(client)
        assert broker.payloads(UPDATES) == [b"y"]
