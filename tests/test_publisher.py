"""The publisher: one connection, in order, nothing twice, and never more than may wait."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock

from pushd.metrics import Reason
from pushd.redis_urls import Redis
from pushd.sources.connection import Node, RedisConnection, SourceError
from pushd.sources.publisher import MAX_WAITING, MAX_WAITING_BYTES, UNUSED_SECONDS, Publisher, PublisherBusy
from pushd.sources.routes import Route
from tests.upstream import TIMEOUT, Server, command


class Leading(Route):
    """A route of which the test says what is wrong with the node, and when it is left."""

    def __init__(self, server: Server) -> None:
        super().__init__(Node("node", server))
        self.wrong: Exception | None = None
        self.advanced = 0
        self.leaving: list[Deferred[None]] = []

    async def check(self, connection: RedisConnection, node: Node) -> None:
        if self.wrong:
            raise self.wrong

    def left(self, node: Node) -> "Deferred[None]":
        leaving: Deferred[None] = Deferred()
        self.leaving.append(leaving)
        return leaving

    def advance(self) -> None:
        self.advanced += 1


class World:
    """A publisher, and what has become of its messages: counts of receivers, or why not."""

    def __init__(self, redis: Redis | None = None) -> None:
        self.clock = Clock()
        self.server = Server(self.clock)
        self.route = Leading(self.server)
        self.publisher = Publisher(self.route, redis or Redis(), clock=self.clock, timeout=TIMEOUT)
        self.outcomes: list[object] = []

    def publish(self, payload: bytes = b"x", channel: bytes = b"updates") -> None:
        published: Deferred[Any] = self.publisher.publish(channel, payload)
        published.addErrback(lambda failure: failure.value).addCallback(self.outcomes.append)

    def settle(self) -> None:
        self.clock.advance(0)

    @property
    def reasons(self) -> list[Reason]:
        return [outcome.reason for outcome in self.outcomes if isinstance(outcome, SourceError)]


def publishing(*payloads: bytes) -> bytes:
    return b"".join(command(b"PUBLISH", b"updates", payload) for payload in payloads)


def connected() -> World:
    """Return a world whose publisher has just had an answer."""
    world = World()
    world.publish()
    world.server.asked()
    world.server.answer(b":1\r\n")
    assert world.outcomes.pop() == 1
    return world


def test_it_connects_at_the_first_message_and_stays_connected() -> None:
    world = World()
    assert world.server.attempts == 0
    for receivers in (2, 0):
        world.publish(b"\xff\r\n")
        assert world.server.asked() == publishing(b"\xff\r\n")
        world.server.answer(b":%d\r\n" % receivers)
    assert world.outcomes == [2, 0]
    assert world.server.attempts == 1


def test_messages_do_not_wait_for_each_other_and_keep_their_order() -> None:
    world = World(Redis(password=b"secret"))
    world.publish(b"1")
    world.publish(b"2")
    assert world.server.asked() == command(b"AUTH", b"secret")
    world.server.answer(b"+OK\r\n")
    assert world.server.asked() == publishing(b"1", b"2")
    world.publish(b"3")
    assert world.server.asked() == publishing(b"3")
    world.server.answer(b":1\r\n:2\r\n:3\r\n")
    assert world.outcomes == [1, 2, 3]


def test_what_redis_refuses_is_told_in_its_words_and_the_others_go_on() -> None:
    world = connected()
    world.publish()
    world.publish()
    world.server.answer(b"-NOPERM not this channel\r\n:1\r\n")
    refused, count = world.outcomes
    assert isinstance(refused, SourceError)
    assert (str(refused), refused.reason, count) == ("NOPERM not this channel", Reason.REFUSED, 1)


def test_what_was_written_when_the_connection_is_lost_has_failed_and_the_next_connects_anew() -> None:
    world = connected()
    world.publish(b"1")
    world.publish(b"2")
    world.server.connection.lose(ConnectionDone())
    assert world.reasons == [Reason.CLOSED] * 2
    assert world.server.attempts == 1
    world.publish(b"3")
    assert world.server.asked() == publishing(b"3")
    world.server.answer(b":1\r\n")
    assert world.outcomes[2:] == [1]


def test_what_comes_while_a_connection_is_ending_is_written_to_the_next() -> None:
    world = connected()
    world.publish(b"1")
    world.server.answer(b"+OK\r\n")
    world.publish(b"2")
    assert world.server.attempts == 1
    world.settle()
    assert world.reasons == [Reason.PROTOCOL]
    assert world.server.attempts == 2
    assert world.server.asked() == publishing(b"2")
    world.server.answer(b":1\r\n")


def test_a_message_that_is_published_again_when_it_has_failed() -> None:
    world = connected()
    published: Deferred[Any] = world.publisher.publish(b"updates", b"1")
    published.addErrback(lambda _: world.publish(b"again"))
    world.server.connection.lose(ConnectionDone())
    assert world.server.attempts == 2
    assert world.server.asked() == publishing(b"again")
    world.server.answer(b":1\r\n")
    assert world.outcomes == [1]


def test_without_a_connection_all_that_wait_fail_and_none_is_tried_again() -> None:
    world = World()
    world.server.refuses = True
    world.publish()
    assert world.reasons == [Reason.CONNECT]
    assert world.route.advanced == 1
    world.clock.advance(60)
    assert world.server.attempts == 1
    world.server.refuses = False
    world.publish()
    world.server.answer(b":1\r\n")
    assert world.outcomes[1:] == [1]


def test_a_message_that_is_published_again_without_a_connection() -> None:
    world = World()
    world.server.hangs = True
    published: Deferred[Any] = world.publisher.publish(b"updates", b"1")
    published.addErrback(lambda _: world.publish(b"again"))
    world.server.hangs = False
    world.clock.advance(TIMEOUT)
    assert world.server.asked() == publishing(b"again")
    world.server.answer(b":1\r\n")
    assert world.outcomes == [1]


def test_a_connection_that_does_not_come_about_in_time_is_not_waited_for() -> None:
    world = World()
    world.server.hangs = True
    for _ in range(3):
        world.publish()
    world.clock.advance(TIMEOUT)
    assert world.reasons == [Reason.CONNECT] * 3
    assert world.clock.getDelayedCalls() == []


def test_an_answer_that_does_not_come_in_time_is_not_waited_for() -> None:
    world = connected()
    world.publish()
    world.clock.advance(TIMEOUT)
    assert str(world.outcomes[0]) == "no answer to PUBLISH within 5 s"
    assert not world.server.connection.connected


@pytest.mark.parametrize("answer", [b"+OK\r\n", b"$1\r\n1\r\n", b"nonsense\r\n"])
def test_what_is_no_answer_is_a_protocol_error(answer: bytes) -> None:
    world = connected()
    world.publish()
    world.publish()
    world.server.answer(answer)
    world.settle()
    assert world.reasons == [Reason.PROTOCOL] * 2
    assert not world.server.connection.connected


def test_a_server_that_is_not_the_right_one_is_not_published_to(logged_errors: list[str]) -> None:
    world = World()
    world.route.wrong = SourceError(Reason.REFUSED, "it is a replica, not a master")
    world.publish()
    world.settle()
    world.route.wrong = ValueError("a bug")
    world.publish()
    world.settle()
    assert world.reasons == [Reason.REFUSED, Reason.PROTOCOL]
    assert "a bug" in logged_errors.pop()
    assert world.server.asked() == b""
    assert not any(connection.connected for connection in world.server.connections)


def test_a_server_that_another_has_taken_the_place_of_is_left() -> None:
    world = connected()
    world.publish(b"1")
    world.route.leaving[0].callback(None)
    world.settle()
    assert world.reasons == [Reason.MOVED]
    world.publish(b"2")
    assert world.server.asked() == publishing(b"2")
    world.server.answer(b":1\r\n")
    assert world.server.attempts == 2


def test_it_takes_no_more_than_may_wait() -> None:
    world = World(Redis(password=b"secret"))
    for _ in range(MAX_WAITING):
        world.publish()
    world.publish()
    (busy,) = world.outcomes
    assert isinstance(busy, PublisherBusy)
    assert str(busy) == "1024 messages wait for Redis already"
    world.server.answer(b"+OK\r\n")
    world.publish()
    assert len(world.outcomes) == 2  # written ones wait, too
    world.server.answer(b":1\r\n")
    world.publish()
    assert world.outcomes[2:] == [1]
    world.server.answer(b":1\r\n" * MAX_WAITING)
    assert world.outcomes[3:] == [1] * MAX_WAITING


def test_it_takes_no_more_bytes_than_may_wait() -> None:
    world = connected()
    world.publish(b"." * MAX_WAITING_BYTES)
    world.publish(b"")
    world.publish(b".")
    assert isinstance(world.outcomes.pop(), PublisherBusy)
    world.server.answer(b":1\r\n:1\r\n")
    world.publish(b".")
    world.server.answer(b":1\r\n")
    assert world.outcomes == [1, 1, 1]


def test_a_message_that_nobody_waits_for_any_more_is_published_all_the_same() -> None:
    world = connected()
    world.publisher.publish(b"updates", b"1").addErrback(lambda _: None).cancel()
    world.publish(b"2")
    world.server.answer(b":1\r\n:2\r\n")
    assert world.outcomes == [2]


def test_a_connection_that_is_not_used_is_closed() -> None:
    world = connected()
    world.clock.advance(UNUSED_SECONDS - 1)
    world.publish()
    world.server.answer(b":1\r\n")
    world.clock.advance(UNUSED_SECONDS - 1)
    assert world.server.connection.connected
    world.clock.advance(1)
    assert not world.server.connection.connected
    world.settle()
    assert world.clock.getDelayedCalls() == []
    world.publish()
    world.server.answer(b":1\r\n")
    assert world.outcomes == [1, 1]
    assert world.server.attempts == 2


def test_a_connection_whose_answer_is_waited_for_is_used() -> None:
    world = World()
    world.publisher = Publisher(world.route, Redis(), clock=world.clock, timeout=2 * UNUSED_SECONDS)
    world.publish()
    world.clock.advance(UNUSED_SECONDS)
    assert world.server.connection.connected
    world.server.answer(b":1\r\n")
    world.clock.advance(UNUSED_SECONDS)
    assert not world.server.connection.connected


@pytest.mark.parametrize("state", ["unused", "connecting", "ready", "waiting", "closed"])
def test_stopping_is_immediate_in_every_state(state: str) -> None:
    world = World() if state in ("unused", "connecting") else connected()
    world.server.hangs = state == "connecting"
    if state == "closed":
        world.clock.advance(UNUSED_SECONDS)
        world.settle()
    if state in ("connecting", "waiting"):
        world.publish()
    world.publisher.stop()
    world.settle()
    world.publish()
    assert {str(outcome) for outcome in world.outcomes} == {"pushd is stopping"}
    assert len(world.outcomes) == 1 + (state in ("connecting", "waiting"))
    assert not any(connection.connected for connection in world.server.connections)
    assert world.clock.getDelayedCalls() == []
