"""The outlet: the way out to one client, and the only writer of its transport."""

from typing import Protocol

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IPullProducer
from twisted.logger import Logger
from zope.interface import implementer

from pushd.hub import Hub
from pushd.message import Topic
from pushd.subscription import Subscription

PIECE_BYTES = 64 * 1024
"""What the transport is given at a time while the client lags: all that one client can make it buffer."""

REPLIES_BYTES = 64 * 1024
"""Replies that may wait for a lagging client before its reading is paused."""

MOST_REPLIES_BYTES = 256 * 1024
"""Where so many wait, one more ends the client: not all are answers, which end when it is not read from."""


class Transport(Protocol):
    """What the outlet needs of a transport: those of Twisted that provide ITCPTransport and IConsumer do."""

    def write(self, data: bytes) -> None:
        """Send, now or later."""

    def registerProducer(self, producer: IPullProducer, streaming: bool) -> None:
        """Ask a producer for more whenever nothing is left to send."""

    def unregisterProducer(self) -> None:
        """Ask no more."""

    def loseConnection(self) -> None:
        """Close when nothing is left to send."""

    def abortConnection(self) -> None:
        """Close at once."""

    @property
    def disconnecting(self) -> int:
        """Whether it is to close when nothing is left to send, and no producer is registered."""


class Reader(Protocol):
    """What the outlet needs of the protocol that reads from the same client."""

    def pauseProducing(self) -> None:
        """Read no more of what the client sends."""

    def resumeProducing(self) -> None:
        """Go on reading, from where it was paused."""


@implementer(IPullProducer)
class Outlet:
    """Sends frames and replies to one client, each one whole and in the order in which they were given.

    While nothing waits, a send goes straight to the kernel: it costs one system call, and the reactor hears
    nothing of it. What the kernel does not take makes the outlet lag: the remainder is handed on piece by
    piece, whenever the transport asks for more, and until it is gone the hub leaves the outlet alone. The
    remainder is a view into the bytes that were sent, which outlets share that were sent them together.

    Transports that hide their socket, such as TLS, are given everything piece by piece. Always the transport
    at the bottom is asked to ask: one above it may ask before it has handed on what it was given. TLS keeps
    small writes for a turn: the outlet would be done, and be sent more, with a client that reads nothing.
    """

    __slots__ = (
        "_bottom",
        "_descriptor",
        "_hub",
        "_reader",
        "_reading_paused",
        "_replies",
        "_rest",
        "_transport",
        "closing",
        "lagging",
        "peer",
        "subscriptions",
    )

    _log = Logger()

    def __init__(self, transport: Transport, reader: Reader, hub: Hub, peer: str) -> None:
        self.closing = False  # nothing more is accepted for the client
        self.lagging = False
        self.peer = peer
        self.subscriptions: list[Subscription] = []
        self._transport = transport
        self._reader = reader
        self._hub = hub
        self._descriptor = transport if isinstance(transport, FileDescriptor) else None
        self._bottom = _bottom(transport)
        self._rest: bytes | memoryview = b""
        self._replies = b""
        self._reading_paused = False

    @property
    def flushed(self) -> bool:
        """Whether everything that there is for the client has been handed to the kernel."""
        return not self.lagging and not any(s.active and s.behind for s in self.subscriptions)

    def send(self, data: bytes) -> None:
        """Send whole frames; only while the outlet does not lag."""
        taken = self._descriptor.writeSomeData(data) if self._descriptor else 0
        if taken == len(data):
            return
        if isinstance(taken, BaseException):
            self.lost()
            self._transport.abortConnection()
            return
        self._rest = memoryview(data)[taken:]
        self.lagging = True
        self._bottom.registerProducer(self, False)

    def reply(self, data: bytes) -> None:
        """Send what is no message, such as an answer, behind the frame that is on its way."""
        if self.closing:
            return
        if not self.lagging:
            self.send(data)
            return
        if len(self._replies) > MOST_REPLIES_BYTES:
            self._log.warn("Disconnected {peer}: it does not read what it is told", peer=self.peer)
            self.abort()
            return
        self._replies += data
        if len(self._replies) > REPLIES_BYTES and not self._reading_paused:
            self._reading_paused = True
            self._reader.pauseProducing()

    def close(self) -> None:
        """Close once what waits for the client has been sent; accept no more."""
        if self.closing:
            return
        self.closing = True
        self._abandon()
        if not self.lagging:
            self._transport.loseConnection()

    def abort(self) -> None:
        """Close at once; what the client has not been sent is counted as missed."""
        self._abandon()
        self.lost()
        self._transport.abortConnection()

    def lost(self) -> None:
        """Let go of everything: the connection is gone. What a lagging client has not got is missed."""
        if self.lagging:
            self._abandon()
        self.closing = self.lagging = True  # for ever: it takes nothing more
        for subscription in self.subscriptions:
            self._hub.unsubscribe(subscription)
        self._rest = self._replies = b""

    def overrun(self, topic: Topic, messages: int, size: int) -> None:
        """End a slow consumer: messages, and bytes of payload, are how far it is behind."""
        self._log.warn(
            "Disconnected slow consumer {peer}: {messages} messages ({size} bytes) behind on {topic}",
            peer=self.peer,
            messages=messages,
            size=size,
            topic=topic,
        )
        self.abort()

    def failed(self) -> None:
        """End a client that has just raised an exception, which is logged."""
        self._log.failure("Disconnected {peer}: sending to it failed", peer=self.peer)
        self.abort()

    def resumeProducing(self) -> None:
        """Hand on the next piece, or stop lagging: the transport has nothing left."""
        if self._bottom.disconnecting:
            # TLS has ended, and drops what it is given; Twisted closes once no producer is registered.
            self._bottom.unregisterProducer()
            return
        if piece := self._next_piece():
            self._transport.write(piece)
            return
        self.lagging = False
        self._rest = b""  # even an empty view would keep what it looks into
        self._bottom.unregisterProducer()
        if self.closing:
            self._transport.loseConnection()
            return
        # Each is the first in its turn: one that always makes the client lag must not starve the others.
        self.subscriptions[:] = [*self.subscriptions[1:], *self.subscriptions[:1]]
        self._hub.wake(self.subscriptions)
        if self._reading_paused:
            self._reading_paused = False
            self._reader.resumeProducing()

    def stopProducing(self) -> None:
        """Do nothing: the protocol is told that the connection is lost, and tells the outlet."""

    def _next_piece(self) -> bytes:
        if not self._rest and self._replies:
            self._rest, self._replies = memoryview(self._replies), b""
        piece = bytes(self._rest[:PIECE_BYTES])
        self._rest = self._rest[PIECE_BYTES:]
        return piece

    def _abandon(self) -> None:
        for subscription in self.subscriptions:
            self._hub.abandon(subscription)


def _bottom(transport: Transport) -> Transport:
    """Return the innermost of transports that wrap one another, as protocols of Twisted do."""
    while (inner := getattr(transport, "transport", None)) is not None:
        transport = inner
    return transport
