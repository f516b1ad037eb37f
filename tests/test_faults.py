"""The proxy that does harm between pushd and Redis, on the real reactor, between a client and a server."""

import hashlib
import socket
import tracemalloc
from collections.abc import Callable, Iterator
from random import Random
from typing import Any
from unittest.mock import call, create_autospec

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred, DeferredQueue
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.error import ConnectError, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol, IPushProducer, ITCPTransport
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from tests.faults import HELD_BYTES, Fault, FaultyProxy, Kind, run, schedule
from tests.harness import TIMEOUT, free_port

BLOCK_BYTES = 8192


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """An end of a connection that keeps what it receives; a server's end is put in a queue, and echoes."""

    transport: Any

    def __init__(self, accepted: "DeferredQueue[Any] | None" = None) -> None:
        self.received = b""
        self.ended = False
        self.lost: Failure | None = None
        self._accepted = accepted
        self._awaited: list[tuple[Callable[[], bool], Deferred[None]]] = []

    def connectionMade(self) -> None:
        if self._accepted:
            self._accepted.put(self)

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self._accepted:
            self.transport.write(data)
        self._changed()

    def readConnectionLost(self) -> None:
        self.ended = True
        if self._accepted:
            self.transport.loseConnection()
        self._changed()

    def writeConnectionLost(self) -> None:
        pass

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost = reason
        self._changed()

    def _changed(self) -> None:
        for condition, met in self._awaited:
            if condition() and not met.called:
                met.callback(None)

    async def _until(self, condition: Callable[[], bool]) -> None:
        met: Deferred[None] = Deferred()
        self._awaited.append((condition, met))
        self._changed()
        await met.addTimeout(TIMEOUT, self.transport.reactor)

    async def get(self, size: int) -> bytes:
        """Return all that was received, as soon as it is so much or can be no more."""
        await self._until(lambda: len(self.received) >= size or self.ended or self.lost is not None)
        return self.received

    async def receive(self, data: bytes) -> None:
        """Return once exactly this has been received in all."""
        assert await self.get(len(data)) == data

    async def get_all(self) -> bytes:
        """Return all that was received, once the other side has ended its sending."""
        await self._until(lambda: self.ended)
        return self.received

    async def get_lost(self) -> type[BaseException]:
        """Return why the connection is lost, as soon as it is."""
        await self._until(lambda: self.lost is not None)
        assert self.lost
        assert self.lost.type
        return self.lost.type

    async def close(self) -> None:
        self.transport.abortConnection()
        await self.get_lost()


class Server:
    """A server whose connections can be awaited, one after the other."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._accepted: DeferredQueue[Any] = DeferredQueue()
        factory = Factory.forProtocol(lambda: Peer(self._accepted))
        self._listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.port: int = self._listening.getHost().port

    async def next(self) -> Peer:
        peer: Peer = await self._accepted.get().addTimeout(TIMEOUT, self._reactor)
        return peer

    async def stop(self) -> None:
        await self._listening.stopListening()


@pytest_twisted.async_yield_fixture
async def server(reactor: Any) -> Any:
    server = Server(reactor)
    yield server
    await server.stop()


@pytest_twisted.async_yield_fixture
async def proxy(reactor: Any, server: Server) -> Any:
    async with FaultyProxy(reactor, server.port) as proxy:
        yield proxy


async def connect(reactor: Any, port: int) -> Peer:
    peer: Peer = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port), Peer()).addTimeout(
        TIMEOUT, reactor
    )
    return peer


async def pair(reactor: Any, proxy: FaultyProxy, server: Server) -> tuple[Peer, Peer]:
    """Connect a client through the proxy, and return it and the server's end."""
    client = await connect(reactor, proxy.port)
    return client, await server.next()


async def a_while(reactor: Any, server: Server) -> None:
    """Return when anything that the proxy would pass on has arrived: a longer way has been gone meanwhile."""
    witness = await connect(reactor, server.port)
    other = await server.next()
    for turn in range(1, 11):
        witness.transport.write(b"x")
        await witness.receive(b"x" * turn)
    await witness.close()
    await other.get_lost()


def is_read(reactor: Any, client: Peer) -> bool:
    """Whether the proxy reads from its connection to this client."""
    address = client.transport.getHost()
    return any(ITCPTransport.providedBy(one) and one.getPeer() == address for one in reactor.getReaders())


@pytest_twisted.ensureDeferred
async def test_it_passes_everything_on(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    clients = [await pair(reactor, proxy, server) for _ in range(3)]
    for number, (client, _) in enumerate(clients):
        client.transport.write(b"%d" % number * 100_000)
    for number, (client, _) in enumerate(clients):
        await client.receive(b"%d" % number * 100_000)
    assert (proxy.connections, proxy.accepted) == (3, 3)
    for client, _ in clients:
        await client.close()
    assert (proxy.connections, proxy.accepted) == (0, 3)


@pytest_twisted.ensureDeferred
async def test_it_passes_on_how_a_connection_ends(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    for end, other in ((0, 1), (1, 0)):
        peers = await pair(reactor, proxy, server)
        peers[end].transport.write(b"last words")
        peers[end].transport.loseConnection()
        assert await peers[other].get_all() == b"last words"
        peers[other].transport.loseConnection()
        assert await peers[other].get_lost() is ConnectionDone
        peers = await pair(reactor, proxy, server)
        peers[end].transport.abortConnection()
        assert await peers[other].get_lost() is ConnectionLost


@pytest_twisted.ensureDeferred
async def test_where_no_server_is_it_resets(reactor: Any) -> None:
    async with FaultyProxy(reactor, free_port()) as proxy:
        client = await connect(reactor, proxy.port)
        assert await client.get_lost() is ConnectionLost
        assert proxy.connections == 0


@implementer(IPushProducer)
class Streaming(Protocol):
    """A server that sends numbered blocks as fast as they are taken, then closes."""

    transport: Any
    BLOCKS = 4096

    def __init__(self) -> None:
        self._paused = False
        self._blocks = self.blocks()

    @classmethod
    def blocks(cls) -> Iterator[bytes]:
        return (number.to_bytes(8, "big") * (BLOCK_BYTES // 8) for number in range(cls.BLOCKS))

    def connectionMade(self) -> None:
        self.transport.registerProducer(self, streaming=True)
        self.resumeProducing()

    def resumeProducing(self) -> None:
        self._paused = False
        while not self._paused:
            if (block := next(self._blocks, None)) is None:
                self.transport.unregisterProducer()
                self.transport.loseConnection()
                return
            self.transport.write(block)

    def pauseProducing(self) -> None:
        self._paused = True

    def stopProducing(self) -> None:
        self._paused = True


class SlowReader(Protocol):
    """A client that reads a little, then rests for a millisecond."""

    transport: Any

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.ended: Deferred[None] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self.digest.update(data)
        self.transport.pauseProducing()
        self.transport.reactor.callLater(0.001, self.transport.resumeProducing)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.ended.callback(None)


@pytest.mark.parametrize("delay", [0.0, 0.01])
@pytest_twisted.ensureDeferred
async def test_a_slow_reader_slows_the_sender_down(reactor: Any, delay: float) -> None:
    server = reactor.listenTCP(0, Factory.forProtocol(Streaming), interface="127.0.0.1")
    async with FaultyProxy(reactor, server.getHost().port) as proxy:
        proxy.delay(delay)
        tracemalloc.start()
        try:
            endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", proxy.port)
            client = await connectProtocol(endpoint, SlowReader()).addTimeout(TIMEOUT, reactor)
            await client.ended.addTimeout(TIMEOUT, reactor)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        await deferLater(reactor, 0.001)  # the reader's last rest
    await server.stopListening()
    assert client.digest.digest() == hashlib.sha256(b"".join(Streaming.blocks())).digest()
    assert peak < 3 * HELD_BYTES


@pytest_twisted.ensureDeferred
async def test_refused(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    client, _ = await pair(reactor, proxy, server)
    for turn in range(1, 4):
        proxy.refuse()
        proxy.refuse()
        with pytest.raises(ConnectError, match="refused"):
            await connect(reactor, proxy.port)
        client.transport.write(b"x")
        await client.receive(b"x" * turn)
        proxy.heal()
        proxy.refuse()
        proxy.heal()
        other, _ = await pair(reactor, proxy, server)
        other.transport.write(b"works")
        await other.receive(b"works")
    assert proxy.accepted == 4
    proxy.refuse()  # and stop, while it refuses


@pytest_twisted.ensureDeferred
async def test_delayed(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    client, _ = await pair(reactor, proxy, server)
    began = reactor.seconds()
    proxy.delay(0.1)
    client.transport.write(b"first ")
    await deferLater(reactor, 0.05)
    client.transport.write(b"second")
    await client.receive(b"first second")
    assert reactor.seconds() - began >= 0.25


@pytest_twisted.ensureDeferred
async def test_a_delayed_end_comes_last_and_healing_ends_the_delay(
    reactor: Any, proxy: FaultyProxy, server: Server
) -> None:
    client, other = await pair(reactor, proxy, server)
    proxy.delay(1000.0)
    other.transport.write(b"last words")
    other.transport.loseConnection()
    await a_while(reactor, server)
    assert not client.received
    assert not client.ended
    proxy.heal()
    assert await client.get_all() == b"last words"
    await client.close()


@pytest_twisted.ensureDeferred
async def test_frozen(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    client, other = await pair(reactor, proxy, server)
    proxy.freeze()
    client.transport.write(b"to the server")
    other.transport.write(b"to the client ")
    new, new_other = await pair(reactor, proxy, server)
    new.transport.write(b"from a new one")
    await a_while(reactor, server)
    assert not client.received + other.received + new.received + new_other.received
    assert not is_read(reactor, client)
    assert not is_read(reactor, new)
    assert (proxy.connections, proxy.accepted) == (2, 2)
    proxy.heal()
    await client.receive(b"to the client to the server")
    await new.receive(b"from a new one")
    assert is_read(reactor, client)


@pytest_twisted.ensureDeferred
async def test_what_was_delayed_is_frozen_too(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    client, other = await pair(reactor, proxy, server)
    proxy.delay(1000.0)
    client.transport.write(b"late")
    await a_while(reactor, server)
    proxy.freeze()
    proxy.delay(0.0)
    await a_while(reactor, server)
    assert not other.received
    proxy.heal()
    await client.receive(b"late")


@pytest_twisted.ensureDeferred
async def test_who_leaves_in_a_freeze_is_not_counted(
    reactor: Any, proxy: FaultyProxy, server: Server
) -> None:
    peers = [await pair(reactor, proxy, server) for _ in range(3)]
    proxy.freeze()
    (one, _), (two, two_other), _ = peers
    await one.close()
    two.transport.loseConnection()
    await two.get_lost()
    await a_while(reactor, server)
    assert proxy.connections == 1
    assert two_other.lost is None
    proxy.heal()
    await two_other.get_lost()


@pytest_twisted.ensureDeferred
async def test_cut(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    peers = [await pair(reactor, proxy, server) for _ in range(2)]
    proxy.delay(1000.0)
    peers[0][0].transport.write(b"will be lost")
    await a_while(reactor, server)
    proxy.cut()
    assert proxy.connections == 0
    for ends in peers:
        for end in ends:
            assert await end.get_lost() is ConnectionLost
            assert not end.received
    proxy.heal()
    client, _ = await pair(reactor, proxy, server)
    client.transport.write(b"works")
    await client.receive(b"works")


@pytest_twisted.ensureDeferred
async def test_half_closed(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    client, other = await pair(reactor, proxy, server)
    other.transport.write(b"sent before ")
    await client.receive(b"sent before ")
    proxy.half_close()
    await client.get_all()
    proxy.half_close()
    client.transport.write(b"x" * 10_000_000)
    other.transport.write(b"sent after")
    drained: Deferred[None] = Deferred()
    client.transport.registerProducer(Drained(drained), streaming=False)
    await drained.addTimeout(TIMEOUT, reactor)
    await a_while(reactor, server)
    assert client.received == b"sent before "
    assert not other.received
    assert client.lost is None
    assert other.lost is None
    proxy.heal()
    assert proxy.connections == 1
    new, _ = await pair(reactor, proxy, server)
    new.transport.write(b"works")
    await new.receive(b"works")
    client.transport.unregisterProducer()
    client.transport.loseConnection()
    await other.get_lost()
    assert proxy.connections == 1


class Drained:
    """A producer that produces nothing, and tells when all that was written before has gone."""

    def __init__(self, drained: Deferred[None]) -> None:
        self._drained: Deferred[None] | None = drained

    def resumeProducing(self) -> None:
        if self._drained:
            drained, self._drained = self._drained, None
            drained.callback(None)

    def stopProducing(self) -> None:
        pass


@pytest_twisted.ensureDeferred
async def test_stopped_inside(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    client, other = await pair(reactor, proxy, server)
    proxy.stop_inside(10)
    client.transport.write(b"0123456")
    await client.receive(b"0123456")
    client.transport.write(b"789abcdef")
    await client.receive(b"0123456789")
    new, _ = await pair(reactor, proxy, server)
    new.transport.write(b"0123456789abcdef")
    await new.receive(b"0123456789")
    client.transport.write(b"ghi")
    await other.receive(b"0123456789abcdefghi")
    other.transport.loseConnection()
    await a_while(reactor, server)
    assert client.received == new.received == b"0123456789"
    assert not client.ended
    proxy.heal()
    assert await client.get_all() == b"0123456789abcdefghi"
    await new.receive(b"0123456789abcdef")
    await client.close()
    proxy.stop_inside(0)
    proxy.cut()
    newest, _ = await pair(reactor, proxy, server)
    newest.transport.write(b"works")
    await newest.receive(b"works")


@pytest_twisted.ensureDeferred
async def test_corrupted(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    client, other = await pair(reactor, proxy, server)
    proxy.corrupt(Random(1), 2)
    for turn in range(1, 4):
        client.transport.write(b"untouched")
        await client.get(9 * turn)
    assert other.received == b"untouched" * 3
    chunks = [client.received[at : at + 9] for at in (0, 9, 18)]
    differing = [sum(a != b for a, b in zip(chunk, b"untouched", strict=True)) for chunk in chunks]
    assert differing == [1, 1, 0]
    proxy.corrupt(Random(1), 100)
    proxy.heal()
    client.transport.write(b"untouched")
    assert (await client.get(36)).endswith(b"untouched")


@pytest_twisted.ensureDeferred
async def test_stopping_leaves_nothing_behind(reactor: Any, server: Server) -> None:
    def left() -> set[Any]:
        return {*reactor.getReaders(), *reactor.getWriters(), *reactor.getDelayedCalls()}

    before = left()
    for harm in (FaultyProxy.heal, FaultyProxy.freeze, FaultyProxy.refuse, lambda proxy: proxy.delay(1000.0)):
        proxy = FaultyProxy(reactor, server.port)
        await proxy.start()
        peers = [await pair(reactor, proxy, server) for _ in range(3)]
        harm(proxy)
        for client, other in peers:
            client.transport.write(b"x" * 100_000)
            other.transport.write(b"x" * 100_000)
        await a_while(reactor, server)
        await proxy.stop()
        await proxy.stop()
        proxy.heal()
        for ends in peers:
            for end in ends:
                await end.get_lost()
        assert left() == before


@pytest_twisted.ensureDeferred
async def test_stopping_ends_attempts_to_connect(reactor: Any) -> None:
    with socket.socket() as deaf, socket.socket() as filling:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        filling.connect(deaf.getsockname())
        before = {*reactor.getReaders(), *reactor.getWriters(), *reactor.getDelayedCalls()}
        proxy = FaultyProxy(reactor, deaf.getsockname()[1])
        await proxy.start()
        client = await connect(reactor, proxy.port)
        client.transport.write(b"x")
        assert proxy.connections == 1
        await Deferred.fromCoroutine(proxy.stop()).addTimeout(TIMEOUT, reactor)
        await client.get_lost()
        assert {*reactor.getReaders(), *reactor.getWriters(), *reactor.getDelayedCalls()} == before


def test_a_schedule_is_given_by_its_seed() -> None:
    schedules = [schedule(seed, 10.0) for seed in range(300)]
    assert schedules == [schedule(seed, 10.0) for seed in range(300)]
    assert {len(faults) for faults in schedules} == {1, 2, 3, 4, 5}
    assert {fault.kind for faults in schedules for fault in faults} == set(Kind)
    for faults in schedules:
        now = 0.0
        for fault in faults:
            assert fault.at >= now
            assert fault.lasts >= 0
            now = fault.at + fault.lasts
        assert now <= 10.0001


def test_a_schedule_is_played_in_time() -> None:
    random = Random(1)
    clock = Clock()
    proxy = create_autospec(FaultyProxy, instance=True, reactor=clock)
    faults = [Fault(kind, 2.0 * number, 1.0, 500) for number, kind in enumerate(Kind, 1)]
    played = Deferred.fromCoroutine(run(proxy, faults, random))
    calls = []
    while not played.called:
        clock.advance(0.5)
        calls += [(clock.seconds(), done) for done in proxy.mock_calls]
        proxy.reset_mock()
    assert calls == [
        *((2.0, call.refuse()), (3.0, call.heal())),
        *((4.0, call.delay(0.5)), (5.0, call.heal())),
        *((6.0, call.freeze()), (7.0, call.heal())),
        *((8.0, call.cut()), (9.0, call.heal())),
        *((10.0, call.half_close()), (11.0, call.heal())),
        *((12.0, call.stop_inside(500)), (13.0, call.heal())),
        *((14.0, call.corrupt(random, 500)), (15.0, call.heal())),
    ]


@pytest_twisted.ensureDeferred
async def test_a_cancelled_schedule_is_healed(reactor: Any, proxy: FaultyProxy, server: Server) -> None:
    played = Deferred.fromCoroutine(run(proxy, [Fault(Kind.REFUSE, 0.0, 1000.0)], Random(1)))
    await deferLater(reactor, 0)
    with pytest.raises(ConnectError, match="refused"):
        await connect(reactor, proxy.port)
    played.cancel()
    with pytest.raises(CancelledError):
        await played
    await pair(reactor, proxy, server)


@pytest.mark.parametrize("seed", range(10))
@pytest_twisted.ensureDeferred
async def test_after_a_schedule_everything_works(
    reactor: Any, proxy: FaultyProxy, server: Server, seed: int
) -> None:
    clients = [await pair(reactor, proxy, server) for _ in range(3)]
    played = Deferred.fromCoroutine(run(proxy, schedule(seed, 0.1), Random(seed)))
    for client, _ in clients:
        client.transport.write(b"x" * 100_000)
    await played.addTimeout(TIMEOUT, reactor)
    client, _ = await pair(reactor, proxy, server)
    client.transport.write(b"works")
    await client.receive(b"works")
