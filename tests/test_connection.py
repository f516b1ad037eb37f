"""One connection to Redis: how it is made, what bounds a reply, and what ends it."""

from collections.abc import Sequence
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IHostnameResolver, IResolutionReceiver, IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from zope.interface import implementer

from pushd.errors import SettingsError
from pushd.metrics import Reason
from pushd.redis_urls import Access, Address
from pushd.sources.connection import (
    MAX_REPLY_BYTES,
    Node,
    RedisConnection,
    SourceError,
    connector,
    unix_endpoint,
)
from tests.upstream import TIMEOUT, Server, bulk, command

LOOPBACK = "127.0.0.1"


class World:
    """A connection to a server in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.server = Server(self.clock)
        self.connection = RedisConnection(self.clock, TIMEOUT)
        self.failures: list[SourceError] = []
        Deferred.fromCoroutine(self.connection.open(Node("redis", self.server), Access()))
        self.connection.lost.addCallback(self.failures.append)

    def settle(self) -> None:
        self.clock.advance(0)


def test_a_reply_that_does_not_end_is_given_up() -> None:
    world = World()
    answer = world.connection.ask("PING", b"PING")
    answer.addErrback(lambda _: None)
    world.server.answer(b"$%d\r\n" % (2 * MAX_REPLY_BYTES))
    chunk = b"x" * (1024 * 1024)
    sent = 0
    while world.server.connection.connected:
        world.server.answer(chunk)
        sent += len(chunk)
    world.settle()
    assert sent <= MAX_REPLY_BYTES + len(chunk)
    assert str(world.failures[0]) == f"protocol error: a reply of more than {MAX_REPLY_BYTES} bytes"
    assert world.failures[0].reason is Reason.PROTOCOL


def test_many_replies_are_no_long_reply() -> None:
    world = World()
    reply = bulk(b"x" * 1024 * 1024)
    for _ in range(MAX_REPLY_BYTES // len(reply) + 2):
        answers: list[Any] = []
        world.connection.ask("GET", b"GET").addCallback(answers.append)
        world.server.answer(reply)
        assert len(answers[0]) == 1024 * 1024
    assert world.server.connection.connected


def test_a_late_answer_ends_the_connection_and_all_that_is_asked() -> None:
    world = World()
    failed: list[str] = []
    for command_name in ("FIRST", "SECOND"):
        asked = world.connection.ask(command_name, command_name.encode())
        asked.addErrback(lambda failure: failed.append(str(failure.value)))
        world.clock.advance(1)
    world.clock.advance(TIMEOUT - 2)
    world.settle()
    assert failed == ["no answer to FIRST within 5 s"] * 2
    assert str(world.failures[0]) == failed[0]
    late = world.connection.ask("THIRD", b"THIRD")
    late.addErrback(lambda failure: failed.append(str(failure.value)))
    assert failed[2] == failed[0]
    assert world.clock.getDelayedCalls() == []


def test_a_question_can_be_given_up() -> None:
    world = World()
    cancelled: list[bool] = []
    answer = world.connection.ask("PING", b"PING")
    answer.addErrback(lambda failure: cancelled.append(bool(failure.check(CancelledError))))
    answer.cancel()
    assert cancelled == [True]
    assert world.clock.getDelayedCalls() == []
    assert world.server.connection.connected


def test_the_first_reason_is_the_one_that_is_told() -> None:
    world = World()
    world.connection.give_up(Reason.PROBE, "silent")
    world.connection.give_up(Reason.CLOSED, "done")
    world.settle()
    assert (str(world.failures[0]), world.failures[0].reason) == ("silent", Reason.PROBE)


@pytest.mark.parametrize("access", [Access(), Access(tls=True)])
@pytest.mark.parametrize("host", ["localhost", "::1", "redis.example"])
def test_there_is_an_endpoint_for_every_address(access: Access, host: str, reactor: Any) -> None:
    assert IStreamClientEndpoint.providedBy(connector(access, TIMEOUT, reactor)(Address(host, 6379)))
    assert IStreamClientEndpoint.providedBy(unix_endpoint("/run/redis.sock", TIMEOUT, reactor))


def test_authorities_that_are_none_are_a_wrong_setting(reactor: Any) -> None:
    with pytest.raises(SettingsError, match=r"--redis-ca: .*allowed: "):
        connector(Access(tls=True, ca=b"not a certificate"), TIMEOUT, reactor)


@implementer(IHostnameResolver)
class Resolver:
    """What names mean, until that changes."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.asked = 0

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[Any] | None = None,
        transportSemantics: str = "TCP",
    ) -> Any:
        self.asked += 1
        for address in self.addresses:
            resolutionReceiver.addressResolved(IPv4Address("TCP", address, portNumber))
        resolutionReceiver.resolutionComplete()


@pytest_twisted.ensureDeferred
async def test_a_name_is_looked_up_at_each_attempt_and_all_its_addresses_are_tried(reactor: Any) -> None:
    resolver = Resolver()
    previous = reactor.installNameResolver(resolver)
    listening: Any = await TCP4ServerEndpoint(reactor, 0, interface="127.0.0.3").listen(
        Factory.forProtocol(Protocol)
    )
    try:
        connect = connector(Access(), TIMEOUT, reactor)
        node = Node("redis", connect(Address("redis.example", listening.getHost().port)))
        # Nobody listens at the first ones; at last the name leads somewhere else.
        for addresses in (["127.0.0.1"], [], ["127.0.0.1", "127.0.0.2"]):
            resolver.addresses = addresses
            with pytest.raises(SourceError) as caught:
                await RedisConnection(reactor, TIMEOUT).open(node, Access())
            assert caught.value.reason is Reason.CONNECT
        resolver.addresses = ["127.0.0.1", "127.0.0.3"]
        connection = RedisConnection(reactor, TIMEOUT)
        await connection.open(node, Access())
        assert connection.transport.getPeer().host == "127.0.0.3"
        assert resolver.asked == 4
        connection.give_up(Reason.CLOSED, "done")
        await connection.lost.addTimeout(TIMEOUT, reactor)
    finally:
        await listening.stopListening()
        reactor.installNameResolver(previous)


def test_giving_up_while_a_name_is_looked_up_is_no_failure_of_the_name() -> None:
    clock = Clock()
    server = Server(clock)
    server.hangs = True
    outcome: list[Any] = []
    opening = Deferred.fromCoroutine(RedisConnection(clock, TIMEOUT).open(Node("redis", server), Access()))
    opening.addErrback(lambda failure: outcome.append(failure.type))
    opening.cancel()
    assert outcome == [CancelledError]


def test_commands_are_sent_as_they_are() -> None:
    world = World()
    world.connection.ask("X", b"SET", b"\xff\r\n", b"").addErrback(lambda _: None)
    assert world.server.asked() == command(b"SET", b"\xff\r\n", b"")
