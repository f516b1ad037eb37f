"""The line protocol: echo, messages, limits, half-close and time-outs."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from pushd.clients.admission import Admission
from pushd.clients.connection import CLOSE_SECONDS, REFUSAL_SECONDS, show_address
from pushd.clients.line import LineFactory, LineProtocol, Terms
from pushd.hub import Hub
from pushd.message import Batch, Kind, Topic
from pushd.metrics import Metrics
from pushd.settings import SlowPolicy
from tests.clients import Kernel

UPDATES = Topic(b"updates")
NEWS = Topic(b"news.*", Kind.PATTERN)
HOME = IPv4Address("TCP", "192.0.2.1", 4242)

TERMS = Terms(
    topics=(UPDATES, NEWS),
    slow=SlowPolicy.DISCONNECT,
    replay=0,
    max_line=100,
    idle_timeout=None,
)


class ClosingKernel(Kernel):
    """A transport that tells its protocol at once that it is closed, as those in memory do."""

    def loseConnection(self) -> None:
        super().loseConnection()
        self.protocol.connectionLost(Failure(ConnectionDone()))

    abortConnection = loseConnection


class World:
    """A factory, its hub, and clients in memory."""

    def __init__(
        self, *, max_clients: int = 1000, max_clients_per_ip: int | None = None, **terms: Any
    ) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.hub = Hub(self.clock, 1024**2, self.metrics, "epoch")
        self.hub.open(UPDATES)
        self.hub.open(NEWS)
        admission = Admission(max_clients, max_clients_per_ip, self.metrics)
        self.factory = LineFactory(replace(TERMS, **terms), self.hub, admission, self.clock)

    def connect(self, address: Any = HOME, *, room: int = 10**9) -> tuple[LineProtocol, ClosingKernel]:
        client = self.factory.buildProtocol(address)
        assert isinstance(client, LineProtocol)
        kernel = ClosingKernel(room)
        kernel.protocol = client
        client.makeConnection(kernel)
        return client, kernel

    def publish(self, *payloads: bytes, topic: Topic = UPDATES) -> None:
        self.hub.publish(Batch(topic, list(payloads)))
        self.settle()

    def settle(self) -> None:
        self.clock.advance(0)


def test_it_can_be_half_closed() -> None:
    assert verifyObject(IHalfCloseableProtocol, World().connect()[0])


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        (b"hello\r\n", b"hello\r\n"),
        (b"hello\n", b"hello\r\n"),
        (b"\r\n", b"\r\n"),
        (b"\n", b"\r\n"),
        (b"hello\r\r\n", b"hello\r\r\n"),
        (b"a\rb\r\n", b"a\rb\r\n"),
        (b"\xff\xfe\x00\x03\r\n", b"\xff\xfe\x00\x03\r\n"),
        (b"  spaces  \r\n", b"  spaces  \r\n"),
        (b"one\r\ntwo\nthree\r\n", b"one\r\ntwo\r\nthree\r\n"),
        (b"unfinished", b""),
    ],
)
def test_each_line_comes_back_with_cr_lf(sent: bytes, echoed: bytes) -> None:
    whole, whole_kernel = World().connect()
    whole.dataReceived(sent)
    assert whole_kernel.received == echoed
    pieces, pieces_kernel = World().connect()
    for byte in sent:
        pieces.dataReceived(bytes([byte]))
    assert pieces_kernel.received == echoed


@given(lines=st.lists(st.binary(max_size=100).map(lambda line: line.replace(b"\n", b"").removesuffix(b"\r"))))
def test_any_pipelined_lines_come_back_in_order(lines: list[bytes]) -> None:
    client, kernel = World().connect()
    client.dataReceived(b"".join(line + b"\r\n" for line in lines))
    assert kernel.received == b"".join(line + b"\r\n" for line in lines)


def test_pipelined_lines_are_answered_with_one_send() -> None:
    client, kernel = World().connect()
    client.dataReceived(b"one\r\ntwo\r\nthree\r\n")
    assert kernel.sends == [b"one\r\ntwo\r\nthree\r\n"]


def test_every_topic_reaches_every_client_as_lines() -> None:
    world = World()
    kernels = [world.connect()[1] for _ in range(3)]
    world.publish(b"42", b"", b"a\r\nb")
    world.publish(b"\xff\xfe", topic=NEWS)
    for kernel in kernels:
        assert kernel.received == b"42\r\n\r\na\r\nb\r\n\xff\xfe\r\n"


def test_replay_comes_first() -> None:
    world = World(replay=2)
    world.publish(b"one", b"two", b"three")
    _, kernel = world.connect()
    world.settle()
    assert kernel.received == b"two\r\nthree\r\n"


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
def test_a_line_may_be_as_long_as_the_limit(end: bytes) -> None:
    client, kernel = World().connect()
    client.dataReceived(b"x" * 100 + end)
    assert kernel.received == b"x" * 100 + b"\r\n"
    assert not kernel.closed


@pytest.mark.parametrize("sent", [b"x" * 101 + b"\r\n", b"x" * 101 + b"\n", b"x" * 102, b"x" * 100_000])
@pytest.mark.parametrize("step", [1, 7, 8192])
def test_a_line_above_the_limit_gets_one_error_and_the_end(sent: bytes, step: int) -> None:
    world = World()
    client, kernel = world.connect()
    for data in pieces(b"before\r\n" + sent + b"after\r\n", step):
        client.dataReceived(data)
        assert len(client._buffer) <= 102
    assert kernel.received == b"before\r\nERR line too long\r\n"
    assert kernel.closed
    assert world.factory.clients == set()


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def test_reading_is_paused_while_a_client_does_not_read() -> None:
    world = World()
    client, kernel = world.connect(room=0)
    line = b"x" * 100 + b"\r\n"
    for _ in range(10_000):
        if client.paused:
            break
        client.dataReceived(line)
    assert client.paused
    received = kernel.received
    kernel.make_room(10**9)
    assert not client.paused
    client.dataReceived(b"last\r\n")
    assert received == b""
    assert kernel.received.endswith(line + b"last\r\n")


def test_a_client_that_half_closes_gets_its_echoes_first() -> None:
    world = World()
    client, kernel = world.connect(room=3)
    client.dataReceived(b"a\r\nb\r\n")
    client.readConnectionLost()
    assert not kernel.closed
    kernel.make_room(100)
    assert kernel.closed
    assert kernel.received == b"a\r\nb\r\n"
    assert world.clock.getDelayedCalls() == []


def test_a_client_that_half_closes_and_does_not_read_is_cut_off() -> None:
    world = World()
    client, kernel = world.connect(room=3)
    client.dataReceived(b"a\r\nb\r\n")
    client.readConnectionLost()
    client.writeConnectionLost()
    world.clock.advance(CLOSE_SECONDS)
    assert kernel.closed
    assert world.factory.clients == set()


def test_a_closing_client_is_not_answered() -> None:
    client, kernel = World().connect(room=3)
    client.dataReceived(b"a\r\nb\r\n")
    client.close()
    client.dataReceived(b"c\r\n")
    kernel.make_room(100)
    assert kernel.received == b"a\r\nb\r\n"


def test_an_idle_client_is_closed_and_one_that_sends_is_not() -> None:
    world = World(idle_timeout=60.0)
    _, idle_kernel = world.connect()
    busy, busy_kernel = world.connect()
    world.clock.advance(59)
    busy.dataReceived(b"still here\r\n")
    world.clock.advance(2)
    assert (idle_kernel.closed, busy_kernel.closed) == (True, False)
    assert world.factory.clients == {busy}
    busy_kernel.loseConnection()
    assert world.clock.getDelayedCalls() == []


def test_messages_do_not_keep_an_idle_client() -> None:
    world = World(idle_timeout=60.0)
    _, kernel = world.connect()
    world.clock.advance(59)
    world.publish(b"one")
    world.clock.advance(1)
    assert kernel.closed


def test_one_client_too_many_is_told_so() -> None:
    world = World(max_clients=2)
    world.connect()
    _, kernel = world.connect()
    transport = refused(world, HOME)
    assert transport.value() == b"ERR too many clients\r\n"
    assert transport.disconnecting
    assert (world.metrics.clients, world.metrics.refused) == (2, 1)
    kernel.loseConnection()
    world.connect()
    transport.protocol.connectionLost()
    assert world.clock.getDelayedCalls() == []


def test_a_refusal_that_cannot_be_said_ends_too() -> None:
    world = World(max_clients=1)
    world.connect()
    transport = refused(world, HOME)
    assert not transport.disconnected
    world.clock.advance(REFUSAL_SECONDS)
    assert transport.disconnected
    transport.protocol.connectionLost()


def refused(world: World, address: Any) -> Any:
    protocol = world.factory.buildProtocol(address)
    assert not isinstance(protocol, LineProtocol)
    transport: Any = StringTransport()
    transport.protocol = protocol
    protocol.makeConnection(transport)
    return transport


def test_one_address_can_be_limited_without_the_others() -> None:
    world = World(max_clients_per_ip=1)
    _, kernel = world.connect(HOME)
    world.connect(IPv6Address("TCP", "2001:db8::1", 4242))
    world.connect(UNIXAddress(None))
    world.connect(UNIXAddress(None))
    assert refused(world, HOME).disconnecting
    kernel.loseConnection()
    world.connect(HOME)


def test_a_slow_consumer_is_disconnected_and_forgotten() -> None:
    world = World()
    _, slow = world.connect(room=5)
    _, healthy = world.connect()
    for _ in range(2000):
        world.publish(b"." * 998)
    assert slow.closed
    assert len(slow.received) == 5
    assert len(healthy.received) == 2000 * 1000
    assert world.metrics.slow_disconnects == 1
    assert len(world.factory.clients) == 1


def test_what_a_client_missed_is_counted() -> None:
    world = World(slow=SlowPolicy.LATEST)
    client, kernel = world.connect(room=5)
    for number in range(10):
        world.publish(b"%d" % number)
    kernel.make_room(100)
    world.settle()
    # "0" whole, "1" cut by the full buffer and completed, then the newest
    assert kernel.received == b"0\r\n1\r\n9\r\n"
    assert sorted(subscription.missed for subscription in client.outlet.subscriptions) == [0, 7]
    kernel.loseConnection()
    assert world.metrics.missed == 7


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (HOME, "192.0.2.1:4242"),
        (IPv6Address("TCP", "2001:db8::1", 4242), "[2001:db8::1]:4242"),
        (UNIXAddress(b"/run/pushd/socket"), "/run/pushd/socket"),
        (UNIXAddress(None), "a local client"),
    ],
)
def test_addresses_are_shown_as_users_write_them(address: Any, shown: str) -> None:
    assert show_address(address) == shown
