"""The Redis source, on a clock and in memory: what it asks, what it hands on, and how it tries again."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from OpenSSL import SSL
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface import implementer

from pushd.errors import SettingsError
from pushd.message import Batch, Kind, Topic
from pushd.settings import Redis
from pushd.sources.redis import ANSWER_SECONDS, RedisSource, redis_endpoint
from tests.test_fanout import published

UPDATES = Topic(b"updates")
NEWS = Topic(b"news.*", Kind.PATTERN)
BINARY = Topic(b"\xff\r\n\xfe")


class Connection(StringTransport):
    """Our end of a connection to Redis, in memory; like real TCP, it is lost in a later turn."""

    def getHandle(self) -> None:
        """Return no socket."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self.protocol: Any = None

    def abortConnection(self) -> None:
        if self.connected:
            self.connected = False
            self._clock.callLater(0, self.protocol.connectionLost, Failure(ConnectionDone()))

    def lose(self, error: BaseException) -> None:
        self.connected = False
        self.protocol.connectionLost(Failure(error))


@implementer(IStreamClientEndpoint)
class Server:
    """Redis, as an endpoint to connect to."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.attempts = 0
        self.refuses = False
        self.hangs = False
        self.connection = Connection(clock)

    def connect(self, protocolFactory: Any) -> "Deferred[Any]":
        self.attempts += 1
        if self.hangs:
            return Deferred()
        if self.refuses:
            raise ConnectError(string="refused")
        self.connection = Connection(self._clock)
        self.connection.protocol = protocolFactory.buildProtocol(None)
        self.connection.protocol.makeConnection(self.connection)
        return succeed(self.connection.protocol)

    def asked(self) -> bytes:
        """Return what came since the last look."""
        asked: bytes = self.connection.value()
        self.connection.clear()
        return asked

    def answer(self, data: bytes) -> None:
        self.connection.protocol.dataReceived(data)


class World:
    """A source, started, that tries again after 1, 2, 3 ... seconds."""

    def __init__(
        self, *topics: Topic, redis: Redis | None = None, deliver: Callable[[Batch], None] | None = None
    ) -> None:
        self.clock = Clock()
        self.server = Server(self.clock)
        self.batches: list[Batch] = []
        self.logged: list[str] = []
        self.source = RedisSource(
            redis or Redis(),
            topics or (UPDATES,),
            deliver or self.batches.append,
            endpoint=self.server,
            clock=self.clock,
            retry_delay=lambda failures: failures + 1.0,
        )

    def start(self) -> "World":
        self.source.startService()
        return self


def command(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def confirmed(kind: bytes, name: bytes, count: int = 1) -> bytes:
    return b"*3\r\n$%d\r\n%s\r\n$%d\r\n%s\r\n:%d\r\n" % (len(kind), kind, len(name), name, count)


def test_it_subscribes_to_each_topic_by_its_exact_name(logged: list[str]) -> None:
    world = World(UPDATES, NEWS, BINARY).start()
    assert world.server.asked() == b"".join(
        [
            command(b"SUBSCRIBE", b"updates"),
            command(b"PSUBSCRIBE", b"news.*"),
            command(b"SUBSCRIBE", BINARY.name),
        ]
    )
    assert logged == []
    world.server.answer(confirmed(b"subscribe", b"updates"))
    assert logged == ['Subscribed to "updates" at redis://localhost:6379']
    world.server.answer(confirmed(b"psubscribe", b"news.*", 2) + confirmed(b"subscribe", BINARY.name, 3))
    assert logged[1] == 'Subscribed to pattern "news.*" at redis://localhost:6379'
    assert len(logged) == 3
    world.clock.advance(3600)
    assert world.server.attempts == 1


def test_a_password_is_sent_first_and_the_rest_only_after_its_ok() -> None:
    world = World(redis=Redis(username=b"me", password=b"p\xffss")).start()
    assert world.server.asked() == command(b"AUTH", b"me", b"p\xffss")
    world.server.answer(b"+OK\r\n")
    assert world.server.asked() == command(b"SUBSCRIBE", b"updates")


def subscribed(*topics: Topic, **options: Any) -> World:
    world = World(*topics, **options).start()
    for topic in topics or (UPDATES,):
        world.server.answer(
            confirmed(b"psubscribe" if topic.kind is Kind.PATTERN else b"subscribe", topic.name)
        )
    return world


PAYLOADS = [b"42", b"007", b"1.50", b"\xff\xfe", b"", b"a\r\nb", b"message", b"x" * 1024**2]


def test_one_read_is_one_batch_with_the_exact_bytes() -> None:
    world = subscribed()
    world.server.answer(published(PAYLOADS))
    assert world.batches == [Batch(UPDATES, PAYLOADS)]


def test_a_read_with_several_topics_is_one_batch_for_each() -> None:
    world = subscribed(UPDATES, NEWS)
    by_pattern = b"*4\r\n$8\r\npmessage\r\n$6\r\nnews.*\r\n$6\r\nnews.a\r\n$2\r\nn1\r\n"
    world.server.answer(published([b"u1"]) + by_pattern + published([b"u2"]))
    assert world.batches == [Batch(UPDATES, [b"u1", b"u2"]), Batch(NEWS, [b"n1"])]


def test_messages_before_nonsense_are_delivered() -> None:
    world = subscribed()
    world.server.answer(
        published([b"one"]) + b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n*0\r\n" + published([b"two"])
    )
    assert world.batches == [Batch(UPDATES, [b"one"])]
    assert not world.server.connection.connected


def test_it_can_be_held_back_once_it_has_subscribed() -> None:
    world = World().start()
    world.source.pauseProducing()
    assert world.server.connection.producerState == "producing"
    world.server.answer(confirmed(b"subscribe", b"updates"))
    world.source.pauseProducing()
    assert world.server.connection.producerState == "paused"
    world.source.resumeProducing()
    assert world.server.connection.producerState == "producing"
    world.server.connection.lose(ConnectionDone())
    world.source.pauseProducing()
    world.source.resumeProducing()


@given(st.lists(st.binary(max_size=60), max_size=8), st.data())
def test_it_does_not_matter_where_reads_end(payloads: list[bytes], data: st.DataObject) -> None:
    world = subscribed(BINARY)
    stream = published(payloads, BINARY.name)
    while stream:
        end = data.draw(st.integers(1, len(stream)))
        world.server.answer(stream[:end])
        stream = stream[end:]
    assert [payload for batch in world.batches for payload in batch.payloads] == payloads
    assert all(batch.topic == BINARY and batch.payloads for batch in world.batches)


@pytest.mark.parametrize("name", [b"message", b"pmessage", b"subscribe"])
def test_channels_may_be_named_like_the_protocols_own_words(name: bytes) -> None:
    world = subscribed(Topic(name), Topic(name, Kind.PATTERN))
    world.server.answer(published([b"one"], name))
    assert world.batches == [Batch(Topic(name), [b"one"])]


@pytest.mark.parametrize(
    ("redis", "answers", "why"),
    [
        (Redis(), [b"-ERR max number of clients reached\r\n"], "ERR max number of clients reached"),
        (Redis(), [b"-NOAUTH Authentication required.\r\n"], "NOAUTH Authentication required"),
        (Redis(), [b"-LOADING Redis is loading the dataset in memory\r\n"], "LOADING Redis is loading"),
        (Redis(password=b"x"), [b"-WRONGPASS invalid username-password pair\r\n"], "WRONGPASS invalid"),
        (Redis(password=b"x"), [b"+OK\r\n", b"-NOPERM this user has no permissions\r\n"], "NOPERM this user"),
        (Redis(), [b"HTTP/1.1 400 Bad Request\r\n"], "protocol error: "),
        (Redis(), [b"*4294967295\r\n"], "protocol error: MemoryError"),
        (Redis(), [b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n:1\r\n"], "protocol error: a message that is"),
        (Redis(), [b"*3\r\n$7\r\nmessage\r\n*1\r\n:1\r\n$1\r\na\r\n"], "protocol error: a message"),
    ],
)
def test_whatever_redis_refuses_is_tried_again(
    redis: Redis, answers: list[bytes], why: str, logged: list[str]
) -> None:
    world = World(redis=redis).start()
    for answer in answers:
        world.server.answer(answer)
    assert world.server.connection.connected is False
    world.clock.advance(0)
    assert len(logged) == 1
    assert logged[0].startswith(f"No subscription at redis://localhost:6379: {why}")
    assert logged[0].endswith("; trying again in 1.0 s")
    world.clock.advance(1)
    assert world.server.attempts == 2


def test_a_refusal_of_one_topic_does_not_leave_the_others_half_done(logged: list[str]) -> None:
    world = World(UPDATES, NEWS).start()
    world.server.answer(confirmed(b"subscribe", b"updates") + b"-NOPERM no\r\n")
    assert not world.server.connection.connected
    assert logged[-1] == "No subscription at redis://localhost:6379: NOPERM no; trying again in 1.0 s"


@pytest.mark.parametrize("redis", [Redis(), Redis(password=b"x")])
def test_an_answer_that_does_not_come_in_time_is_not_waited_for(redis: Redis, logged: list[str]) -> None:
    world = World(redis=redis).start()
    world.clock.advance(ANSWER_SECONDS)
    world.clock.advance(0)
    assert not world.server.connection.connected
    assert logged == [
        "No subscription at redis://localhost:6379: no answer within 5 s; trying again in 1.0 s"
    ]


def test_delays_grow_and_start_again_after_a_success(logged: list[str]) -> None:
    world = World()
    world.server.refuses = True
    world.start()
    for delay in (1, 2, 3):
        assert logged[-1].endswith(
            f"An error occurred while connecting: refused; trying again in {delay}.0 s"
        )
        world.clock.advance(delay)
    world.server.refuses = False
    world.clock.advance(4)
    world.server.answer(confirmed(b"subscribe", b"updates"))
    world.server.connection.lose(ConnectionDone())
    assert logged[-1].endswith("Connection was closed cleanly; trying again in 1.0 s")
    world.clock.advance(1)
    assert world.server.asked() == command(b"SUBSCRIBE", b"updates")


def test_a_loss_during_the_handshake_is_told_by_its_own_reason(logged: list[str]) -> None:
    world = World().start()
    world.server.connection.lose(SSL.Error([("SSL routines", "", "certificate verify failed")]))
    assert "TLS: certificate verify failed; trying again" in logged[-1]


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


@pytest.mark.parametrize("state", ["connecting", "asking", "subscribed", "waiting"])
def test_stopping_is_immediate_in_every_state(state: str) -> None:
    world = World()
    world.server.hangs = state == "connecting"
    world.server.refuses = state == "waiting"
    world.start()
    if state == "subscribed":
        world.server.answer(confirmed(b"subscribe", b"updates"))
    world.source.stopService()
    world.clock.advance(0)
    assert not world.server.connection.protocol or not world.server.connection.connected
    assert world.clock.getDelayedCalls() == []
    world.clock.advance(3600)
    assert world.server.attempts == 1


def test_a_source_that_was_never_started_can_be_stopped() -> None:
    world = World()
    world.source.stopService()
    assert (world.server.attempts, world.clock.getDelayedCalls()) == (0, [])


pieces = st.sampled_from(
    [
        b"*",
        b"$",
        b":",
        b"-",
        b"+",
        b"3",
        b"1",
        b"-1",
        b"\r\n",
        b"$7\r\nmessage\r\n",
        b"$1\r\na\r\n",
        b"*3\r\n",
        b"*0\r\n",
    ]
)


@given(st.lists(pieces | st.binary(max_size=5), max_size=30))
def test_whatever_redis_sends_is_delivered_or_ends_the_connection(parts: list[bytes]) -> None:
    world = subscribed()
    world.server.answer(b"".join(parts))
    assert all(type(payload) is bytes for batch in world.batches for payload in batch.payloads)
    if world.server.connection.connected:
        world.server.connection.lose(ConnectionDone())
    world.clock.advance(0)
    world.clock.advance(1)
    assert world.server.attempts == 2


@pytest.mark.parametrize(
    "redis", [Redis(), Redis(path="/run/redis.sock"), Redis(tls=True), Redis(host="::1", tls=True)]
)
def test_there_is_an_endpoint_for_every_kind_of_url(redis: Redis, reactor: object) -> None:
    assert IStreamClientEndpoint.providedBy(redis_endpoint(redis, reactor))


def test_authorities_that_are_none_are_a_wrong_setting(reactor: object) -> None:
    with pytest.raises(SettingsError, match=r"--redis-ca: .*allowed: "):
        redis_endpoint(Redis(tls=True, ca=b"not a certificate"), reactor)
