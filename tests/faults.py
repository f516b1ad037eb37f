"""A TCP proxy that stands between pushd and Redis and does harm there, on command or by a seeded schedule."""

import socket
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from random import Random
from types import TracebackType
from typing import Any, Self

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IPushProducer
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.harness import free_port

LOOPBACK = "127.0.0.1"
HELD_BYTES = 1 << 20
"""When so much is held back in one direction, its sender is paused."""
PEER_HOLDS = (1, 4, 5)
"""The states of a socket whose peer has not closed: ESTABLISHED, FIN_WAIT1 and FIN_WAIT2 of Linux."""


class FaultyProxy:
    """Passes connections on to a server on loopback, and lets them suffer what it is told.

    Faults add up until they are healed. Those without an end of their own (delay, freeze, stop_inside,
    corrupt) are suffered by new connections too; cut and half_close are done once, to those that live.
    """

    def __init__(self, reactor: Any, target_port: int, latency: float = 0.0) -> None:
        self.reactor = reactor
        self.port = 0
        self.accepted = 0
        self.latency = latency  # what comes is passed on so many seconds later, healthy or not
        self.harm = _Harm(delay=latency)
        self._target = TCP4ClientEndpoint(reactor, LOOPBACK, target_port)
        self._listening: Any = None
        self._refusing = False
        self._links: set[_Link] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen on a free port."""
        # Not 0: the kernel takes a port that it chose itself back as soon as nobody listens on it.
        self.port = free_port()
        factory = Factory.forProtocol(self._accept)
        self._listening = self.reactor.listenTCP(self.port, factory, interface=LOOPBACK)

    async def stop(self) -> None:
        """Abort everything; when this returns nothing of it is left in the reactor."""
        self._refusing = False
        ended = [link.ended for link in self._links]
        self.cut()
        await gatherResults([*ended, maybeDeferred(self._listening.stopListening)])

    @property
    def connections(self) -> int:
        """How many pushd holds now; one that it has closed does not count, even if a freeze hides that."""
        return sum(link.client.held_by_peer for link in self._links)

    def heal(self) -> None:
        """Let everything pass again, first what was held; what was cut or half closed stays so."""
        if self._refusing:
            self._refusing = False
            self._listening.socket.listen(self._listening.backlog)
            self._listening.startReading()
        self.harm = _Harm(delay=self.latency)
        for link in self._links:
            link.down.allowed = None
        self._pump()

    def refuse(self) -> None:
        """Refuse connections, at once; those that live go on."""
        if not self._refusing:
            self._refusing = True
            self._listening.stopReading()
            # The socket goes on to own the port, so that nobody else gets it and heal always can listen.
            self._listening.socket.shutdown(socket.SHUT_RD)

    def delay(self, seconds: float) -> None:
        """Pass on what comes from either side that much later, the end of a connection too."""
        self.harm.delay = seconds
        self._pump()

    def freeze(self) -> None:
        """Neither read nor pass on anything; what is on its way in the kernel still arrives."""
        self.harm.frozen = True
        self._pump()

    def cut(self) -> None:
        """Reset all connections, on both sides; ends stop_inside."""
        self.harm.allowed = None
        for link in list(self._links):
            link.abort()

    def half_close(self) -> None:
        """End the server's side of all connections for pushd, and drop what pushd still sends on them."""
        for link in list(self._links):
            if not link.down.dropping:
                link.down.take(link.client.shut)
                link.down.dropping = link.up.dropping = True

    def stop_inside(self, size: int) -> None:
        """Pass so many bytes more from the server on each connection, then not even its end."""
        self.harm.allowed = size
        for link in self._links:
            link.down.allowed = size

    def corrupt(self, random: Random, count: int) -> None:
        """Change one byte in each of the next chunks that are read from the server."""
        self.harm.random = random
        self.harm.corrupt = count

    def _accept(self) -> "_Side":
        self.accepted += 1
        link = _Link(self, self._target)
        self._links.add(link)
        link.ended.addCallback(lambda _: self._links.discard(link))
        return link.client

    def _pump(self) -> None:
        for link in list(self._links):
            link.up.pump()
            link.down.pump()


@dataclass
class _Harm:
    """What all connections suffer now; nothing by default."""

    frozen: bool = False
    delay: float = 0.0
    allowed: int | None = None
    corrupt: int = 0
    random: Random = field(default_factory=Random)

    def corrupted(self, data: bytes) -> bytes:
        """Return what becomes of a chunk from the server."""
        if not self.corrupt:
            return data
        self.corrupt -= 1
        changed = bytearray(data)
        changed[self.random.randrange(len(data))] ^= self.random.randrange(1, 256)
        return bytes(changed)


class _Link:
    """A connection of pushd together with that to the server."""

    def __init__(self, proxy: FaultyProxy, target: TCP4ClientEndpoint) -> None:
        self.client = _Side()
        self.server = _Side()
        self.up = _Flow(proxy, self.client, self.server)
        self.down = _Flow(proxy, self.server, self.client, from_server=True)
        self.ended: Deferred[Any] = gatherResults([self.client.closed, self.server.closed])
        self._attempt = connectProtocol(target, self.server)
        self._attempt.addErrback(self.server.connectionLost)

    def abort(self) -> None:
        self._attempt.cancel()
        self.client.abort()
        self.server.abort()


class _Side(Protocol):
    """One end of a link. It tells the flow of what it sends, and is the sink of the other."""

    transport: Any
    sends: "_Flow"
    gets: "_Flow"

    def __init__(self) -> None:
        self.closed: Deferred[None] = Deferred()
        self._aborted = False

    def connectionMade(self) -> None:
        self.transport.setTcpNoDelay(True)
        self.transport.registerProducer(self.gets, streaming=True)
        self.gets.resumeProducing()
        self.sends.pump()

    def dataReceived(self, data: bytes) -> None:
        self.sends.take(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        other = self.sends.sink
        self.sends.take(other.close if reason.check(ConnectionDone) else other.abort)
        self.closed.callback(None)

    @property
    def held_by_peer(self) -> bool:
        """Ask the kernel, for what is not read does not tell that it has ended."""
        if self._aborted or not self.transport.connected:
            return False
        state: int = self.transport.getHandle().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        return state in PEER_HOLDS

    def read(self, wanted: bool) -> None:
        if self.transport:
            (self.transport.resumeProducing if wanted else self.transport.pauseProducing)()

    def shut(self) -> None:
        self.transport.loseWriteConnection()

    def close(self) -> None:
        self.transport.loseConnection()

    def abort(self) -> None:
        self._aborted = True
        if self.transport:
            self.transport.abortConnection()


@implementer(IPushProducer)
class _Flow:
    """One direction of a link: a queue of what its source has sent, and of what then is to be done."""

    def __init__(self, proxy: FaultyProxy, source: _Side, sink: _Side, *, from_server: bool = False) -> None:
        source.sends = sink.gets = self
        self.sink = sink
        self.allowed = proxy.harm.allowed if from_server else None
        self.dropping = False
        self._proxy = proxy
        self._source = source
        self._from_server = from_server
        self._held: deque[tuple[float, bytes | Callable[[], None]]] = deque()
        self._held_bytes = 0
        self._full = True  # until the sink is connected
        self._timer: IDelayedCall | None = None

    def take(self, item: bytes | Callable[[], None]) -> None:
        """Accept a chunk, or what is to be done to the sink when all before it has passed."""
        if isinstance(item, bytes):
            if self.dropping:
                return
            if self._from_server:
                item = self._proxy.harm.corrupted(item)
            self._held_bytes += len(item)
        self._held.append((self._proxy.reactor.seconds(), item))
        self.pump()

    def pump(self) -> None:
        """Pass on all that may pass now, and read only where there is room for more."""
        harm, reactor = self._proxy.harm, self._proxy.reactor
        if self._timer and self._timer.active():
            self._timer.cancel()
        while self._held and not (self._full or harm.frozen or self.allowed == 0):
            taken, item = self._held[0]
            if (wait := taken + harm.delay - reactor.seconds()) > 0:
                self._timer = reactor.callLater(wait, self.pump)
                break
            self._held.popleft()
            if isinstance(item, bytes):
                self._write(taken, item)
            else:
                item()
        self._source.read(not (self._full or harm.frozen) and self._held_bytes < HELD_BYTES)

    def _write(self, taken: float, data: bytes) -> None:
        if self.allowed is not None:
            if rest := data[self.allowed :]:
                self._held.appendleft((taken, rest))
                data = data[: self.allowed]
            self.allowed -= len(data)
        self._held_bytes -= len(data)
        self.sink.transport.write(data)

    def pauseProducing(self) -> None:
        self._full = True
        self._source.read(False)

    def resumeProducing(self) -> None:
        self._full = False
        self.pump()

    def stopProducing(self) -> None:
        """Forget everything, for the sink is gone; the other flow ends the source."""
        self._held.clear()
        self._held_bytes = 0
        self._full = True
        self.pump()


class Kind(Enum):
    """What a fault does, each a method of the proxy; where there is one, its amount in brackets."""

    REFUSE = auto()
    DELAY = auto()  # (milliseconds)
    FREEZE = auto()
    CUT = auto()
    HALF_CLOSE = auto()
    STOP_INSIDE = auto()  # (bytes)
    CORRUPT = auto()  # (chunks)


AMOUNTS = {Kind.DELAY: 3.0, Kind.STOP_INSIDE: 4.0, Kind.CORRUPT: 1.0}
"""The power of ten that an amount goes up to, evenly over its magnitudes."""


@dataclass(frozen=True)
class Fault:
    """Harm that begins some seconds after the schedule, and is healed when it has lasted long enough."""

    kind: Kind
    at: float
    lasts: float
    amount: int = 0


def schedule(seed: int, seconds: float) -> list[Fault]:
    """Return one to five faults, one after the other; all are healed when the seconds are over."""
    random = Random(seed)
    edges = sorted(random.uniform(0, seconds) for _ in range(2 * random.randint(1, 5)))
    faults = []
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        kind = random.choice(list(Kind))
        amount = int(10 ** random.uniform(0, AMOUNTS[kind])) if kind in AMOUNTS else 0
        faults.append(Fault(kind, begin, end - begin, amount))
    return faults


async def run(proxy: FaultyProxy, faults: Iterable[Fault], random: Random) -> None:
    """Play faults in their order, and heal each before the next, or when this is cancelled."""
    began = proxy.reactor.seconds()

    async def wait_until(at: float) -> None:
        await deferLater(proxy.reactor, max(0.0, began + at - proxy.reactor.seconds()))

    for fault in faults:
        await wait_until(fault.at)
        _begin(proxy, fault, random)
        try:
            await wait_until(fault.at + fault.lasts)
        finally:
            proxy.heal()


def _begin(proxy: FaultyProxy, fault: Fault, random: Random) -> None:
    match fault.kind:
        case Kind.REFUSE:
            proxy.refuse()
        case Kind.DELAY:
            proxy.delay(fault.amount / 1000)
        case Kind.FREEZE:
            proxy.freeze()
        case Kind.CUT:
            proxy.cut()
        case Kind.HALF_CLOSE:
            proxy.half_close()
        case Kind.STOP_INSIDE:
            proxy.stop_inside(fault.amount)
        case Kind.CORRUPT:
            proxy.corrupt(random, fault.amount)
