"""The line protocol: lines come back as they were typed, and published messages arrive between them."""

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IReactorTime,
    ITCPTransport,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.logger import Logger
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from pushd.encoders import Lines
from pushd.hub import Hub
from pushd.message import Topic
from pushd.metrics import Metrics
from pushd.outlet import Outlet, Transport
from pushd.settings import SlowPolicy

READ_BYTES = 2 * 1024
"""Taken from one client at a time, so that even one that floods empty lines takes only 2 ms of a turn."""

CLOSE_SECONDS = 30.0
"""How long a client that is being closed may take to read the rest."""

REFUSAL_SECONDS = 2.0
"""How long a connection may take to be turned away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What every client of the line protocol gets, and may do. Sizes are in bytes, times in seconds."""

    topics: tuple[Topic, ...]
    slow: SlowPolicy
    replay: int  # messages of each topic's log
    max_line: int  # without its terminator
    max_clients: int
    max_clients_per_ip: int | None
    idle_timeout: float | None  # since the client last sent something


@implementer(IHalfCloseableProtocol)
class LineProtocol(LineReceiver, TimeoutMixin):
    """One client: echoes each line with CR LF, and is sent each message of its topics as one line.

    A line ends in CR LF or LF; its bytes are arbitrary. A client that closes its sending side gets the echoes
    of what it sent before the connection is closed.
    """

    delimiter = b"\n"
    factory: "LineFactory"
    transport: ITCPTransport
    outlet: Outlet

    def __init__(self, address: IAddress | None) -> None:
        self.host: str | None = getattr(address, "host", None)
        self._echoes: list[bytes] = []

    def connectionMade(self) -> None:
        """Take the client in, and subscribe it to everything."""
        terms = self.factory.terms
        self.MAX_LENGTH = terms.max_line + len(b"\r")
        if isinstance(self.transport, FileDescriptor):
            self.transport.bufferSize = READ_BYTES
        peer = show_address(self.transport.getPeer())
        self.outlet = Outlet(cast("Transport", self.transport), self, self.factory.hub, peer)
        self.factory.joined(self)
        self.setTimeout(terms.idle_timeout)
        hub = self.factory.hub
        for topic in terms.topics:
            self.outlet.subscriptions.append(
                hub.subscribe(topic, self.outlet, Lines, terms.slow, hub.feed(topic).log.back(terms.replay))
            )

    def dataReceived(self, data: bytes) -> None:
        """Echo all lines that one read brought, in order, with one write."""
        if self.outlet.closing:
            return
        self.resetTimeout()
        super().dataReceived(data)
        self._echo()

    def lineReceived(self, line: bytes) -> None:
        """Take in one line; a CR before the LF belongs to its terminator."""
        line = line.removesuffix(b"\r")
        if len(line) > self.factory.terms.max_line:
            self.lineLengthExceeded(line)
        else:
            self._echoes.append(line)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002 - LineReceiver's signature
        """Say that the line is too long, and close: what follows might be its tail."""
        self.clearLineBuffer()
        self._echoes.append(b"ERR line too long")
        self._echo()
        self.close()

    def _echo(self) -> None:
        if self._echoes:
            self.outlet.reply(b"\r\n".join([*self._echoes, b""]))
            self._echoes.clear()

    def readConnectionLost(self) -> None:
        """Close when the client will send no more and has been answered."""
        self.close()

    def writeConnectionLost(self) -> None:
        """Do nothing: only pushd itself could close its sending side, and it does not."""

    def close(self) -> None:
        """Close the connection when the rest has been sent; cut it off when that takes too long."""
        if not self.outlet.closing:
            self.setTimeout(CLOSE_SECONDS)
            self.outlet.close()

    def timeoutConnection(self) -> None:
        """Close an idle client, or cut off one that takes too long to read the rest."""
        if self.outlet.closing:
            self.outlet.abort()
        else:
            self.close()

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """Let TimeoutMixin use the factory's clock."""
        return self.factory.clock.callLater(period, func)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - Twisted's signature
        """Forget the client."""
        self.setTimeout(None)
        self.outlet.lost()
        self.factory.left(self)


class Refusal(Protocol, TimeoutMixin):
    """A connection that is turned away with one line, which TLS can only say after its handshake."""

    transport: ITCPTransport

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock

    def connectionMade(self) -> None:
        """Say why, and close."""
        self.setTimeout(REFUSAL_SECONDS)
        self.transport.write(b"ERR too many clients\r\n")
        self.transport.loseConnection()

    def callLater(self, period: float, func: Callable[[], None]) -> IDelayedCall:
        """Let TimeoutMixin use this clock."""
        return self._clock.callLater(period, func)

    def timeoutConnection(self) -> None:
        """Close, said or not."""
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - Twisted's signature
        """Forget the connection."""
        self.setTimeout(None)


class LineFactory(Factory):
    """Holds the set of connected clients of the line protocol, and turns away what is above the limits."""

    noisy = False
    _log = Logger()

    def __init__(self, terms: Terms, hub: Hub, clock: IReactorTime, metrics: Metrics) -> None:
        self.terms = terms
        self.hub = hub
        self.clock = clock
        self.clients: set[LineProtocol] = set()
        self._metrics = metrics
        self._hosts: Counter[str] = Counter()

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Take in one client, or refuse it."""
        client = LineProtocol(addr)
        client.factory = self
        return client if self._has_room(client.host) else self._refuse()

    def _has_room(self, host: str | None) -> bool:
        if len(self.clients) >= self.terms.max_clients:
            return False
        limit = self.terms.max_clients_per_ip
        return limit is None or host is None or self._hosts[host] < limit

    def _refuse(self) -> Refusal:
        self._metrics.refused += 1
        return Refusal(self.clock)

    def joined(self, client: LineProtocol) -> None:
        """Count a client in."""
        self._metrics.clients += 1
        self.clients.add(client)
        if client.host is not None:
            self._hosts[client.host] += 1

    def left(self, client: LineProtocol) -> None:
        """Count a client out, and say what it missed: in this protocol it cannot be told."""
        self.clients.discard(client)
        if client.host is not None:
            self._hosts[client.host] -= 1
            if not self._hosts[client.host]:
                del self._hosts[client.host]
        subscriptions = client.outlet.subscriptions
        missed = sum(subscription.missed for subscription in subscriptions)
        gaps = sum(subscription.source_gaps for subscription in subscriptions)
        if missed or gaps:
            self._log.info(
                "{peer} left; it missed {missed} messages, and what was published in {gaps} source gaps",
                peer=client.outlet.peer,
                missed=missed,
                gaps=gaps,
            )


def show_address(address: IAddress) -> str:
    """Write an address as logs show it."""
    if isinstance(address, UNIXAddress):
        return os.fsdecode(address.name) if address.name else "a local client"
    host, port = getattr(address, "host", "?"), getattr(address, "port", "?")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
