"""Stand-ins for what a source is connected to: servers in memory that answer what the test says."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectError, ConnectionDone, DNSLookupError
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from pushd.message import Batch, Kind, SourceGap, Topic
from pushd.metrics import Metrics
from pushd.redis_urls import Redis
from pushd.sources.account import Account
from pushd.sources.attempt import Terms
from pushd.sources.buffer_limit import BufferLimit
from pushd.sources.connection import Node
from pushd.sources.outages import Outages
from pushd.sources.probe import Probe
from pushd.sources.redis import RedisSource
from pushd.sources.routes import Route

UPDATES = Topic(b"updates")
NEWS = Topic(b"news.*", Kind.PATTERN)
BINARY = Topic(b"\xff\r\n\xfe")
PROBE = Topic(b"pushd:probe:test")

TIMEOUT = 5.0
PING = 10.0
PROBE_SECONDS = 30.0


class Connection(StringTransport):
    """Our end of a connection, in memory; like real TCP, it is lost in a later turn."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.gone = False
        self.protocol: Any = None

    def abortConnection(self) -> None:
        assert not self.gone, "TLS raises an error then"
        if self.connected:
            self.connected = False
            self._clock.callLater(0, self.lose, ConnectionDone())

    def lose(self, error: BaseException) -> None:
        self.connected = False
        self.gone = True
        self.protocol.connectionLost(Failure(error))

    def asked(self) -> bytes:
        """Return what was sent since the last look."""
        asked: bytes = self.value()
        self.clear()
        return asked

    def answer(self, data: bytes) -> None:
        self.protocol.dataReceived(data)


@implementer(IStreamClientEndpoint)
class Server:
    """A server, as an endpoint to connect to."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.attempts = 0
        self.refuses = False
        self.hangs = False
        self.connections: list[Connection] = []

    def connect(self, protocolFactory: Any) -> "Deferred[Any]":
        self.attempts += 1
        if self.hangs:
            # As HostnameEndpoint fails when it is cancelled while it looks up a name.
            return Deferred(lambda attempt: attempt.errback(DNSLookupError()))
        if self.refuses:
            raise ConnectError(string="refused")
        connection = Connection(self._clock)
        self.connections.append(connection)
        connection.protocol = protocolFactory.buildProtocol(None)
        connection.protocol.makeConnection(connection)
        return succeed(connection.protocol)

    @property
    def connection(self) -> Connection:
        """The newest one."""
        return self.connections[-1]

    def asked(self) -> bytes:
        return self.connection.asked()

    def answer(self, data: bytes) -> None:
        self.connection.answer(data)


class Told:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.gaps: list[tuple[Topic, SourceGap]] = []
        self.said: list[tuple[str, Topic]] = []  # without what is said beside

    def interrupt(self, topic: Topic, gap: SourceGap) -> None:
        self.gaps.append((topic, gap))
        self.said.append(("interrupt", topic))

    def confirmed(self, topic: Topic) -> None:
        self.said.append(("confirmed", topic))

    def lost(self, topic: Topic) -> None:
        self.said.append(("lost", topic))

    def refused(self, topic: Topic, why: str) -> None:
        self.said.append((f"refused: {why}", topic))


_started: list["World"] = []


def stop_all() -> None:
    """Stop all sources that a test has started: one that is garbage while it runs complains."""
    while _started:
        world = _started.pop()
        world.source.stopService()
        world.settle()


class World:
    """A source with its probe, started; it tries again after 1, 2, 3 ... seconds."""

    def __init__(
        self,
        *topics: Topic,
        redis: Redis | None = None,
        deliver: Callable[[Batch], None] | None = None,
        route: Route | None = None,
        probes: bool = False,
        follows: bool = True,
    ) -> None:
        self.clock = Clock()
        self.server = Server(self.clock)
        self.topics = topics or ((UPDATES,) if follows else ())
        self.metrics = Metrics()
        self.batches: list[Batch] = []
        self.told = Told()
        self.gaps = self.told.gaps
        redis = redis or Redis()
        self.route = route or Route(Node(str(redis), self.server))
        probe = Probe(
            PROBE,
            self.route,
            redis,
            clock=self.clock,
            seconds=PROBE_SECONDS,
            first_after=0,
            timeout=TIMEOUT,
            metrics=self.metrics,
        )
        self.outages = Outages(
            self.told,
            clock=self.clock,
            wall=self.clock.seconds,
            metrics=self.metrics,
            debug=False,
        )
        self.account = Account(self.topics, self.outages, self.told, self.clock)
        self.source = RedisSource(
            Terms(
                deliver=deliver or self.batches.append,
                redis=redis,
                route=self.route,
                probe=probe if probes else None,
                account=self.account,
                buffer_limit=BufferLimit(),
                clock=self.clock,
                ping=PING,
                timeout=TIMEOUT,
                retry_delay=lambda failures: failures + 1.0,
            )
        )

    def start(self) -> "World":
        self.source.startService()
        _started.append(self)
        return self

    def answer_info(self, cut_off: int | None = None) -> None:
        """Answer what pushd asks first."""
        assert self.server.asked() == command(b"INFO", b"stats")
        stats = b"" if cut_off is None else b"client_output_buffer_limit_disconnections:%d\r\n" % cut_off
        self.server.answer(bulk(b"# Stats\r\n" + stats))

    def subscribe(self) -> None:
        """Answer all that is asked until it has subscribed."""
        self.answer_info()
        self.confirm()

    def confirm(self, *topics: Topic) -> None:
        self.server.asked()
        for topic in topics or self.topics:
            self.server.answer(confirmed(topic))

    def settle(self) -> None:
        """Let happen what is due now."""
        self.clock.advance(0)
        self.clock.advance(0)


def subscribed(*topics: Topic, **options: Any) -> World:
    world = World(*topics, **options).start()
    world.subscribe()
    return world


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(map(bulk, words))


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(data), data)


def subscribing(topic: Topic) -> bytes:
    words = {Kind.CHANNEL: b"SUBSCRIBE", Kind.PATTERN: b"PSUBSCRIBE", Kind.SHARD: b"SSUBSCRIBE"}
    return command(words[topic.kind], topic.name)


def confirmed(topic: Topic) -> bytes:
    words = {Kind.CHANNEL: b"subscribe", Kind.PATTERN: b"psubscribe", Kind.SHARD: b"ssubscribe"}
    return b"*3\r\n" + bulk(words[topic.kind]) + bulk(topic.name) + b":1\r\n"


def published(payloads: list[bytes], channel: bytes = b"updates", word: bytes = b"message") -> bytes:
    """Return what Redis sends for messages on a channel."""
    return b"".join(command(word, channel, payload) for payload in payloads)
