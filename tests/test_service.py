"""The service, on the real reactor: put together, used through its ports, and taken apart."""

import time
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure

from pushd.errors import SettingsError
from pushd.message import Topic
from pushd.redis_urls import Embedded, Redis
from pushd.service import PushService
from pushd.settings import Settings
from pushd.tap import Options, makeService

LOOPBACK = ("tcp:0:interface=127.0.0.1",)
TIMEOUT = 20.0


class Client(Protocol):
    """A client that keeps what it receives."""

    def __init__(self) -> None:
        self.received = b""
        self.closed: Deferred[bytes] = Deferred()
        self._waiting: tuple[bytes, Deferred[None]] | None = None

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self._waiting and self.received.endswith(self._waiting[0]):
            waiting, self._waiting = self._waiting, None
            waiting[1].callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.closed.callback(self.received)

    async def ask(self, data: bytes, answer: bytes, reactor: Any) -> None:
        """Send something, and return once what was received ends with an answer."""
        answered: Deferred[None] = Deferred()
        self._waiting = (answer, answered)
        assert self.transport is not None
        self.transport.write(data)
        await answered.addTimeout(TIMEOUT, reactor)


def port_of(logged: list[str], what: str) -> int:
    (line,) = [line for line in logged if line.startswith(what)]
    return int(line.rsplit(":", 1)[1])


async def connect(reactor: Any, port: int) -> Client:
    endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", port)
    client: Client = await connectProtocol(endpoint, Client()).addTimeout(TIMEOUT, reactor)
    return client


async def publish_8_mb(reactor: Any, logged: list[str]) -> Client:
    """Publish more than the kernel buffers for a client, and return who published it."""
    publisher = await connect(reactor, port_of(logged, "Embedded broker on 127.0.0.1:"))
    command = b"*3\r\n$7\r\nPUBLISH\r\n$7\r\nupdates\r\n$8000000\r\n%s\r\n" % (b"x" * 8_000_000)
    await publisher.ask(command, b":1\r\n", reactor)
    return publisher


@pytest_twisted.ensureDeferred
async def test_a_message_goes_from_the_broker_to_every_client(reactor: Any, logged: list[str]) -> None:
    service = PushService(
        Settings(endpoints=LOOPBACK, topics=(Topic(b"updates"),), source=Embedded(0), debug=True), reactor
    )
    service.listen()
    service.startService()
    clients = [await connect(reactor, port_of(logged, "Listening on 127.0.0.1:")) for _ in range(3)]
    for client in clients:
        await client.ask(b"hello\r\n", b"hello\r\n", reactor)
    publisher = await connect(reactor, port_of(logged, "Embedded broker on 127.0.0.1:"))
    await publisher.ask(b'PUBLISH updates "white rabbit"\r\n', b":1\r\n", reactor)
    assert "Message on \"updates\": b'white rabbit'" in logged
    # Stopping flushes: the clients get the message, which is still on its way, before they are closed.
    await service.stopService().addTimeout(TIMEOUT, reactor)
    for client in clients:
        received = await client.closed.addTimeout(TIMEOUT, reactor)
        assert received == b"hello\r\nwhite rabbit\r\n"
    await publisher.closed.addTimeout(TIMEOUT, reactor)
    assert logged[-1] == (
        "Stopped, and left the embedded broker: 3 clients served, 0 refused,"
        " 0 cut off with something left to send; 1 messages, 0 missed"
    )


@pytest_twisted.ensureDeferred
async def test_a_client_that_does_not_read_is_cut_off_when_the_time_is_over(
    reactor: Any, logged: list[str]
) -> None:
    service = PushService(
        Settings(endpoints=LOOPBACK, topics=(Topic(b"updates"),), source=Embedded(0), drain=0.1), reactor
    )
    service.listen()
    service.startService()
    client = await connect(reactor, port_of(logged, "Listening on 127.0.0.1:"))
    await client.ask(b"hello\r\n", b"hello\r\n", reactor)
    client.transport.pauseProducing()  # type: ignore[union-attr]
    publisher = await publish_8_mb(reactor, logged)
    await service.stopService().addTimeout(TIMEOUT, reactor)
    assert "1 clients served, 0 refused, 1 cut off with something left to send" in logged[-1]
    client.transport.abortConnection()  # type: ignore[union-attr]
    await client.closed.addTimeout(TIMEOUT, reactor)
    await publisher.closed.addTimeout(TIMEOUT, reactor)


@pytest_twisted.ensureDeferred
async def test_in_a_hurry_it_waits_for_nobody(reactor: Any, logged: list[str]) -> None:
    service = PushService(
        Settings(endpoints=LOOPBACK, topics=(Topic(b"updates"),), source=Embedded(0), drain=1000.0), reactor
    )
    service.listen()
    service.startService()
    client = await connect(reactor, port_of(logged, "Listening on 127.0.0.1:"))
    client.transport.pauseProducing()  # type: ignore[union-attr]
    client.transport.write(b"x" * 1000 + b"\r\n")  # type: ignore[union-attr]
    publisher = await publish_8_mb(reactor, logged)
    stopped = service.stopService()
    service.hurry()
    await stopped.addTimeout(TIMEOUT, reactor)
    assert "1 cut off with something left to send" in logged[-1]
    client.transport.abortConnection()  # type: ignore[union-attr]
    await client.closed.addTimeout(TIMEOUT, reactor)
    await publisher.closed.addTimeout(TIMEOUT, reactor)


@pytest_twisted.ensureDeferred
async def test_it_leaves_a_redis_that_it_never_reached(reactor: Any, logged: list[str]) -> None:
    service = PushService(
        Settings(endpoints=LOOPBACK, topics=(Topic(b"updates"),), source=Redis(path="/nowhere")), reactor
    )
    service.listen()
    service.startService()
    await service.stopService().addTimeout(TIMEOUT, reactor)
    assert "Stopped, and left unix:///nowhere: 0 clients served" in logged[-1]


@pytest_twisted.ensureDeferred
async def test_without_topics_it_asks_nothing_of_redis(reactor: Any, logged: list[str]) -> None:
    service = PushService(Settings(endpoints=LOOPBACK), reactor)
    assert list(service) == []
    service.listen()
    service.startService()
    assert "No channel and no pattern: clients get nothing but the echo of what they type" in logged
    await service.stopService().addTimeout(TIMEOUT, reactor)


@pytest.mark.parametrize(
    ("settings", "option"),
    [
        (Settings(max_clients=10**8), "--max-clients"),
        (Settings(endpoints=("nonsense:1",)), "--port"),
        (Settings(topics=(Topic(b"updates"),), source=Redis(tls=True, ca=b"")), "--redis-ca"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: Settings, option: str, reactor: Any) -> None:
    with pytest.raises(SettingsError, match=rf"{option}: .*; allowed: "):
        PushService(settings, reactor)


@pytest_twisted.ensureDeferred
async def test_ports_that_are_taken_are_refused(reactor: Any) -> None:
    taken = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
    port = taken.getHost().port
    for settings in (
        Settings(endpoints=(f"tcp:{port}:interface=127.0.0.1",)),
        Settings(endpoints=LOOPBACK, source=Embedded(port)),
    ):
        with pytest.raises(SettingsError, match=rf"Couldn't listen on 127.0.0.1:{port}: .*; allowed: "):
            PushService(settings, reactor).listen()
    await taken.stopListening()


@pytest_twisted.ensureDeferred
async def test_the_plugin_makes_a_service_with_open_ports(
    reactor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactor, "seconds", reactor.seconds)  # to be restored
    options = Options()
    options.parseOptions(["--port", LOOPBACK[0], "--redis", "embedded:0", "--channel", "updates"])
    service = makeService(options)
    assert {reader.getHost().host for reader in reactor.getReaders() if hasattr(reader, "getHost")} == {
        "127.0.0.1"
    }
    # A clock that is set back stops nothing.
    assert reactor.seconds is time.monotonic
    service.startService()
    await service.stopService().addTimeout(TIMEOUT, reactor)


@pytest_twisted.ensureDeferred
async def test_the_plugin_ends_with_a_line_where_it_cannot_open_them(
    reactor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reactor, "seconds", reactor.seconds)
    taken = reactor.listenTCP(0, Factory(), interface="127.0.0.1")
    options = Options()
    options.parseOptions(["--port", f"tcp:{taken.getHost().port}:interface=127.0.0.1"])
    with pytest.raises(SystemExit, match="pushd: --port: Couldn't listen on"):
        makeService(options)
    await taken.stopListening()
