"""The structure of the cost: counted, so that it cannot grow unseen, however fast the machine is."""

import pytest
from twisted.internet.task import Clock

from pushd.clients.line import LineFactory
from pushd.encoders import encode_lines
from pushd.hub import Hub
from pushd.message import Batch, Topic
from pushd.metrics import Metrics
from pushd.sources.redis import RedisSubscriber
from tests.clients import Kernel
from tests.test_line import TERMS

UPDATES = Topic(b"updates")
CLIENTS = 500


class World:
    """Everything between a read from Redis and the sends to the clients."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.hub = Hub(self.clock, 1024**2, Metrics())
        for topic in TERMS.topics:
            self.hub.open(topic)
        factory = LineFactory(TERMS, self.hub, self.clock, Metrics())
        self.kernels = [Kernel() for _ in range(CLIENTS)]
        for kernel in self.kernels:
            factory.buildProtocol(kernel.getPeer()).makeConnection(kernel)
        self.batches: list[Batch] = []
        self.redis = RedisSubscriber(self.deliver)

    def deliver(self, batch: Batch) -> None:
        self.batches.append(batch)
        self.hub.publish(batch)

    def settle(self) -> None:
        while self.clock.getDelayedCalls():
            self.clock.advance(0)


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
    assert frame == encode_lines(payloads)
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
