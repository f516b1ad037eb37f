"""The embedded broker answers as Redis does, delivers what was published, and bounds what a client costs."""

import re
from collections.abc import Callable, Iterator
from io import BytesIO
from typing import cast

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import directlyProvides

from pushd.message import Batch, Kind, SourceGap, Topic
from pushd.sources.commands import MAX_NAME, MAX_SUBSCRIPTIONS
from pushd.sources.embedded import MAX_UNREAD, BrokerFactory, BrokerProtocol
from pushd.sources.resp import array, bulk
from tests.upstream import Told

Logged = Callable[[], list[str]]

UPDATES = Topic(b"updates")
NEWS = Topic(b"news.*", Kind.PATTERN)
NOON = 1_800_000_000.0
"""What the clock on the wall shows when the other one shows 0."""


def command(*words: bytes) -> bytes:
    return array(map(bulk, words))


class Broker:
    """A broker whose deliveries are kept."""

    def __init__(
        self,
        *topics: Topic,
        deliver: Callable[[Batch], None] | None = None,
        password: bytes | None = None,
    ) -> None:
        self.batches: list[Batch] = []
        self.told = Told()
        self.clock = Clock()
        self.factory = BrokerFactory(
            topics,
            deliver or self.batches.append,
            self.told,
            clock=self.clock,
            wall=lambda: NOON + self.clock.seconds(),
            password=password,
        )

    def connect(self) -> "Client":
        return Client(self.factory.buildProtocol(None))


class Transport(StringTransport):
    """A transport in memory, as talkative as one of TCP."""

    def __init__(self) -> None:
        StringTransport.__init__(self)
        self.no_delay = False
        self.holds_much = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def write(self, data: bytes) -> None:
        StringTransport.write(self, data)
        if self.holds_much:
            assert self.producer
            self.producer.pauseProducing()


class Client:
    """The other end of one connection."""

    def __init__(self, protocol: BrokerProtocol, transport: Transport | None = None) -> None:
        self.transport = transport or Transport()
        self.protocol = protocol
        self._reader = hiredis.Reader()
        end: Protocol = protocol
        end.makeConnection(self.transport)

    def read(self) -> bytes:
        io: BytesIO = self.transport.io
        self.transport.io = BytesIO()
        return io.getvalue()

    def replies(self) -> list[object]:
        """Return what came, decoded."""
        self._reader.feed(self.read())
        replies = []
        while (reply := self._reader.gets()) is not False:
            replies.append(reply)
        return replies

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def ask(self, line: bytes) -> bytes:
        """Send a line and return what came."""
        self.send(line + b"\r\n")
        return self.read()

    def stall(self) -> None:
        """Read no more."""
        self.protocol.pauseProducing()

    @property
    def is_closing(self) -> bool:
        return self.transport.disconnecting and not self.transport.disconnected

    @property
    def is_aborted(self) -> bool:
        return self.transport.disconnected

    @property
    def is_read(self) -> bool:
        return self.transport.producerState == "producing"


@pytest.fixture
def broker() -> Broker:
    return Broker(UPDATES, NEWS)


@pytest.fixture
def client(broker: Broker) -> Client:
    return broker.connect()


@pytest.fixture
def logged() -> Iterator[Logged]:
    """Return what is logged, as text."""
    lines: list[str] = []

    def observe(event: LogEvent) -> None:
        lines.append(formatEvent(event))

    observer = cast("ILogObserver", observe)
    globalLogPublisher.addObserver(observer)
    yield lines.copy
    globalLogPublisher.removeObserver(observer)


STREAM = (
    command(b"PUBLISH", b"updates", b"1")
    + b'PUBLISH news.tech "2\\r\\n"\r\n'
    + command(b"PUBLISH", b"other", b"\r\n")
    + command(b"PUBLISH", b"updates", b"")
    + b"PUBLISH updates \xff\xfe\n"
)


class TestDelivery:
    def test_one_batch_for_each_topic_and_read(self, broker: Broker, client: Client) -> None:
        client.send(STREAM)
        assert broker.batches == [
            Batch(UPDATES, [b"1", b"", b"\xff\xfe"]),
            Batch(NEWS, [b"2\r\n"], [b"news.tech"]),
        ]
        assert client.replies() == [1, 1, 0, 1, 1]

    @pytest.mark.parametrize("cut", range(len(STREAM) + 1))
    def test_a_cut_loses_nothing(self, cut: int, broker: Broker, client: Client) -> None:
        client.send(STREAM[:cut])
        client.send(STREAM[cut:])
        payloads: dict[Topic, list[bytes]] = {UPDATES: [], NEWS: []}
        for batch in broker.batches:
            assert batch.payloads
            payloads[batch.topic] += batch.payloads
        assert payloads == {UPDATES: [b"1", b"", b"\xff\xfe"], NEWS: [b"2\r\n"]}
        assert client.replies() == [1, 1, 0, 1, 1]

    def test_all_topics_that_match(self) -> None:
        broker = Broker(UPDATES, Topic(b"up*", Kind.PATTERN), Topic(b"up*"), Topic(b"updates", Kind.PATTERN))
        client = broker.connect()
        assert client.ask(b"PUBLISH updates x") == b":3\r\n"
        assert client.ask(b"PUBLISH up* x") == b":2\r\n"
        assert len(broker.batches) == 5

    def test_binary_channels(self) -> None:
        broker = Broker(Topic(b"\xff\r\n\x00"))
        broker.connect().send(command(b"publish", b"\xff\r\n\x00", b"x"))
        assert broker.batches == [Batch(Topic(b"\xff\r\n\x00"), [b"x"])]

    @given(st.lists(st.binary()))
    def test_payloads_are_exact(self, payloads: list[bytes]) -> None:
        broker = Broker(UPDATES)
        broker.connect().send(b"".join(command(b"PUBLISH", b"updates", payload) for payload in payloads))
        assert [payload for batch in broker.batches for payload in batch.payloads] == payloads

    def test_what_came_before_a_fault_is_delivered(self, broker: Broker, client: Client) -> None:
        client.send(b"PUBLISH updates x\r\nPING '\r\n")
        assert client.read() == b":1\r\n-ERR Protocol error: unbalanced quotes in request\r\n"
        assert client.is_closing
        assert broker.batches == [Batch(UPDATES, [b"x"])]

    def test_delivered_when_the_read_is_done(self) -> None:
        """A client sees its answer only once the message is in pushd's hands."""
        order: list[object] = []
        broker = Broker(UPDATES, deliver=order.append)
        broker.connect().send(b"PUBLISH updates 1\r\nPUBLISH updates 2\r\n")
        order.append("read")
        assert order == [Batch(UPDATES, [b"1", b"2"]), "read"]


class TestFollow:
    def test_its_own_topics_are_confirmed_from_the_start(self, broker: Broker) -> None:
        assert broker.told.said == [("confirmed", UPDATES), ("confirmed", NEWS)]

    @pytest.mark.parametrize("topic", [Topic(b"room.1"), Topic(b"room.*", Kind.PATTERN)])
    def test_a_topic_comes_and_goes(self, topic: Topic, broker: Broker, client: Client) -> None:
        assert client.ask(b"PUBLISH room.1 zero") == b":0\r\n"
        broker.factory.follow(topic)
        assert broker.told.said[2:] == [("confirmed", topic)]
        assert client.ask(b"PUBLISH room.1 one") == b":1\r\n"
        broker.clock.advance(3)
        assert broker.factory.leave(topic) == 3
        assert client.ask(b"PUBLISH room.1 two") == b":0\r\n"
        (batch,) = broker.batches
        assert (batch.topic, batch.payloads) == (topic, [b"one"])
        assert broker.told.gaps == []

    def test_what_was_published_since_it_was_left_is_missing(self, broker: Broker) -> None:
        broker.factory.follow(Topic(b"room"))
        broker.clock.advance(3)
        since = broker.factory.leave(Topic(b"room"))
        broker.clock.advance(4)
        broker.factory.follow(Topic(b"room"), since)
        assert broker.told.gaps == [(Topic(b"room"), SourceGap(NOON + 3, NOON + 7))]
        assert [what for what, _ in broker.told.said[3:]] == ["interrupt", "confirmed"]

    def test_a_pattern_is_known_as_long_as_anybody_wants_it(self, broker: Broker, client: Client) -> None:
        room = Topic(b"room.*", Kind.PATTERN)
        other = broker.connect()
        client.ask(b"PSUBSCRIBE room.*")
        broker.factory.follow(room)
        assert broker.factory.publish(b"room.1", b"x").result == 2
        client.ask(b"PUNSUBSCRIBE room.*")
        assert b"pubsub_patterns:2" in other.ask(b"INFO")
        assert broker.factory.publish(b"room.1", b"x").result == 1
        client.ask(b"PSUBSCRIBE room.*")
        broker.factory.leave(room)
        assert broker.factory.publish(b"room.1", b"x").result == 1
        client.ask(b"PUNSUBSCRIBE room.*")
        assert b"pubsub_patterns:1" in other.ask(b"INFO")
        assert broker.factory.publish(b"room.1", b"x").result == 0

    def test_what_is_published_is_delivered_before_it_is_counted(
        self, broker: Broker, client: Client
    ) -> None:
        client.ask(b"SUBSCRIBE updates")
        published = broker.factory.publish(b"updates", b"\xff")
        assert broker.batches == [Batch(UPDATES, [b"\xff"])]
        assert client.replies() == [[b"message", b"updates", b"\xff"]]
        assert published.result == 2

    def test_equal_channels_of_a_read_are_kept_once(self, broker: Broker, client: Client) -> None:
        client.send(command(b"PUBLISH", b"news.a", b"1") + command(b"PUBLISH", b"news.a", b"2"))
        (batch,) = broker.batches
        assert batch == Batch(NEWS, [b"1", b"2"], [b"news.a", b"news.a"])
        assert batch.channels[0] is batch.channels[1]


class TestSubscribers:
    def test_messages(self, broker: Broker, client: Client) -> None:
        other = broker.connect()
        client.send(b"SUBSCRIBE updates\r\nPSUBSCRIBE up* *\r\n")
        assert client.replies() == [
            [b"subscribe", b"updates", 1],
            [b"psubscribe", b"up*", 2],
            [b"psubscribe", b"*", 3],
        ]
        assert other.ask(b"PUBLISH updates x") == b":4\r\n"
        assert client.replies() == [
            [b"message", b"updates", b"x"],
            [b"pmessage", b"up*", b"updates", b"x"],
            [b"pmessage", b"*", b"updates", b"x"],
        ]

    def test_pushes(self, broker: Broker, client: Client) -> None:
        client.ask(b"HELLO 3")
        assert client.ask(b"SUBSCRIBE a") == b">3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
        assert client.ask(b"PUBLISH a x") == b">3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n:1\r\n"
        assert client.ask(b"PING") == b"+PONG\r\n"
        assert client.ask(b"UNSUBSCRIBE") == b">3\r\n$11\r\nunsubscribe\r\n$1\r\na\r\n:0\r\n"
        assert client.ask(b"UNSUBSCRIBE") == b">3\r\n$11\r\nunsubscribe\r\n_\r\n:0\r\n"

    def test_repeated_subscription_counts_once(self, client: Client) -> None:
        client.send(b"SUBSCRIBE a b a\r\n")
        assert client.replies() == [[b"subscribe", b"a", 1], [b"subscribe", b"b", 2], [b"subscribe", b"a", 2]]

    def test_unsubscribe(self, broker: Broker, client: Client) -> None:
        client.send(b"SUBSCRIBE a b\r\nPSUBSCRIBE a\r\n")
        client.replies()
        client.send(b"UNSUBSCRIBE b none\r\nUNSUBSCRIBE\r\nUNSUBSCRIBE\r\n")
        assert client.replies() == [
            [b"unsubscribe", b"b", 2],
            [b"unsubscribe", b"none", 2],
            [b"unsubscribe", b"a", 1],
            [b"unsubscribe", None, 1],
        ]
        client.send(b"PUNSUBSCRIBE\r\nPUNSUBSCRIBE\r\nPUNSUBSCRIBE x\r\n")
        assert client.replies() == [
            [b"punsubscribe", b"a", 0],
            [b"punsubscribe", None, 0],
            [b"punsubscribe", b"x", 0],
        ]
        assert broker.connect().ask(b"PUBLISH a x") == b":0\r\n"
        assert client.ask(b"PUBLISH a x") == b":0\r\n"

    def test_own_patterns_outlive_a_subscriber(self, broker: Broker, client: Client) -> None:
        client.ask(b"PSUBSCRIBE news.*")
        client.ask(b"PUNSUBSCRIBE")
        assert client.ask(b"PUBLISH news.tech x") == b":1\r\n"

    def test_a_lost_connection_receives_no_more(self, broker: Broker, client: Client) -> None:
        other = broker.connect()
        client.ask(b"SUBSCRIBE a")
        other.ask(b"SUBSCRIBE a")
        client.protocol.connectionLost()
        assert broker.connect().ask(b"PUBLISH a x") == b":1\r\n"
        assert client.read() == b""

    def test_only_some_commands_in_version_2(self, client: Client) -> None:
        client.ask(b"SUBSCRIBE a")
        assert client.ask(b"PING") == b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"
        assert client.ask(b"PING x") == b"*2\r\n$4\r\npong\r\n$1\r\nx\r\n"
        assert client.ask(b"Publish a x") == (
            b"-ERR Can't execute 'publish': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET"
            b" are allowed in this context\r\n"
        )
        assert client.ask(b"RESET") == b"+RESET\r\n"
        assert client.ask(b"PUBLISH a x") == b":0\r\n"

    def test_subscriptions_are_bounded(self, broker: Broker, client: Client) -> None:
        names = [b"%d" % number for number in range(MAX_SUBSCRIPTIONS)]
        client.send(command(b"SUBSCRIBE", *names[1:]))
        client.send(command(b"SUBSCRIBE", *names[:-1]))
        assert len(client.replies()) == 2 * MAX_SUBSCRIPTIONS - 2
        assert client.ask(b"PSUBSCRIBE *") == b"-ERR more than 1024 subscriptions\r\n"
        assert broker.connect().ask(b"PUBLISH 0 x") == b":1\r\n"

    @pytest.mark.parametrize("what", [b"SUBSCRIBE %b", b"PSUBSCRIBE %b", b"PUBLISH %b x"])
    def test_names_are_bounded(self, what: bytes, client: Client) -> None:
        assert not client.ask(what % (b"x" * MAX_NAME)).startswith(b"-")
        client.ask(b"RESET")
        assert client.ask(what % (b"x" * (MAX_NAME + 1))) == b"-ERR name of more than 1024 bytes\r\n"


HELLO = [
    b"server",
    b"pushd",
    b"version",
    b"0.1.0",
    b"proto",
    2,
    b"id",
    1,
    b"mode",
    b"standalone",
    b"role",
    b"master",
]


class TestCommands:
    @pytest.mark.parametrize(
        ("line", "answer"),
        [
            (b"PING", b"+PONG\r\n"),
            (b"ping 'a b'", b"$3\r\na b\r\n"),
            (b"ECHO ''", b"$0\r\n\r\n"),
            (b"SELECT 0", b"+OK\r\n"),
            (b"SELECT 15", b"+OK\r\n"),
            (b"SELECT 16", b"-ERR DB index is out of range\r\n"),
            (b"SELECT -1", b"-ERR DB index is out of range\r\n"),
            (b"SELECT x", b"-ERR value is not an integer or out of range\r\n"),
            (b"CLIENT ID", b":1\r\n"),
            (b"CLIENT SETNAME x", b"+OK\r\n"),
            (b"CLIENT SETINFO LIB-NAME redis-py", b"+OK\r\n"),
            (b"CLIENT KILL x", b"-ERR unknown subcommand 'KILL'. Try CLIENT HELP.\r\n"),
            (b"CLIENT", b"-ERR wrong number of arguments for 'client' command\r\n"),
            (b"client id x", b"-ERR wrong number of arguments for 'client|id' command\r\n"),
            (b"COMMAND", b"*0\r\n"),
            (b"COMMAND DOCS", b"*0\r\n"),
            (b"COMMAND COUNT", b":0\r\n"),
            (b"RESET", b"+RESET\r\n"),
            (b"PUBLISH a", b"-ERR wrong number of arguments for 'publish' command\r\n"),
            (b"PING a b", b"-ERR wrong number of arguments for 'ping' command\r\n"),
            (b"FOO", b"-ERR unknown command 'FOO', with args beginning with: \r\n"),
            (b"FOO bar 'b z'", b"-ERR unknown command 'FOO', with args beginning with: 'bar' 'b z' \r\n"),
            (b'"F\\nO" "\\r\\n"', b"-ERR unknown command 'F O', with args beginning with: '  ' \r\n"),
            (b"''", b"-ERR unknown command '', with args beginning with: \r\n"),
        ],
    )
    def test_answers(self, line: bytes, answer: bytes, client: Client) -> None:
        assert client.ask(line) == answer
        assert not client.transport.disconnecting

    def test_an_error_is_short(self, client: Client) -> None:
        long = b"x" * 10_000
        answer = client.ask(b" ".join([long] * 6))
        assert answer.startswith(b"-ERR unknown command 'xxx")
        assert len(answer) < 400
        assert len(client.ask(b"CLIENT " + long)) < 400
        assert len(client.ask(b"HELLO 2 " + long)) < 400

    def test_info(self, client: Client) -> None:
        client.ask(b"HELLO 3")
        client.ask(b"SUBSCRIBE a b updates")
        client.ask(b"PSUBSCRIBE * news.*")
        client.send(b"INFO\r\n")
        [text] = client.replies()
        assert isinstance(text, bytes)
        assert text.split(b"\r\n") == [
            *(b"# Server", b"pushd_version:0.1.0", b""),
            *(b"# Stats", b"pubsub_channels:3", b"pubsub_patterns:2", b""),
        ]

    def test_quit(self, broker: Broker, client: Client) -> None:
        client.send(b"SUBSCRIBE a\r\nQUIT\r\nPING\r\n")
        assert client.replies() == [[b"subscribe", b"a", 1], b"OK"]
        assert client.is_closing
        assert broker.connect().ask(b"PUBLISH a x") == b":0\r\n"

    def test_hello(self, client: Client) -> None:
        client.send(b"HELLO\r\nHELLO 2 SETNAME x\r\n")
        assert client.replies() == [[*HELLO, b"modules", []]] * 2
        client.send(b"HELLO 3 SETNAME x AUTH default any\r\n")
        pairs = [*HELLO, b"modules", []]
        assert client.replies() == [dict(zip(pairs[::2], pairs[1::2], strict=True)) | {b"proto": 3}]
        assert client.ask(b"COMMAND DOCS") == b"%0\r\n"
        client.ask(b"RESET")
        assert client.ask(b"COMMAND DOCS") == b"*0\r\n"

    @pytest.mark.parametrize(
        ("line", "answer"),
        [
            (b"HELLO 1", b"-NOPROTO unsupported protocol version\r\n"),
            (b"HELLO 4", b"-NOPROTO unsupported protocol version\r\n"),
            (b"HELLO x", b"-ERR Protocol version is not an integer or out of range\r\n"),
            (b"HELLO 3 FOO x", b"-ERR Syntax error in HELLO option 'FOO'\r\n"),
            (b"HELLO 3 SETNAME", b"-ERR Syntax error in HELLO option 'SETNAME'\r\n"),
            (b"HELLO 3 AUTH default", b"-ERR Syntax error in HELLO option 'AUTH'\r\n"),
            (b"HELLO 3 AUTH x y", b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"),
        ],
    )
    def test_hello_refused(self, line: bytes, answer: bytes, client: Client) -> None:
        assert client.ask(line) == answer
        assert client.ask(b"COMMAND DOCS") == b"*0\r\n"

    def test_auth_without_a_password(self, client: Client) -> None:
        assert client.ask(b"AUTH x") == (
            b"-ERR AUTH <password> called without any password configured for the default user."
            b" Are you sure your configuration is correct?\r\n"
        )
        assert client.ask(b"AUTH default x") == b"+OK\r\n"


class TestPassword:
    @pytest.fixture
    def client(self) -> Client:
        return Broker(UPDATES, password=b"s\xff").connect()

    @pytest.mark.parametrize(
        "words", [(b"AUTH",), (b"AUTH", b"default"), (b"HELLO", b"3", b"AUTH", b"default")]
    )
    def test_right(self, words: tuple[bytes, ...], client: Client) -> None:
        client.send(command(*words, b"s\xff"))
        assert not client.read().startswith(b"-")
        assert client.ask(b"PUBLISH updates x") == b":1\r\n"

    @pytest.mark.parametrize(
        "line", [b"AUTH x", b"AUTH default x", b"AUTH admin s\xff", b"AUTH ''", b"HELLO 2 AUTH default x"]
    )
    def test_wrong(self, line: bytes, client: Client) -> None:
        assert client.ask(line) == b"-WRONGPASS invalid username-password pair or user is disabled.\r\n"
        assert client.ask(b"PING") == b"-NOAUTH Authentication required.\r\n"

    @pytest.mark.parametrize("line", [b"PUBLISH updates x", b"SUBSCRIBE a", b"PING", b"INFO", b"CLIENT ID"])
    def test_nothing_before_it(self, line: bytes, client: Client) -> None:
        assert client.ask(line) == b"-NOAUTH Authentication required.\r\n"

    def test_hello_before_it(self, client: Client) -> None:
        assert client.ask(b"HELLO 3").startswith(b"-NOAUTH HELLO must be called with")

    def test_reset_forgets_it(self, client: Client) -> None:
        assert client.ask(b"AUTH s\xff") == b"+OK\r\n"
        assert client.ask(b"RESET") == b"+RESET\r\n"
        assert client.ask(b"PING") == b"-NOAUTH Authentication required.\r\n"

    def test_quit_before_it(self, client: Client) -> None:
        assert client.ask(b"QUIT") == b"+OK\r\n"
        assert client.is_closing


class TestConnection:
    @given(
        st.lists(
            st.one_of(st.binary(), st.sampled_from([STREAM, b"*", b"$", b"3\r\n", b"SUBSCRIBE ", b"\r\n"]))
        )
    )
    def test_any_bytes_are_answered_or_refused(self, pieces: list[bytes]) -> None:
        client = Broker(UPDATES).connect()
        for piece in pieces:
            client.send(piece)
            if client.is_closing:
                assert b"-ERR Protocol error: " in client.read()
                break
        assert not client.is_aborted

    def test_an_error_shows_any_byte(self, client: Client) -> None:
        assert client.ask(b"*1\r\n\xff") == b"-ERR Protocol error: expected '$', got '\xff'\r\n"

    def test_small_messages_are_not_held_back(self, broker: Broker) -> None:
        transport = Transport()
        directlyProvides(transport, ITCPTransport)
        Client(broker.factory.buildProtocol(None), transport)
        assert transport.no_delay

    def test_a_client_that_does_not_read_is_not_read(self, client: Client) -> None:
        client.stall()
        assert not client.is_read
        client.protocol.resumeProducing()
        assert client.is_read

    def test_what_waits_is_sent_in_order(self, broker: Broker, client: Client) -> None:
        client.ask(b"SUBSCRIBE a")
        client.stall()
        sent = [bytes([number]) * 50_000 for number in range(20)]
        broker.connect().send(b"".join(command(b"PUBLISH", b"a", payload) for payload in sent))
        assert client.read() == b""
        # A transport pauses its producer again as soon as it holds more than it likes.
        client.transport.holds_much = True
        turns = 0
        while not client.is_read:
            client.protocol.resumeProducing()
            turns += 1
        assert client.replies() == [[b"message", b"a", payload] for payload in sent]
        assert turns > 5

    def test_a_subscriber_that_never_reads_is_dropped(
        self, broker: Broker, client: Client, logged: Logged
    ) -> None:
        other, third = broker.connect(), broker.connect()
        for each in (client, other):
            each.ask(b"SUBSCRIBE a b")
            each.ask(b"PSUBSCRIBE *")
        client.stall()
        message = command(b"PUBLISH", b"a", b"x" * (MAX_UNREAD // 4))
        third.send(message)
        assert not client.is_aborted
        third.send(message)
        assert client.is_aborted
        assert client.read() == b""
        assert third.replies() == [4, 4]
        assert third.ask(b"PUBLISH b x") == b":2\r\n"
        [line] = logged()
        assert re.fullmatch(
            r"Disconnected .*192\.168\.1\.1.* from the embedded broker: 8388\d+ bytes unread", line
        )
        client.protocol.connectionLost()

    def test_a_client_dropped_by_its_own_requests(self, client: Client, logged: Logged) -> None:
        client.stall()
        client.send(command(b"ECHO", b"x" * MAX_UNREAD) + b"PING\r\n")
        assert client.is_aborted
        assert client.read() == b""
        assert len(logged()) == 1

    def test_a_client_dropped_by_its_own_messages(self, client: Client) -> None:
        client.ask(b"HELLO 3")
        client.ask(b"SUBSCRIBE a")
        client.stall()
        client.send(command(b"PUBLISH", b"a", b"x" * MAX_UNREAD))
        assert client.is_aborted
        assert client.read() == b""

    def test_what_waits_is_sent_before_closing(self, client: Client) -> None:
        client.stall()
        client.send(b"PING\r\nQUIT\r\n")
        assert client.read() == b"+PONG\r\n+OK\r\n"
        assert client.is_closing
        assert client.transport.producer is None

    def test_a_closed_port_closes_its_connections(self, broker: Broker, client: Client) -> None:
        other = broker.connect()
        broker.factory.stopFactory()
        assert client.is_closing
        assert other.is_closing
        client.protocol.stopProducing()
        client.protocol.connectionLost()
        assert not broker.factory.connections
