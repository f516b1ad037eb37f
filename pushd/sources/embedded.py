"""The embedded broker: as much of a Redis server as Pub/Sub needs, inside this process.

It is for development, demonstration and tests: real clients of Redis publish to it and subscribe to it.
"""

from collections.abc import Callable, Iterable
from itertools import count

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from pushd.message import Batch, Topic
from pushd.sources.broker import Broker
from pushd.sources.commands import Session
from pushd.sources.outages import Listener, gap_until_now
from pushd.sources.resp import ProtocolError, RequestParser, error

MAX_UNREAD = 8 * 1024 * 1024
"""Bytes that wait until one client reads, beside its transport's: more disconnects it, as Redis does."""

_CHUNK = 128 * 1024
"""More than Twisted's transports buffer before they ask their producer to pause."""


class _Transport(ITCPTransport, IConsumer, IPushProducer):
    """A connection whose reading can be paused, and which asks for its writing to be."""


@implementer(IPushProducer, IHalfCloseableProtocol)
class BrokerProtocol(Protocol):
    """The broker's end of one connection.

    While the client does not read what it was sent, what it sends is not read either.
    """

    _log = Logger()
    transport: _Transport

    def __init__(self, factory: "BrokerFactory", broker: Broker, identity: int) -> None:
        self.factory = factory
        self._broker = broker
        self._session = Session(broker, self._send, identity)
        self._parser = RequestParser()
        self._is_closed = False
        self._is_paused = False
        self._unread = bytearray()

    def connectionMade(self) -> None:
        """Get ready for the client."""
        self.factory.connections.add(self)
        if ITCPTransport.providedBy(self.transport):
            # A message must not wait until the one before it is acknowledged.
            self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Do all that a read brought, then deliver what it published."""
        try:
            for words in self._parser.feed(data):
                self._session.execute(words)
                if self._session.has_quit or self._is_closed:
                    self.close()
                    break
        except ProtocolError as fault:
            self._send(error(b"ERR Protocol error: %b" % str(fault).encode("latin-1")))
            self.close()
        self._broker.flush()

    def readConnectionLost(self) -> None:
        """Close when the client will send no more and has been answered."""
        self.close()

    def writeConnectionLost(self) -> None:
        """Do nothing: only the broker itself could close its sending side, and it does not."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002
        """Forget the client."""
        self._leave()

    def close(self) -> None:
        """Close once the client was sent all that waits for it."""
        if not self._is_closed:
            self._leave()
            # A transport does not close before its producer has gone.
            self.transport.unregisterProducer()
            self.transport.write(bytes(self._unread))
            self.transport.loseConnection()

    def pauseProducing(self) -> None:
        """Keep back what the client is sent, and what it sends."""
        self._is_paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Send on; the client has read all that the transport had."""
        self._is_paused = False
        while self._unread and not self._is_paused:
            chunk = bytes(self._unread[:_CHUNK])
            del self._unread[:_CHUNK]
            self.transport.write(chunk)
        if not self._is_paused:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Nothing to do: connectionLost follows."""

    def _send(self, data: bytes) -> None:
        if self._is_closed:
            return
        if not self._is_paused:
            self.transport.write(data)
            return
        self._unread += data
        if len(self._unread) > MAX_UNREAD:
            self._log.warn(
                "Disconnected {peer} from the embedded broker: {unread} bytes unread",
                peer=self.transport.getPeer(),
                unread=len(self._unread),
            )
            self._leave()
            self.transport.abortConnection()

    def _leave(self) -> None:
        self._is_closed = True
        self._session.end()
        self.factory.connections.discard(self)


class BrokerFactory(Factory):
    """Makes the broker's end of each connection; as a source it is never down.

    `deliver` gets what was published to topics that are followed, `topics` from the start: one batch for each
    topic and each read from a client, before that client sees an answer. A PUBLISH is answered with its
    number of receivers, of which each topic here that its channel matches is one. Closing the port closes its
    connections.
    """

    noisy = False
    down_since: float | None = None

    def __init__(
        self,
        topics: Iterable[Topic],
        deliver: Callable[[Batch], None],
        listener: Listener,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        password: bytes | None = None,
    ) -> None:
        self.connections: set[BrokerProtocol] = set()
        self._broker = Broker(deliver, password)
        self._listener = listener
        self._clock = clock
        self._wall = wall
        self._identities = count(1)
        for topic in dict.fromkeys(topics):
            self.follow(topic)

    def follow(self, topic: Topic, since: float | None = None) -> None:
        """Begin to follow a channel or pattern that is not followed; what was published since is missing."""
        self._broker.follow(topic)
        if since is not None:
            self._listener.interrupt(topic, gap_until_now(since, self._clock, self._wall))
        self._listener.confirmed(topic)

    def leave(self, topic: Topic) -> float:
        """End to follow a topic; return the time of the clock up to which nothing is missing: now."""
        self._broker.leave(topic)
        return self._clock.seconds()

    def publish(self, channel: bytes, payload: bytes) -> Deferred[int]:
        """Publish as a client of the broker would; return how many receivers there were."""
        receivers = self._broker.publish(channel, payload)
        self._broker.flush()
        return succeed(receivers)

    def buildProtocol(self, addr: IAddress | None) -> BrokerProtocol:  # noqa: ARG002
        """Return the protocol of a new connection."""
        return BrokerProtocol(self, self._broker, next(self._identities))

    def stopFactory(self) -> None:
        """Close all connections."""
        for connection in tuple(self.connections):
            connection.close()
