"""The Redis source, on a clock and in memory: what it asks, how it notices, tries again, and what it says."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone

from pushd.message import Batch, Kind, SourceGap, Topic
from pushd.metrics import Reason
from pushd.redis_urls import Redis
from pushd.sources.attempt import ASK_AGAIN_SECONDS, STEADY_SECONDS
from pushd.sources.connection import Node, RedisConnection, SourceError
from pushd.sources.routes import Route
from tests.upstream import (
    BINARY,
    NEWS,
    PING,
    PROBE,
    PROBE_SECONDS,
    TIMEOUT,
    UPDATES,
    Server,
    World,
    command,
    confirmed,
    published,
    stop_all,
    subscribed,
    subscribing,
)

SHARD = Topic(b"part", Kind.SHARD)


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    stop_all()


PONG = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"


def test_it_subscribes_to_each_topic_by_its_exact_name(logged: list[str]) -> None:
    world = World(UPDATES, NEWS, BINARY, SHARD).start()
    world.answer_info()
    assert world.server.asked() == b"".join(map(subscribing, world.topics))
    for topic in world.topics:
        assert logged == []
        world.server.answer(confirmed(topic))
    assert logged == [
        'Subscribed to "updates", pattern "news.*", "\\\\xff\\r\\n\\\\xfe", shard channel "part" at'
        " redis://localhost:6379"
    ]
    assert world.gaps == []


def test_many_topics_are_named_in_part(logged: list[str]) -> None:
    subscribed(*(Topic(b"%d" % number) for number in range(8)))
    assert logged[0].startswith('Subscribed to "0", "1", "2", "3", "4", and 3 more at redis://')


def test_a_password_is_sent_first_and_the_rest_only_after_its_ok() -> None:
    world = World(redis=Redis(username=b"me", password=b"p\xffss")).start()
    assert world.server.asked() == command(b"AUTH", b"me", b"p\xffss")
    world.server.answer(b"+OK\r\n")
    world.answer_info()
    assert world.server.asked() == subscribing(UPDATES)


def test_it_can_be_held_back_once_it_has_subscribed() -> None:
    world = World().start()
    world.source.pauseProducing()
    assert world.server.connection.producerState == "producing"
    world.subscribe()
    world.source.pauseProducing()
    assert world.server.connection.producerState == "paused"
    world.source.resumeProducing()
    assert world.server.connection.producerState == "producing"
    world.server.connection.lose(ConnectionDone())
    world.source.pauseProducing()
    world.source.resumeProducing()


@pytest.mark.parametrize(
    ("redis", "answers", "why", "reason"),
    [
        (Redis(), [b"-ERR max number of clients reached\r\n"], "ERR max number of clients", "refused"),
        (Redis(), [b"-NOAUTH Authentication required.\r\n"] * 2, "NOAUTH Authentication required", "refused"),
        (Redis(), [b"-LOADING Redis is loading\r\n"] * 2, "LOADING Redis is loading", "refused"),
        (Redis(password=b"x"), [b"-WRONGPASS invalid\r\n"], "WRONGPASS invalid", "refused"),
        (Redis(password=b"x"), [b"-NOPERM this user\r\n"], "NOPERM this user", "refused"),
        (Redis(), [b"HTTP/1.1 400 Bad Request\r\n"], "protocol error: ", "protocol"),
        (Redis(), [b"*4294967295\r\n"], "protocol error: MemoryError", "protocol"),
        (Redis(), [b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n:1\r\n"], "protocol error: a message", "protocol"),
        (Redis(), [b"$0\r\n\r\n", confirmed(NEWS)], 'protocol error: "updates" is not what', "protocol"),
        (Redis(), [b"$0\r\n\r\n", b"+OK\r\n"], 'protocol error: "updates" is not what', "protocol"),
        (Redis(), [b"$0\r\n\r\n", confirmed(UPDATES), b"-ERR bye\r\n"], "ERR bye", "refused"),
        (
            Redis(),
            [b"$0\r\n\r\n", confirmed(UPDATES) * 2],
            "protocol error: an answer to nothing",
            "protocol",
        ),
        (Redis(), [published([b"x"], b"other")], "protocol error: a message that was not", "protocol"),
    ],
)
def test_whatever_redis_refuses_is_tried_again(
    redis: Redis, answers: list[bytes], why: str, reason: str, logged: list[str]
) -> None:
    world = World(redis=redis).start()
    for answer in answers:
        world.server.answer(answer)
    world.settle()
    assert world.server.connection.connected is False
    assert logged[-1].startswith(f"No subscription at redis://localhost:6379: {why}")
    assert logged[-1].endswith("; trying again until there is one")
    assert world.metrics.reconnects == {Reason(reason): 1}
    world.clock.advance(1)
    assert world.server.attempts == 2


def test_a_topic_that_is_refused_is_named_and_does_not_disturb_the_others(logged: list[str]) -> None:
    world = World(UPDATES, NEWS).start()
    world.answer_info()
    world.server.answer(b"-NOPERM no\r\n" + confirmed(NEWS))
    assert logged == [
        'redis://localhost:6379 refuses "updates": NOPERM no; asking again until it is allowed',
        'Subscribed to pattern "news.*" at redis://localhost:6379',
    ]
    world.server.asked()
    world.clock.advance(ASK_AGAIN_SECONDS)
    assert world.server.asked() == subscribing(UPDATES)
    world.server.answer(b"-NOPERM no\r\n")
    world.clock.advance(ASK_AGAIN_SECONDS)
    world.server.answer(PONG + confirmed(UPDATES) + published([b"one"]))
    assert logged[2].startswith('Subscribed to "updates" at redis://localhost:6379 again, after 10.0 s')
    assert len(logged) == 3
    assert world.batches == [Batch(UPDATES, [b"one"])]
    # It might have missed what was published before it was allowed; the other one did not.
    assert world.gaps == [(UPDATES, SourceGap(0, 2 * ASK_AGAIN_SECONDS))]
    world.clock.advance(ASK_AGAIN_SECONDS / 2)
    assert world.server.connection.connected


def test_all_topics_may_be_refused_for_a_while(logged: list[str]) -> None:
    world = World().start()
    world.answer_info()
    world.server.answer(b"-NOPERM no\r\n")
    assert len(logged) == 1
    world.clock.advance(ASK_AGAIN_SECONDS)
    world.server.answer(confirmed(UPDATES))
    assert logged[1].startswith('Subscribed to "updates" at redis://localhost:6379 again, after 5.0 s')
    assert len(logged) == 2
    assert world.metrics.unsubscribed_seconds == ASK_AGAIN_SECONDS


@pytest.mark.parametrize("answer", [b"-NOPERM no\r\n", b"-ERR unknown command 'INFO'\r\n", b"+OK\r\n"])
def test_redis_need_not_tell_about_itself(answer: bytes) -> None:
    world = World().start()
    world.server.asked()
    world.server.answer(answer)
    assert world.server.asked() == subscribing(UPDATES)


@pytest.mark.parametrize(
    ("redis", "asked"),
    [
        (Redis(), 'SUBSCRIBE "updates"'),
        (Redis(password=b"secret"), "AUTH"),
    ],
)
def test_an_answer_that_does_not_come_in_time_is_not_waited_for(
    redis: Redis, asked: str, logged: list[str]
) -> None:
    world = World(redis=redis).start()
    if redis.password is None:
        world.answer_info()
    world.clock.advance(TIMEOUT)
    world.settle()
    assert not world.server.connection.connected
    assert logged == [
        f"No subscription at redis://localhost:6379: no answer to {asked} within 5 s;"
        " trying again until there is one"
    ]
    assert world.metrics.reconnects == {Reason.TIMEOUT: 1}


def test_delays_grow_and_start_again_after_a_success() -> None:
    world = World()
    world.server.refuses = True
    world.start()
    for delay, attempts in ((1, 2), (2, 3), (3, 4)):
        world.clock.advance(delay - 0.1)
        assert world.server.attempts == attempts - 1
        world.clock.advance(0.1)
        assert world.server.attempts == attempts
    world.server.refuses = False
    world.clock.advance(4)
    # Not a success, since it does not last: the delays go on to grow.
    world.subscribe()
    world.server.connection.lose(ConnectionDone())
    world.clock.advance(4)
    assert world.server.attempts == 5
    world.clock.advance(1)
    assert world.server.attempts == 6
    world.subscribe()
    world.clock.advance(STEADY_SECONDS)
    world.server.connection.lose(ConnectionDone())
    world.clock.advance(1)
    assert world.server.attempts == 7


def test_an_outage_is_one_line_at_its_start_one_at_its_end_and_one_a_minute(logged: list[str]) -> None:
    world = subscribed()
    world.server.refuses = True
    world.server.connection.lose(ConnectionDone())
    for _ in range(150):
        world.clock.advance(1)
    world.server.refuses = False
    world.clock.advance(30)
    world.subscribe()
    assert [line.partition(" redis://")[0] for line in logged] == [
        'Subscribed to "updates" at',
        "No subscription at",
        "Still no subscription at",
        "Still no subscription at",
        'Subscribed to "updates" at',
    ]
    assert logged[-1].endswith(
        " again, after 180.0 s: what was published from 1970-01-01T00:00:00Z to 1970-01-01T00:03:00Z is"
        " missing, unknown how much"
    )
    assert world.metrics.unsubscribed_seconds == 180
    assert world.gaps == [(UPDATES, SourceGap(0, 180))]
    assert world.metrics.reconnects == {Reason.CLOSED: 1, Reason.CONNECT: 16}


def test_a_source_gap_lies_before_what_comes_after_it() -> None:
    entries: list[object] = []
    world = subscribed(UPDATES, BINARY, deliver=entries.append)
    world.clock.advance(PING)
    world.server.answer(PONG)
    world.clock.advance(3)
    world.server.answer(published([b"one"]))
    world.clock.advance(4)
    world.server.connection.lose(ConnectionDone())
    world.clock.advance(1)
    world.told.gaps = entries  # type: ignore[assignment]
    world.answer_info()
    world.server.answer(confirmed(UPDATES) + confirmed(BINARY) + published([b"two"]))
    # What was published after the last ping that was answered may be lost.
    assert entries == [
        Batch(UPDATES, [b"one"]),
        (UPDATES, SourceGap(PING, PING + 8)),
        (BINARY, SourceGap(PING, PING + 8)),
        Batch(UPDATES, [b"two"]),
    ]


def test_no_subscription_from_the_start_is_a_gap_too() -> None:
    world = World()
    world.server.refuses = True
    world.start()
    world.server.refuses = False
    world.clock.advance(1)
    world.subscribe()
    assert world.gaps == [(UPDATES, SourceGap(0, 1))]
    assert world.metrics.unsubscribed_seconds == 1


def test_a_loss_during_the_handshake_is_told_by_its_own_reason(logged: list[str]) -> None:
    world = World().start()
    world.server.connection.lose(SSL.Error([("SSL routines", "", "certificate verify failed")]))
    assert "TLS: certificate verify failed (it has expired, or no" in logged[-1]
    assert world.metrics.reconnects == {Reason.TLS: 1}


def test_a_silent_peer_is_replaced(logged: list[str]) -> None:
    world = subscribed()
    world.server.asked()
    world.clock.advance(PING)
    assert world.server.asked() == command(b"PING")
    world.server.answer(PONG)
    world.clock.advance(PING)
    assert world.server.asked() == command(b"PING")
    world.clock.advance(TIMEOUT)
    world.settle()
    assert "no answer to PING within 5 s; trying again" in logged[-1]
    world.clock.advance(1)
    world.subscribe()
    assert world.gaps == [(UPDATES, SourceGap(PING, 2 * PING + TIMEOUT + 1))]
    assert world.metrics.reconnects == {Reason.TIMEOUT: 1}


def test_what_is_no_answer_to_a_ping_is_a_protocol_error(logged: list[str]) -> None:
    world = subscribed()
    world.clock.advance(PING)
    world.server.answer(b"+OK\r\n")
    world.settle()
    assert "protocol error: that is no answer to PING; trying again" in logged[-1]
    assert len(world.clock.getDelayedCalls()) == 1  # the next attempt


def test_an_answer_behind_messages_that_still_come_is_waited_for() -> None:
    world = subscribed()
    world.clock.advance(PING)
    subscription = world.server.connection
    for _ in range(5):
        world.clock.advance(TIMEOUT / 2)
        subscription.answer(published([b"x"]))
        world.clock.advance(TIMEOUT / 2)
        world.settle()
    assert subscription.connected
    # Bytes of a reply that does not end are none.
    subscription.answer(b"$100\r\n")
    world.clock.advance(TIMEOUT / 2)
    subscription.answer(b"x")
    world.clock.advance(TIMEOUT / 2)
    world.settle()
    assert not subscription.connected


def test_what_is_not_read_because_it_is_held_back_is_no_sign_of_death() -> None:
    world = subscribed()
    world.clock.advance(PING)
    world.source.pauseProducing()
    subscription = world.server.connection
    for _ in range(5):
        world.clock.advance(TIMEOUT)
        world.settle()
    assert subscription.connected
    world.source.resumeProducing()
    world.clock.advance(TIMEOUT)
    world.settle()
    assert not subscription.connected


def probing(**options: Any) -> World:
    """Return a subscribed world whose first probe has been published and answered for."""
    world = World(probes=True, **options).start()
    world.answer_info()
    assert world.server.asked() == subscribing(PROBE) + subscribing(UPDATES)
    world.server.answer(confirmed(PROBE) + confirmed(UPDATES))
    world.clock.advance(0)
    return world


def publish_probe(world: World, number: int, answer: bytes = b":1\r\n") -> None:
    """Have the probe's own connection, the newest one, take a probe."""
    assert world.server.asked() == command(b"PUBLISH", PROBE.name, b"%d" % number)
    world.server.answer(answer)
    world.settle()


def come_back(world: World, number: int) -> None:
    world.server.connections[0].answer(published([b"%d" % number], PROBE.name))


def pong(world: World) -> None:
    """Let time pass until the next probe, with a Redis that answers PING."""
    for _ in range(int(PROBE_SECONDS / PING)):
        world.clock.advance(PING)
        if world.server.connections[0].connected:
            world.server.connections[0].answer(PONG)


def test_two_silent_probes_in_a_row_replace_a_redis_that_answers_ping(logged: list[str]) -> None:
    world = probing()
    publish_probe(world, 1)
    come_back(world, 1)
    pong(world)
    publish_probe(world, 2)
    pong(world)
    publish_probe(world, 3)
    come_back(world, 3)
    pong(world)
    for number in (4, 5):
        assert world.server.connections[0].connected
        publish_probe(world, number)
        pong(world)
    world.settle()
    assert not world.server.connections[0].connected
    assert "2 probes in a row were published and did not arrive; trying again" in logged[-1]
    assert (world.metrics.probes_sent, world.metrics.probes_missed) == (5, 3)
    assert world.batches == []
    world.clock.advance(1)
    world.answer_info()
    world.server.answer(confirmed(PROBE) + confirmed(UPDATES))
    # One was lost between two that were not; then nothing is proven since the last that came back.
    assert world.gaps == [
        (UPDATES, SourceGap(0, 2 * PROBE_SECONDS)),
        (UPDATES, SourceGap(2 * PROBE_SECONDS, 5 * PROBE_SECONDS + 1)),
    ]


def test_a_probe_that_could_not_be_published_proves_nothing() -> None:
    world = probing()
    publish_probe(world, 1)
    pong(world)
    for number in range(2, 6):
        publish_probe(world, number, b"-LOADING later\r\n")
        pong(world)
    world.server.refuses = True
    pong(world)
    pong(world)
    assert world.server.connections[0].connected
    assert (world.metrics.probes_sent, world.metrics.probes_missed) == (1, 1)


@pytest.mark.parametrize("forbidden", ["to subscribe", "to publish"])
def test_an_acl_that_forbids_the_probe_is_said_once(forbidden: str, logged: list[str]) -> None:
    world = World(probes=True).start()
    for attempt in (1, 2):
        world.answer_info()
        if forbidden == "to subscribe":
            world.server.answer(b"-NOPERM no\r\n" + confirmed(UPDATES))
        else:
            world.server.answer(confirmed(PROBE) + confirmed(UPDATES))
            world.clock.advance(0)
            publish_probe(world, attempt, b"-NOPERM no\r\n")
        subscription = next(c for c in world.server.connections if c.connected)
        subscription.answer(published([b"one"]))
        assert len(world.batches) == attempt
        subscription.lose(ConnectionDone())
        world.clock.advance(attempt)
    assert [line for line in logged if "Probing" in line] == [
        "Probing does not work (NOPERM no): a wrong or demoted Redis is not noticed; allow the channels"
        " pushd:probe:*, or say --redis-probe 0"
    ]


def test_it_says_when_redis_has_cut_off_clients_for_their_buffers(logged: list[str]) -> None:
    world = World().start()
    world.answer_info(cut_off=3)
    world.confirm()
    for delay, cut_off in ((1, 3), (2, 4)):
        world.server.connection.lose(ConnectionDone())
        world.clock.advance(delay)
        world.answer_info(cut_off=cut_off)
        world.confirm()
    assert "output buffer" not in logged[2]
    assert "; Redis has cut off 1 clients for their output buffers since pushd last connected" in logged[4]


def test_one_batch_that_cannot_be_delivered_does_not_end_the_others(logged_errors: list[str]) -> None:
    delivered: list[Topic] = []

    def deliver(batch: Batch) -> None:
        delivered.append(batch.topic)
        if batch.topic == UPDATES:
            raise ValueError("no such thing")

    world = subscribed(UPDATES, BINARY, deliver=deliver)
    world.server.answer(published([b"one"]) + published([b"two"], BINARY.name))
    assert delivered == [UPDATES, BINARY]
    assert world.server.connection.connected
    assert "no such thing" in logged_errors.pop()


@pytest.mark.parametrize("state", ["connecting", "asking", "subscribed", "refused", "waiting"])
def test_stopping_is_immediate_in_every_state(state: str) -> None:
    world = World()
    world.server.hangs = state == "connecting"
    world.server.refuses = state == "waiting"
    world.start()
    if state == "subscribed":
        world.subscribe()
    if state == "refused":
        world.answer_info()
        world.server.answer(b"-NOPERM no\r\n")
    world.source.stopService()
    world.settle()
    assert not any(connection.connected for connection in world.server.connections)
    assert world.clock.getDelayedCalls() == []
    world.clock.advance(3600)
    assert world.server.attempts == 1


def test_stopping_ends_a_probe_and_counts_an_outage() -> None:
    world = probing()
    assert len(world.server.connections) == 2
    world.source.stopService()
    world.settle()
    assert not any(connection.connected for connection in world.server.connections)
    assert world.clock.getDelayedCalls() == []
    outage = World()
    outage.server.refuses = True
    outage.start()
    outage.clock.advance(1.5)
    outage.source.stopService()
    outage.outages.close()
    outage.outages.close()
    assert outage.metrics.unsubscribed_seconds == 1.5


def test_a_source_that_was_never_started_can_be_stopped() -> None:
    world = World()
    world.source.stopService()
    assert (world.server.attempts, world.clock.getDelayedCalls()) == (0, [])


class Leading(Route):
    """A route of which the test says where it leads, and what is wrong there."""

    def __init__(self) -> None:
        self.server: Server
        self.unknown: Exception | None = None
        self.wrong: Exception | None = None
        self.leaving: Deferred[None] = Deferred()
        self.found = 0
        self.advanced = 0

    def advance(self) -> None:
        self.advanced += 1

    async def find(self) -> Node:
        self.found += 1
        if self.unknown:
            raise self.unknown
        return Node(f"node {self.found}", self.server)

    async def check(self, connection: RedisConnection, node: Node) -> None:
        if self.wrong:
            raise self.wrong

    def left(self, node: Node) -> "Deferred[None]":
        self.leaving = Deferred()
        return self.leaving

    def redirect(self, node: Node, failure: SourceError) -> bool:
        return failure.reason is Reason.MOVED


def led(topics: tuple[Topic, ...] = (), **options: Any) -> tuple[World, Leading]:
    """Return a world that is not started yet, and its route."""
    route = Leading()
    world = World(*topics, route=route, **options)
    route.server = world.server
    return world, route


def test_a_route_that_leads_nowhere_is_told_by_the_url(logged: list[str]) -> None:
    world, route = led()
    route.unknown = SourceError(Reason.CONNECT, "nobody knows")
    world.start()
    assert logged == [
        "No subscription at redis://localhost:6379: nobody knows; trying again until there is one"
    ]
    route.unknown = None
    world.clock.advance(1)
    world.subscribe()
    assert world.gaps == [(UPDATES, SourceGap(0, 1))]


@pytest.mark.parametrize("state", ["connecting", "asking", "subscribed"])
def test_a_server_is_left_at_once_when_another_is_the_right_one(state: str, logged: list[str]) -> None:
    world, route = led()
    world.server.hangs = state == "connecting"
    world.start()
    if state == "subscribed":
        world.subscribe()
    world.server.hangs = False
    route.leaving.callback(None)
    world.settle()
    world.subscribe()
    world.settle()
    assert route.found == 2
    assert sum(connection.connected for connection in world.server.connections) == 1
    if state == "subscribed":
        assert "No subscription at node 1: another server has taken its place" in logged[1]
        assert world.metrics.reconnects == {Reason.MOVED: 1}
        assert len(world.gaps) == 1
    else:  # to be sent on before it was subscribed is no outage
        assert logged == ['Subscribed to "updates" at node 2']
        assert world.gaps == []


def test_a_gap_at_a_server_that_was_the_wrong_one_begins_with_the_last_probe() -> None:
    world, route = led(probes=True)
    world.start()
    world.answer_info()
    world.server.answer(confirmed(PROBE) + confirmed(UPDATES))
    world.clock.advance(0)
    publish_probe(world, 1)
    come_back(world, 1)
    world.clock.advance(PING)
    world.server.connections[0].answer(PONG)
    world.clock.advance(1)
    route.leaving.callback(None)
    world.settle()
    world.answer_info()
    world.server.answer(confirmed(PROBE) + confirmed(UPDATES))
    assert world.gaps == [(UPDATES, SourceGap(0, PING + 1))]


def test_a_mistake_of_our_own_does_not_end_the_source(logged: list[str], logged_errors: list[str]) -> None:
    world, route = led()
    route.wrong = ValueError("a bug")
    world.start()
    assert "No subscription at node 1: a bug; trying again" in logged[-1]
    assert "a bug" in logged_errors.pop()
    route.wrong = None
    world.clock.advance(1)
    world.subscribe()
    assert "again, after 1.0 s" in logged[-1]


words = (
    b"*",
    b"$",
    b":",
    b"-",
    b"+",
    b"3",
    b"1",
    b"-1",
    b"\r\n",
    b"*3\r\n",
    b"*0\r\n",
    b"$-1\r\n",
    b"%1\r\n",
)
RESP3 = (b"%1\r\n", b"~1\r\n", b">3\r\n", b"_\r\n", b",1.5\r\n")
names = (b"message", b"pmessage", b"smessage", b"subscribe", b"sunsubscribe", b"pong", b"updates", b"")
pieces = st.sampled_from([*words, *RESP3, *(b"$%d\r\n%s\r\n" % (len(name), name) for name in names)])


@given(st.lists(pieces | st.binary(max_size=5), max_size=30), st.integers(0, 3), st.data())
def test_whatever_redis_sends_is_delivered_or_ends_in_a_clean_reconnect(
    parts: list[bytes], stage: int, data: st.DataObject
) -> None:
    world = World(UPDATES, SHARD, probes=True).start()
    answers = [b"$0\r\n\r\n", confirmed(PROBE), confirmed(UPDATES) + confirmed(SHARD)]
    connection = world.server.connection
    for answer in answers[:stage]:
        connection.answer(answer)
    stream = b"".join(parts)
    while stream and connection.connected:
        end = data.draw(st.integers(1, len(stream)))
        connection.answer(stream[:end])
        stream = stream[end:]
    assert all(type(payload) is bytes for batch in world.batches for payload in batch.payloads)
    if connection.connected:
        connection.lose(ConnectionDone())
    world.settle()
    world.clock.advance(1)
    replacement = world.server.connections[-1]
    assert replacement is not connection
    assert replacement.value() == command(b"INFO", b"stats")
    world.source.stopService()
    world.settle()
    assert world.clock.getDelayedCalls() == []


def test_a_topic_that_is_confirmed_before_another_is_sent_away_has_a_gap() -> None:
    world, route = led(topics=(UPDATES, NEWS))
    world.start()
    world.answer_info()
    world.server.answer(confirmed(UPDATES) + published([b"one"]))
    world.clock.advance(1)
    world.server.answer(b"-MOVED 1 h:1\r\n")
    world.settle()
    world.subscribe()
    assert route.found == 2
    assert world.gaps == [(UPDATES, SourceGap(0, 1)), (NEWS, SourceGap(0, 1))]
    assert world.metrics.reconnects == {Reason.MOVED: 1}


@pytest.mark.parametrize("broken", ["find", "redirect"])
def test_a_route_that_fails_by_a_mistake_of_ours_is_asked_again(
    broken: str, logged: list[str], logged_errors: list[str]
) -> None:
    world, route = led()

    def fail(*_: object) -> Any:
        raise ValueError("a bug")

    working = getattr(route, broken)
    setattr(route, broken, fail)
    world.start()
    if broken == "redirect":
        world.server.connection.lose(ConnectionDone())
    assert ": a bug; trying again until there is one" in logged[-1]
    assert "a bug" in logged_errors.pop()
    setattr(route, broken, working)
    world.clock.advance(1)
    world.subscribe()
    assert "again, after 1.0 s" in logged[-1]


def test_a_source_that_is_held_back_when_it_comes_back_stays_held_back() -> None:
    world = subscribed()
    world.source.pauseProducing()
    world.server.connection.lose(ConnectionDone())
    world.clock.advance(1)
    assert world.server.connection.producerState == "producing"
    world.subscribe()
    assert world.server.connection.producerState == "paused"
    world.source.resumeProducing()
    assert world.server.connection.producerState == "producing"


def test_probes_behind_what_is_not_read_are_not_judged() -> None:
    world = probing()
    subscription = world.server.connections[0]
    world.source.pauseProducing()
    for number in range(1, 5):
        publish_probe(world, number)
        world.clock.advance(PROBE_SECONDS)
    world.source.resumeProducing()
    subscription.answer(PONG)
    for number in range(1, 5):
        come_back(world, number)
    assert subscription.connected
    assert (world.metrics.probes_sent, world.metrics.probes_missed, world.gaps) == (4, 0, [])


def test_topics_are_not_asked_for_again_while_the_answer_would_not_be_read() -> None:
    world = World(UPDATES, NEWS).start()
    world.answer_info()
    world.server.answer(b"-NOPERM no\r\n" + confirmed(NEWS))
    world.server.asked()
    world.source.pauseProducing()
    world.clock.advance(ASK_AGAIN_SECONDS)
    assert world.server.asked() == b""
    world.source.resumeProducing()
    world.clock.advance(ASK_AGAIN_SECONDS)
    assert subscribing(UPDATES) in world.server.asked()


def test_a_ping_that_is_forbidden_is_a_sign_of_life() -> None:
    world = subscribed()
    subscription = world.server.connection
    for _ in range(3):
        world.clock.advance(PING)
        assert subscription.asked().endswith(command(b"PING"))
        subscription.answer(b"-NOPERM no\r\n")
    world.clock.advance(TIMEOUT)
    world.settle()
    assert subscription.connected


def test_an_answer_that_was_there_while_this_process_did_not_run_is_read_first() -> None:
    world = subscribed()
    subscription = world.server.connection
    world.clock.advance(PING)
    # Stopped for a while: the reactor first calls what is due, then reads, then calls what became due.
    world.clock.callLater(TIMEOUT, subscription.answer, PONG)
    world.clock.advance(TIMEOUT)
    world.settle()
    assert subscription.connected


def test_a_gap_begins_when_the_last_answered_question_was_asked_and_not_when_it_was_answered() -> None:
    world = World().start()
    world.answer_info()
    world.clock.advance(1)
    world.server.answer(confirmed(UPDATES))
    world.server.connection.lose(ConnectionDone())
    world.clock.advance(1)
    world.subscribe()
    assert world.gaps.pop() == (UPDATES, SourceGap(0, 2))
    world.clock.advance(PING)
    world.clock.advance(2)
    world.server.answer(PONG)
    world.clock.advance(1)
    world.server.connection.lose(ConnectionDone())
    world.clock.advance(1)
    world.subscribe()
    assert world.gaps == [(UPDATES, SourceGap(2 + PING, 6 + PING))]


def test_with_probes_a_gap_begins_when_the_last_that_came_back_was_sent() -> None:
    world = probing()
    publish_probe(world, 1)
    world.clock.advance(1)
    come_back(world, 1)
    world.clock.advance(PING)
    world.server.connections[0].answer(PONG)
    world.server.connections[0].lose(ConnectionDone())
    world.clock.advance(1)
    world.answer_info()
    world.server.answer(confirmed(PROBE) + confirmed(UPDATES))
    assert [gap.since for _, gap in world.gaps] == [0]


def test_a_topic_that_is_allowed_no_more_is_missing_since_it_was() -> None:
    world = subscribed(UPDATES, NEWS)
    world.clock.advance(PING)
    world.server.answer(PONG)
    world.clock.advance(1)
    world.server.connection.lose(ConnectionDone())
    world.clock.advance(1)
    world.answer_info()
    world.server.answer(b"-NOPERM no\r\n" + confirmed(NEWS))
    world.clock.advance(ASK_AGAIN_SECONDS)
    world.server.answer(confirmed(UPDATES))
    assert world.gaps == [
        (NEWS, SourceGap(PING, PING + 2)),
        (UPDATES, SourceGap(PING, PING + 2 + ASK_AGAIN_SECONDS)),
    ]


def test_a_reason_that_people_have_to_mend_is_told_once_in_an_outage(logged: list[str]) -> None:
    world = subscribed()
    world.server.connection.lose(ConnectionDone())
    for delay in (1, 2, 3):
        world.clock.advance(delay)
        world.server.answer(b"-NOAUTH no\r\n" * 2)
        world.settle()
    assert logged[1:] == [
        "No subscription at redis://localhost:6379: Connection was closed cleanly;"
        " trying again until there is one",
        "Still no subscription at redis://localhost:6379: NOAUTH no",
    ]


def test_probes_that_come_in_one_read_have_both_come() -> None:
    world = probing()
    publish_probe(world, 1)
    world.clock.advance(PROBE_SECONDS)
    publish_probe(world, 2)
    world.server.connections[0].answer(published([b"1", b"2", b"none", b""], PROBE.name))
    assert world.gaps == []


def test_a_probe_that_may_not_be_published_proves_nothing_and_says_nothing_of_gaps() -> None:
    world = probing()
    publish_probe(world, 1, b"-NOPERM no\r\n")
    subscription = world.server.connections[0]
    world.clock.advance(PING)
    subscription.answer(PONG)
    subscription.lose(ConnectionDone())
    world.clock.advance(1)
    world.answer_info()
    world.server.answer(confirmed(PROBE) + confirmed(UPDATES))
    assert world.gaps == [(UPDATES, SourceGap(PING, PING + 1))]


def test_an_answer_about_a_topic_asked_for_again_may_be_late() -> None:
    world = World(UPDATES, NEWS).start()
    world.answer_info()
    world.server.answer(b"-NOPERM no\r\n" + confirmed(NEWS))
    subscription = world.server.connection
    world.clock.advance(ASK_AGAIN_SECONDS)
    world.clock.advance(TIMEOUT - 1)
    subscription.answer(by_pattern(b"one"))
    world.clock.advance(2)
    subscription.answer(confirmed(UPDATES))
    world.settle()
    assert subscription.connected
    assert [topic for topic, _ in world.gaps] == [UPDATES]


def by_pattern(payload: bytes) -> bytes:
    return command(b"pmessage", NEWS.name, b"news.today", payload)


def test_a_topic_that_was_never_confirmed_is_missing_from_the_start() -> None:
    world = World(UPDATES, NEWS).start()
    world.clock.advance(1)
    world.answer_info()
    world.server.answer(confirmed(UPDATES))
    world.server.connection.lose(ConnectionDone())
    world.clock.advance(1)
    world.subscribe()
    assert world.gaps == [(UPDATES, SourceGap(1, 2)), (NEWS, SourceGap(0, 2))]


@pytest.mark.parametrize("error", [SourceError(Reason.CONNECT, "no such host"), ValueError("a bug")])
def test_a_route_that_leads_nowhere_is_led_on(error: Exception, logged_errors: list[str]) -> None:
    world, route = led()
    route.unknown = error
    world.start()
    assert route.advanced == 1
    logged_errors.clear()


def test_what_follows_a_wrong_answer_in_one_read_is_not_of_a_living_connection() -> None:
    world = subscribed(UPDATES, BINARY)
    world.server.connection.lose(ConnectionDone())
    world.clock.advance(1)
    world.answer_info()
    world.server.answer(confirmed(NEWS) + confirmed(BINARY) + published([b"lost"], BINARY.name))
    assert world.gaps == []
    world.settle()
    world.clock.advance(2)
    world.subscribe()
    assert [topic for topic, _ in world.gaps] == [UPDATES, BINARY]
    assert world.batches == []
