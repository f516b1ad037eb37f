"""A world in memory for hostile clients: the whole control listener, and scripts of what happens to it.

What pushd tells is held against docs/protocol.md, and against itself: offsets are contiguous, gaps say what
is missing, and heartbeats what there is. At the end nothing is left of the clients.
"""

import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import IntEnum, auto
from pathlib import Path
from typing import Any

import jwt
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel
from twisted.python.failure import Failure

from pushd.channels import LEAVE_SECONDS, Channels
from pushd.clients.admission import Admission
from pushd.clients.connection import READ_BYTES
from pushd.clients.control import ControlFactory, ControlProtocol
from pushd.commands import CommandError, Publish, failed
from pushd.hub import Hub
from pushd.message import Batch, Kind, SourceGap, Topic
from pushd.metrics import Metrics
from pushd.patterns import Pattern
from pushd.permissions import Permissions
from pushd.rate import BURST_SECONDS
from pushd.session import Terms
from pushd.settings import SlowPolicy
from pushd.tokens import Tokens
from tests.clients import Kernel

LINGER = 60.0
PINNED = Topic(b"pinned")

_DOCUMENT = (Path(__file__).parents[1] / "docs" / "protocol.md").read_text()
_EVENTS = _DOCUMENT.split("\n## Events\n")[1].split("\n## ")[0]

TYPES = frozenset(re.findall(r"^### ([a-z]+)$", _EVENTS, re.MULTILINE))
"""The types of events in the document."""

_ROWS = re.findall(
    r"^\| ((?:`[a-z-]+`(?:, )?)+) \| (.*) \|$", _EVENTS.split("\n### error\n")[1], re.MULTILINE
)

CODES = frozenset(code for codes, _ in _ROWS for code in re.findall("`([a-z-]+)`", codes))
"""The codes of errors in the document."""

CLOSING = frozenset(
    code for codes, why in _ROWS if "**closed**" in why for code in re.findall("`([a-z-]+)`", codes)
)
"""Those that end a connection."""

SOMETIMES_CLOSING = frozenset(
    code
    for codes, why in _ROWS
    if "closes the connection" in why
    for code in re.findall("`([a-z-]+)`", codes)
)
"""Those that may."""

SECRET = b"0123456789abcdef" * 4
FAR = 4102444800  # the year 2100
START = time.time()


def token(secret: bytes = SECRET, algorithm: str = "HS256", **claims: object) -> str:
    """Return a token of the user neo, with other claims too."""
    return jwt.encode({"sub": "neo", "exp": FAR, **claims}, secret, algorithm)


GOOD = token(pushd={"subscribe": ["*"], "publish": ["*"]})
NARROW = token(pushd={"subscribe": ["a*"], "publish": []})

FRAGMENTS: tuple[bytes, ...] = (
    *(
        b"\n",
        b"\r\n",
        b"\r",
        b"\x00",
        b" ",
        b"\t",
        b'"',
        b"\\",
        b"\xff\xfb\x01",
        b"\xe2\x80\xa8",
        b"\xed\xa0\x80",
    ),
    *(
        b"PING\n",
        b"PING ",
        b'PING "',
        b'PING "\\ud800"\n',
        b'PING "\\u0001\\ud83d\\ude00"\r\n',
        b"STATUS\n",
        b"HELP\n",
    ),
    *(b"QUIT\n", b"SUBSCRIBE ", b"PSUBSCRIBE ", b"UNSUBSCRIBE ", b"PUNSUBSCRIBE ", b"PUBLISH ", b"AUTH "),
    *(
        b"a",
        b"b",
        b"ab",
        b"pinned",
        b"*",
        b"a*",
        b"*a*a*a*b",
        b"[",
        b"[^",
        b'"late news"',
        b'"\\u0000"',
        b"\xc3\xa9",
    ),
    *(
        b" FROM ",
        b" LAST ",
        b" SLOW ",
        b" SLOW skip\n",
        b" SLOW latest\n",
        b" SLOW disconnect\n",
        b" LAST 3\n",
    ),
    *(
        b" FROM e.1-0\n",
        b" FROM e.1-2\n",
        b" FROM e.2-1\n",
        b" FROM e.2-0+1\n",
        b" FROM e.3-0\n",
        b" FROM x\n",
    ),
    *(
        b" FROM e.1-999999999999999+999999999999999\n",
        b" LAST 999999999\n",
        b" LAST 0\n",
        b" hello\n",
        b' "x\\ny"\n',
    ),
    *(f"AUTH {GOOD}\n".encode(), f"AUTH {NARROW}\n".encode(), f"AUTH {token(exp=1)}\n".encode()),
    *(f"AUTH {token(nbf=FAR - 1)}\n".encode(), f"AUTH {token(exp=FAR * 1000)}\n".encode()),
    *(f"AUTH {token(SECRET[::-1])}\n".encode(), f"AUTH {token(aud='x')}\n".encode(), b"AUTH e30.e30.\n"),
    f"AUTH {token(exp=START + 100, pushd={'subscribe': ['*']})}\n".encode(),
    *(
        b"SUBSCRIBE a\n",
        b"SUBSCRIBE b\n",
        b"SUBSCRIBE pinned LAST 2\n",
        b"PSUBSCRIBE *\n",
        b"PSUBSCRIBE a*\n",
    ),
    *(
        b"UNSUBSCRIBE a\n",
        b"UNSUBSCRIBE pinned\n",
        b"PUNSUBSCRIBE *\n",
        b"PUBLISH a hello\n",
        b"x" * 150,
        b"\n" * 50,
        b"POST / HTTP/1.1\r\n",
        b"host: a\r\n",
    ),
)
"""Of what clients send, and what nobody should."""


class Act(IntEnum):
    """What can happen next."""

    CONNECT = 0
    SAY = auto()  # one of FRAGMENTS
    SEND = auto()  # any bytes
    READ = auto()  # so many bytes
    DELIVER = auto()  # messages, from Redis
    SETTLE = auto()  # Redis confirms, loses, or refuses something
    ANSWER = auto()  # Redis answers PUBLISH
    WAIT = auto()
    HALF_CLOSE = auto()
    RESET = auto()
    BREAK = auto()  # the next write fails
    STOP = auto()  # pushd says goodbye


@dataclass(frozen=True, slots=True)
class Step:
    """One act: by, or at, the so-manieth of whatever it can concern."""

    act: Act
    which: int = 0
    amount: int = 0
    data: bytes = b""


def decode(data: bytes) -> Iterator[Step]:
    """Read any bytes as a script."""
    at = 0
    while at + 2 < len(data):
        act, which, amount = Act(data[at] % len(Act)), data[at + 1], data[at + 2]
        at += 3
        size = amount if act in (Act.SEND, Act.DELIVER) else 0
        yield Step(act, which, amount, data[at : at + size])
        at += size


class Redis:
    """Follows topics as a source does, and answers when the script says so."""

    down_since: float | None = None

    def __init__(self, clock: Clock, channels: Channels, hub: Hub) -> None:
        self.followed: dict[Topic, float | None] = {PINNED: None}  # since when something is missing
        self.published: deque[tuple[Publish, Callable[[int | CommandError], None]]] = deque()
        self._up = {PINNED}
        self._clock = clock
        self._channels = channels
        self._hub = hub

    def follow(self, topic: Topic, since: float | None = None) -> None:
        assert topic not in self.followed
        self.followed[topic] = since

    def leave(self, topic: Topic) -> float:
        self.followed.pop(topic)
        self._up.discard(topic)
        return self._clock.seconds()

    def publish(self, command: Publish, answer: Callable[[int | CommandError], None]) -> None:
        self.published.append((command, answer))

    def settle(self, topic: Topic, how: int) -> None:
        """Confirm a topic, lose it, or refuse it."""
        if how == 0 and topic not in self._up:
            self._up.add(topic)
            since, self.followed[topic] = self.followed[topic], None
            if since is not None:
                self._channels.interrupt(topic, SourceGap(since, self._clock.seconds()))
            self._channels.confirmed(topic)
        elif how == 1:
            self._up.discard(topic)
            self.followed[topic] = self._clock.seconds()
            self._channels.lost(topic)
        elif how == 2 and topic not in self._up and topic is not PINNED:
            self.followed[topic] = self._clock.seconds()
            self._channels.refused(topic, "NOPERM")

    def deliver(self, which: int, payloads: list[bytes]) -> None:
        """Bring messages of a topic that is followed."""
        topics = [topic for topic in self.followed if topic in self._up]
        if topics and payloads:
            topic = topics[which % len(topics)]
            is_pattern = topic.kind is Kind.PATTERN
            self._hub.publish(Batch(topic, payloads, [b"a\xff"] * len(payloads) if is_pattern else ()))

    def answer(self, how: int) -> None:
        """Answer the oldest PUBLISH."""
        if self.published:
            command, answer = self.published.popleft()
            answer(how if how < 200 else failed(command, ("refused", "unavailable")[how % 2], "no"))


class Connection(Kernel):
    """One client's connection, and what a reactor does with it.

    That it is lost is told at once, as other transports do, or in a later turn, as those of TCP.
    """

    def __init__(self, clock: Clock, room: int, *, at_once: bool) -> None:
        super().__init__(room)
        self.inbox = b""
        self.half_closed = False
        self.was_cut_off = False
        self.has_ended = False
        self._reads = self._writes = False
        self._clock = clock
        self._at_once = at_once

    def startReading(self) -> None:
        self._reads = True

    def stopReading(self) -> None:
        self._reads = False

    def startWriting(self) -> None:
        self._writes = True

    def stopWriting(self) -> None:
        self._writes = False

    def loseConnection(self) -> None:
        if not self._at_once or self.buffered():
            FileDescriptor.loseConnection(self)
        elif not self.has_ended:
            self.closed = True
            self.end(ConnectionDone())

    def abortConnection(self) -> None:
        if not self.aborted:
            self.aborted = self.was_cut_off = True
            self.stopReading()
            self.stopWriting()
            if self._at_once:
                self.end(ConnectionAborted())
            else:
                self._clock.callLater(0, self.end, ConnectionAborted())

    def end(self, why: BaseException) -> None:
        """Lose the connection."""
        if not self.has_ended:
            self.has_ended = True
            FileDescriptor.connectionLost(self, Failure(why))
            self.protocol.connectionLost(Failure(why))

    def turn(self) -> bool:
        """Do what a reactor does with it in a turn of its loop; tell whether there was anything."""
        if self.has_ended or self.aborted:
            return False
        if self._writes and (self.room or self.error or not self.buffered()):
            if (why := self.doWrite()) is not None:
                self.was_cut_off |= why is self.error
                self.end(why)
            return True
        if self._reads and self.inbox:
            data, self.inbox = self.inbox[:READ_BYTES], self.inbox[READ_BYTES:]
            self.protocol.dataReceived(data)
            return True
        if self._reads and self.half_closed:
            self.stopReading()
            self.protocol.readConnectionLost()
            return True
        return False


class Told:
    """What one client has been told so far, as long as it is true."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.places: dict[tuple[str, str], int] = {}  # up to which all has come, or was said to be missing
        self._taken = 0
        self._rest = b""

    def take(self, connection: Connection) -> None:
        """Take in what has come since."""
        new, self._taken = connection.sends[self._taken :], len(connection.sends)
        if new:
            *lines, self._rest = b"".join((self._rest, *new)).split(b"\n")
            for line in lines:
                event = json.loads(line)
                assert event["type"] in TYPES, line
                self._check(event)
                self.events.append(event)

    def _check(self, event: dict[str, Any]) -> None:
        key = next(((kind, event[kind]) for kind in ("pattern", "channel") if kind in event), ("", ""))
        match event["type"]:
            case "subscribed":
                assert key not in self.places, event
                self.places[key] = event["offset"]
            case "message":
                self.places[key] += 1
                assert event["offset"] == self.places[key], event
            case "gap" if event["missed"]:
                assert event["from"] == self.places[key] + 1, event
                assert event["missed"] == event["to"] - event["from"] + 1, event
                self.places[key] = event["to"]
            case "gap":
                assert key in self.places
                assert event["reason"] in ("slow", "evicted", "source", "unknown"), event
            case "unsubscribed":
                assert event.get("offset") == self.places.pop(key, None), event
            case "heartbeat":
                self._check_heartbeat(event)
            case "status":
                told = {
                    next((kind, each[kind]) for kind in ("pattern", "channel") if kind in each): each[
                        "offset"
                    ]
                    for each in event["subscriptions"]
                }
                assert told == self.places, event
            case "error":
                assert event["code"] in CODES, event
                assert event["message"]
                assert event["code"] in CLOSING or event["command"] or event["code"] in _OF_NO_COMMAND

    def _check_heartbeat(self, event: dict[str, Any]) -> None:
        told = {
            (kind, name): offset - event.get(behind, {}).get(name, 0)
            for kind, heads, behind in (
                ("channel", "offsets", "behind"),
                ("pattern", "pattern_offsets", "pattern_behind"),
            )
            for name, offset in event.get(heads, {}).items()
        }
        assert told == self.places, event

    @property
    def was_ended(self) -> bool:
        """Whether the last event says that the connection is closed, and why."""
        last = self.events[-1]
        return last["type"] == "bye" or last.get("code") in CLOSING | SOMETIMES_CLOSING


_OF_NO_COMMAND = ("unknown-command", "bad-encoding")


class Client:
    """One client: its connection, and what it was told."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.told = Told()


TERMS = Terms(
    slow=SlowPolicy.DISCONNECT,
    max_line=400,
    idle_timeout=None,
    heartbeat=3.0,
    bounds=Permissions(subscribe=(Pattern(b"*"),), publish=(Pattern(b"a*"),)),
    tokens=None,
    auth_timeout=5.0,
    max_subscriptions=4,
    command_rate=20.0,
)

TOKENS = Tokens(SECRET, audience=None, issuer=None)


class World:
    """The control listener, whose limits are small, and all that happens to it."""

    def __init__(self, kind: int = 0) -> None:
        self.clock = Clock()
        self.clients: list[Client] = []
        self._open: list[Client] = []  # and those that have just ended
        self.hub = Hub(self.clock, 3000, Metrics(), "e")
        self.channels = Channels(
            self.hub, self.clock, self.wall, linger=LINGER, max_channels=6, max_patterns=1000
        )
        self.channels.pin(PINNED)
        self.redis = Redis(self.clock, self.channels, self.hub)
        self.channels.upstream = self.redis
        self.channels.confirmed(PINNED)
        self.terms = replace(
            TERMS,
            tokens=TOKENS if kind % 2 else None,
            slow=tuple(SlowPolicy)[kind // 2 % 3],
            idle_timeout=30.0 if kind // 6 % 2 else None,
        )
        self.admission = Admission(5, 3, Metrics())
        self.factory = ControlFactory(
            self.terms,
            self.hub,
            self.channels,
            self.redis.publish,
            self.admission,
            self.clock,
            self.clock.seconds,
        )

    def wall(self) -> float:
        """Return the time since 1970: what tokens go by, which were made when this program began."""
        return START + self.clock.seconds()

    def do(self, step: Step) -> None:
        """Have something happen, and all that follows from it."""
        clients = [client for client in self._open if not client.connection.has_ended]
        client = clients[step.which % len(clients)] if clients else None
        if step.act is Act.CONNECT:
            self.connect(step.which, step.amount)
        elif step.act is Act.SETTLE:
            topics = list(self.redis.followed)
            self.redis.settle(topics[step.which % len(topics)], step.amount % 3)
        elif step.act is Act.DELIVER:
            self.redis.deliver(step.which, step.data.split(b"\n"))
        elif step.act is Act.ANSWER:
            self.redis.answer(step.amount)
        elif step.act is Act.WAIT:
            self.clock.advance(step.amount / 8)
        elif client is not None:
            self._do_to(client, step)
        self.settle()

    def _do_to(self, client: Client, step: Step) -> None:
        connection = client.connection
        match step.act:
            case Act.SAY:
                self._send(connection, FRAGMENTS[step.amount % len(FRAGMENTS)])
            case Act.SEND:
                self._send(connection, step.data)
            case Act.READ:
                connection.room += 8 * step.amount
            case Act.HALF_CLOSE:
                connection.half_closed = True
            case Act.RESET:
                connection.was_cut_off = True
                connection.end(ConnectionLost())
            case Act.BREAK:
                connection.error = ConnectionLost()
            case _:
                if isinstance(connection.protocol, ControlProtocol):
                    connection.protocol.stop()

    @staticmethod
    def _send(connection: Connection, data: bytes) -> None:
        if not connection.half_closed:
            connection.inbox += data

    def connect(self, which: int = 0, room: int = 255) -> Client:
        """Take in a client, whose kernel has little room, or much; far more are refused than may come."""
        address = IPv4Address("TCP", f"192.0.2.{which % 3}", 4242)
        connection = Connection(self.clock, 8 * room if room < 200 else 10**9, at_once=which % 16 == 15)
        connection.protocol = self.factory.buildProtocol(address)
        connection.startReading()
        client = Client(connection)
        self.clients.append(client)
        self._open.append(client)
        connection.protocol.makeConnection(connection)
        return client

    def settle(self) -> None:
        """Let everything happen that needs no time."""
        busy = True
        while busy:
            self.clock.advance(0)
            busy = sum(client.connection.turn() for client in self._open) > 0
        for client in self._open:
            client.told.take(client.connection)
        self._open = [client for client in self._open if not client.connection.has_ended]

    def finish(self) -> None:
        """Check that all is well, and that nothing is left once the clients have gone."""
        for client in self.clients:
            client.connection.room = 10**9
        self.settle()
        self._answer_all()
        self._check_answers()
        for client in self.clients:
            if not client.connection.has_ended:
                client.connection.was_cut_off = True
                client.connection.end(ConnectionLost())
        self.settle()
        assert not self.factory.clients
        assert self.admission.clients == 0
        self.clock.advance(LEAVE_SECONDS)
        assert list(self.redis.followed) == [PINNED]
        self.clock.advance(LINGER)
        while self.redis.published:
            self.redis.answer(1)
        self.settle()
        assert not self.clock.getDelayedCalls()
        assert list(vars(self.channels)["_channels"]) == list(vars(self.hub)["_feeds"]) == [PINNED]
        assert not vars(self.channels)["_idle"]
        assert not vars(self.admission)["_hosts"]
        assert not any(vars(self.hub)[name] for name in ("_grown", "_again", "_warm", "_pass"))
        assert not self.hub.feed(PINNED).subscriptions

    def _answer_all(self) -> None:
        for topic in list(self.redis.followed):
            self.redis.settle(topic, 0)
        while self.redis.published:
            self.redis.answer(1)
        self.settle()

    def _check_answers(self) -> None:
        """Each client is answered, or was told why it is not."""
        self.clock.advance(BURST_SECONDS)
        self.settle()
        for number, client in enumerate(self.clients):
            connection, told = client.connection, client.told
            if not connection.has_ended:
                self._send(connection, b"\nPING alive-%d\n" % number)
                self.settle()
            if not connection.has_ended:
                assert {"type": "pong", "data": f"alive-{number}"} in told.events, told.events[-3:]
            else:
                assert connection.was_cut_off or connection.half_closed or told.was_ended, told.events[-3:]


def play(kind: int, steps: Iterable[Step]) -> World:
    """Have a script happen in a new world, from its first step to the end of everything."""
    world = World(kind)
    for step in steps:
        world.do(step)
    world.finish()
    return world


class Criticals:
    """Hears what is logged that should never be."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def __call__(self, event: LogEvent) -> None:
        if event.get("log_level") is LogLevel.critical:
            failure = event.get("log_failure")
            self.said.append(failure.getTraceback() if failure else str(event.get("log_format")))
