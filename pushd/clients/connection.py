"""What the protocols of lines have in common: admission, limits, time-outs, and closing."""

import os
from abc import abstractmethod
from collections.abc import Callable
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
from twisted.protocols.basic import LineReceiver
from twisted.protocols.policies import TimeoutMixin
from twisted.python.failure import Failure
from zope.interface import implementer

from pushd.clients.admission import Admission
from pushd.hub import Hub
from pushd.outlet import Outlet, Transport

READ_BYTES = 2 * 1024
"""Taken from one client at a time, so that even one that floods empty lines takes only 2 ms of a turn."""

CLOSE_SECONDS = 30.0
"""How long a client that is being closed may take to read the rest."""

REFUSAL_SECONDS = 2.0
"""How long a connection may take to be turned away."""


@implementer(IHalfCloseableProtocol)
class ClientConnection(LineReceiver, TimeoutMixin):
    """One client that sends lines, which end in CR LF or LF.

    A client that closes its sending side is answered what it sent before the connection is closed.
    """

    delimiter = b"\n"
    factory: "ClientFactory"
    transport: ITCPTransport
    outlet: Outlet

    def __init__(self, address: IAddress | None) -> None:
        self.host: str | None = getattr(address, "host", None)

    @property
    @abstractmethod
    def max_line(self) -> int:
        """The longest line that is taken now, in bytes, without its terminator."""

    @abstractmethod
    def begin(self) -> None:
        """Start to serve the client."""

    @abstractmethod
    def received(self, line: bytes) -> None:
        """Take in one line, without its terminator."""

    @abstractmethod
    def received_too_much(self) -> None:
        """Say that a line is too long; the connection is closed then, since what follows may be its tail."""

    def say_idle(self) -> None:
        """Say that the client is closed because it was idle, if that can be said."""

    def say_stopping(self) -> None:
        """Say that the client is closed because pushd stops, if that can be said."""

    def connectionMade(self) -> None:
        """Take the client in."""
        if isinstance(self.transport, FileDescriptor):
            self.transport.bufferSize = READ_BYTES
        peer = show_address(self.transport.getPeer())
        self.outlet = Outlet(cast("Transport", self.transport), self, self.factory.hub, peer)
        self.factory.joined(self)
        self.setTimeout(self.factory.idle_timeout)
        self.begin()
        self.MAX_LENGTH = self.max_line + len(b"\r")

    def dataReceived(self, data: bytes) -> None:
        """Take in all lines that one read brought."""
        if not self.outlet.closing:
            if data:  # there is none when what had to wait is taken in
                self.resetTimeout()
            super().dataReceived(data)

    def lineReceived(self, line: bytes) -> None:
        """Take in one line; a CR before the LF belongs to its terminator."""
        line = line.removesuffix(b"\r")
        if self.outlet.closing:
            return
        if len(line) > self.max_line:
            self.lineLengthExceeded(line)
            return
        self.received(line)
        self.MAX_LENGTH = self.max_line + len(b"\r")

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002 - LineReceiver's signature
        """Keep nothing of a line that is too long, and close."""
        self.clearLineBuffer()
        self.received_too_much()
        self.close()

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

    def stop(self) -> None:
        """Close the connection because pushd stops."""
        self.say_stopping()
        self.close()

    def timeoutConnection(self) -> None:
        """Close an idle client, or cut off one that takes too long to read the rest."""
        if self.outlet.closing:
            self.outlet.abort()
        else:
            self.say_idle()
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

    def __init__(self, line: bytes, clock: IReactorTime) -> None:
        self._line = line
        self._clock = clock

    def connectionMade(self) -> None:
        """Say why, and close."""
        self.setTimeout(REFUSAL_SECONDS)
        self.transport.write(self._line)
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


class ClientFactory(Factory):
    """Holds the set of connected clients of one protocol, and turns away those who are not admitted."""

    noisy = False

    def __init__(
        self, hub: Hub, admission: Admission, clock: IReactorTime, idle_timeout: float | None
    ) -> None:
        self.hub = hub
        self.admission = admission
        self.clock = clock
        self.idle_timeout = idle_timeout  # seconds since the client last sent something
        self.clients: set[ClientConnection] = set()

    @property
    @abstractmethod
    def refusal(self) -> bytes:
        """The line for those who are turned away."""

    @abstractmethod
    def connection(self, address: IAddress | None) -> ClientConnection:
        """Return the protocol for a new client."""

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Take in one client, or refuse it."""
        client = self.connection(addr)
        client.factory = self
        return client if self.admission.admits(client.host) else Refusal(self.refusal, self.clock)

    def joined(self, client: ClientConnection) -> None:
        """Count a client in."""
        self.admission.joined(client.host)
        self.clients.add(client)

    def left(self, client: ClientConnection) -> None:
        """Count a client out."""
        self.admission.left(client.host)
        self.clients.discard(client)


def show_address(address: IAddress) -> str:
    """Write an address as logs show it."""
    if isinstance(address, UNIXAddress):
        return os.fsdecode(address.name) if address.name else "a local client"
    host, port = getattr(address, "host", "?"), getattr(address, "port", "?")
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
