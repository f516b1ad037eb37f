"""The structure of the cost: counted, so that it cannot grow unseen, however fast the machine is."""

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from pushd.channels import Channels
from pushd.chunks import SEND_BYTES
from pushd.clients.admission import Admission
from pushd.clients.control import ControlFactory, terms_of_control
from pushd.clients.line import LineFactory
from pushd.encoders import Lines
from pushd.hub import STRIDE, Hub
from pushd.message import Batch, Topic
from pushd.metrics import Metrics
from pushd.redis_urls import Redis
from pushd.settings import Settings
from pushd.sources.connection import Node
from pushd.sources.subscriber import RedisSubscriber
from tests.clients import Kernel
from tests.test_line import TERMS
from tests.upstream import Server, confirmed

UPDATES = Topic(b"updates")
CLIENTS = 500


class CountingClock(Clock):
    """A clock that stands still in a pass, and knows how often it was looked at."""

    looks = 0

    def seconds(self) -> float:
        self.looks += 1
        return super().seconds()


class World:
    """Everything between a read from Redis and the sends to the clients."""

    def __init__(self) -> None:
        self.clock = CountingClock()
        self.hub = Hub(self.clock, 1024**2, Metrics(), "epoch")
        for topic in TERMS.topics:
            self.hub.open(topic)
        factory = LineFactory(TERMS, self.hub, Admission(CLIENTS, None, Metrics()), self.clock)
        self.kernels = [Kernel() for _ in range(CLIENTS)]
        for kernel in self.kernels:
            factory.buildProtocol(kernel.getPeer()).makeConnection(kernel)
        self.batches: list[Batch] = []
        self.redis = RedisSubscriber(self.clock, 5.0, deliver=self.deliver, probe=None)
        self._subscribe()

    def _subscribe(self) -> None:
        server = Server(self.clock)
        Deferred.fromCoroutine(self.redis.open(Node("redis", server), Redis()))
        for topic in TERMS.topics:
            Deferred.fromCoroutine(self.redis.subscribe_to(topic))
            server.answer(confirmed(topic))
        for call in self.clock.getDelayedCalls():
            call.cancel()  # what watches over the answers

    def deliver(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.hub.publish(batch)

    def settle(self) -> None:
        while self.clock.getDelayedCalls():
            self.clock.advance(0)


def lines(payloads: list[bytes]) -> bytes:
    return b"".join(payload + b"\r\n" for payload in payloads)


def published(payloads: list[bytes], channel: bytes = b"updates") -> bytes:
    """Return what Redis sends for messages on a channel."""
    return b"".join(
        b"*3\r\n$7\r\nmessage\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n" % (len(channel), channel, len(payload), payload)
        for payload in payloads
    )


@pytest.mark.parametrize("count", [1, 10, 500])
def test_a_read_of_many_messages_is_one_send_for_each_client_and_no_registration(count: int) -> None:
    world = World()
    payloads = [b"%d" % number for number in range(count)]
    world.redis.dataReceived(published(payloads))
    world.settle()
    assert len(world.batches) == 1
    assert sum(len(kernel.sends) for kernel in world.kernels) == CLIENTS
    assert sum(kernel.counting.registrations for kernel in world.kernels) == 0
    frame = world.kernels[0].sends[0]
    assert frame == lines(payloads)
    assert all(kernel.sends[0] is frame for kernel in world.kernels)


def test_many_reads_in_one_turn_are_still_one_send_for_each_client() -> None:
    world = World()
    for number in range(100):
        world.redis.dataReceived(published([b"%d" % number]))
    world.settle()
    assert [len(kernel.sends) for kernel in world.kernels] == [1] * CLIENTS


def test_publishing_does_not_look_at_the_clients() -> None:
    world = World()
    world.redis.dataReceived(published([b"one"]))
    assert len(world.clock.getDelayedCalls()) == 1
    world.redis.dataReceived(published([b"two"]))
    assert len(world.clock.getDelayedCalls()) == 1
    assert not any(kernel.sends for kernel in world.kernels)


def test_a_lagging_client_costs_the_others_nothing() -> None:
    world = World()
    world.kernels[7].room = 0
    for number in range(50):
        world.redis.dataReceived(published([b"%d" % number]))
        world.settle()
    others = [kernel for kernel in world.kernels if kernel.room]
    assert len(others) == CLIENTS - 1
    assert [len(kernel.sends) for kernel in others] == [50] * len(others)
    assert sum(kernel.counting.registrations for kernel in others) == 0
    # One attempt to send, and one wish to be told of room: the 49 that came later asked nothing more.
    assert len(world.kernels[7].sends) == 1
    assert world.kernels[7].counting.registrations == 1


def test_what_one_send_does_not_hold_is_encoded_once_for_all() -> None:
    world = World()
    payloads = [b"." * 1000] * 250
    world.redis.dataReceived(published(payloads))
    world.settle()
    sends = [kernel.sends for kernel in world.kernels]
    assert b"".join(sends[0]) == lines(payloads)
    units = -(-len(payloads) // (SEND_BYTES // (1000 + Lines.framing)))
    assert len({id(frame) for frames in sends for frame in frames}) == units == 3
    assert sum(map(len, sends)) == units * CLIENTS
    assert sum(kernel.counting.registrations for kernel in world.kernels) == 0


def test_a_pass_looks_at_the_clock_once_in_a_stride() -> None:
    world = World()
    world.redis.dataReceived(published([b"one"]))
    before = world.clock.looks
    world.clock.advance(0)
    assert [len(kernel.sends) for kernel in world.kernels] == [1] * CLIENTS
    # One for each stride, one for the slice's deadline, and a few by the clock's own bookkeeping.
    assert world.clock.looks - before <= CLIENTS // STRIDE + 8
    world.settle()


class ControlWorld:
    """Clients of the control protocol that subscribe to the same channel, over a hub."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.hub = Hub(self.clock, 1024**2, Metrics(), "epoch")
        self.channels = Channels(
            self.hub, self.clock, self.clock.seconds, linger=60.0, max_channels=10, max_patterns=1000
        )
        self.channels.pin(UPDATES)
        self.channels.confirmed(UPDATES)
        settings = Settings(topics=(UPDATES,))
        factory = ControlFactory(
            terms_of_control(settings),
            self.hub,
            self.channels,
            lambda _command, _answer: None,
            Admission(CLIENTS, None, Metrics()),
            self.clock,
            self.clock.seconds,
        )
        self.kernels = [Kernel() for _ in range(CLIENTS)]
        for kernel in self.kernels:
            client = factory.buildProtocol(kernel.getPeer())
            client.makeConnection(kernel)
            client.dataReceived(b"SUBSCRIBE updates\n")
            kernel.sends.clear()

    def publish(self, payloads: list[bytes]) -> None:
        self.hub.publish(Batch(UPDATES, payloads))
        self.clock.advance(0)


def test_control_clients_share_what_is_encoded_once() -> None:
    world = ControlWorld()
    world.publish([b"%d" % number for number in range(100)])
    assert [len(kernel.sends) for kernel in world.kernels] == [1] * CLIENTS
    frame = world.kernels[0].sends[0]
    assert frame.count(b"\n") == 100
    assert all(kernel.sends[0] is frame for kernel in world.kernels)
    assert sum(kernel.counting.registrations for kernel in world.kernels) == 0


def test_a_control_client_that_fell_behind_costs_the_others_no_second_encoding() -> None:
    world = ControlWorld()
    world.kernels[7].room = 0
    for number in range(50):
        world.publish([b"%d" % number])
    others = [kernel for kernel in world.kernels if kernel.room]
    for round_ in range(50):
        assert len({id(kernel.sends[round_]) for kernel in others}) == 1
    assert len(world.kernels[7].sends) == 1
