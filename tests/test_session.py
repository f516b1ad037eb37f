"""Sessions: what each command is answered, who may do what, and what ends a client; against a naive model."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from pushd.channels import LEAVE_SECONDS, Channels
from pushd.commands import USAGE, CommandError, Publish, failed
from pushd.hub import Hub
from pushd.message import Batch, Kind, SourceGap, Topic
from pushd.metrics import Metrics
from pushd.patterns import Pattern
from pushd.permissions import Permissions
from pushd.session import MAX_PATTERNS, Session, Terms
from pushd.settings import SlowPolicy
from pushd.subscription import Subscription
from pushd.tokens import Grant, TokenError
from tests.clients import RecordingOutlet
from tests.test_channels import WALL, RecordingUpstream

PROTOCOL = Path(__file__).parents[1] / "docs" / "protocol.md"
SCORES = Topic(b"scores")
NEWS = Topic(b"news.*", Kind.PATTERN)
HEARTBEAT = 30.0
LINGER = 60.0

Event = dict[str, Any]


def permissions(*subscribe: str, publish: Sequence[str] = ()) -> Permissions:
    return Permissions(
        subscribe=tuple(Pattern(text.encode()) for text in subscribe),
        publish=tuple(Pattern(text.encode()) for text in publish),
    )


TERMS = Terms(
    slow=SlowPolicy.DISCONNECT,
    max_line=16 * 1024,
    idle_timeout=None,
    heartbeat=HEARTBEAT,
    bounds=permissions("scores", "news.*", "room.*", publish=("chat",)),
    tokens=None,
    auth_timeout=5.0,
    max_subscriptions=128,
    command_rate=20.0,
)


class Verifier:
    """Knows some tokens."""

    def __init__(self, grants: dict[str, Grant]) -> None:
        self._grants = grants

    def verify(self, token: str) -> Grant:
        if token not in self._grants:
            code = token if token.startswith("token-") else "token-invalid"
            raise TokenError("it is wrong", code)
        return self._grants[token]


GRANTS = {
    "alice": Grant("alice", WALL + 60, permissions("*", publish=("*",))),
    "longer": Grant("alice", WALL + 600, permissions("*", publish=("*",))),
    "less": Grant("alice", WALL + 60, permissions("scores")),
    "nobody": Grant(None, WALL + 60, Permissions()),
    "for-ever": Grant("alice", 1e12, permissions("*")),
}


class SessionOutlet(RecordingOutlet):
    """What a session sees of its client's connection; replies are behind the frame that is on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.peer = "192.0.2.1:4242"
        self.subscriptions: list[Subscription] = []
        self.closing = False
        self.on_reply: Callable[[], object] = lambda: None

    def reply(self, data: bytes) -> None:
        assert data.endswith(b"\n")
        if not self.closing:
            self.sent.append(data)
            self.on_reply()


class RecordingPublisher:
    """Is given messages to publish; the test says what becomes of each."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Publish, Callable[[int | CommandError], None]]] = []

    def __call__(self, command: Publish, answer: Callable[[int | CommandError], None], /) -> None:
        self.waiting.append((command, answer))

    def answer(self, outcome: int | CommandError) -> None:
        """Answer the one that has waited for the longest."""
        _, answer = self.waiting.pop(0)
        answer(outcome)


class World:
    """All that sessions share."""

    def __init__(self, *, history: int = 1024**2, max_channels: int = 10, **terms: Any) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.hub = Hub(self.clock, history, self.metrics, "k3f9ab")
        self.upstream = RecordingUpstream()
        self.channels = Channels(
            self.hub, self.clock, self.wall, linger=LINGER, max_channels=max_channels, max_patterns=1000
        )
        self.channels.upstream = self.upstream
        self.publisher = RecordingPublisher()
        self.terms = replace(TERMS, **terms)

    def wall(self) -> float:
        return WALL + self.clock.seconds()

    def client(self) -> "Client":
        """Return a client that has been welcomed."""
        client = Client(self)
        client.session.begin()
        client.heard()
        return client

    def subscribed(self, *lines: str) -> "Client":
        """Return a client that has said what subscribes it, and whose topics are confirmed."""
        client = self.client()
        client.say(*lines)
        for topic in self.upstream.followed:
            self.channels.confirmed(topic)
        client.heard()
        return client

    def publish(self, topic: Topic, *payloads: bytes, channel: bytes = b"news.sport") -> None:
        channels = [channel] * len(payloads) if topic.kind is Kind.PATTERN else []
        self.hub.publish(Batch(topic, list(payloads), channels))
        self.clock.advance(0)

    def is_clean(self) -> bool:
        """Tell whether no client has left anything, a while after the last has gone."""
        self.clock.advance(LEAVE_SECONDS)
        self.clock.advance(LINGER)
        return not self.clock.getDelayedCalls() and not self.upstream.followed and not self.channels._channels


class Client:
    """One session, and what its client hears."""

    def __init__(self, world: World) -> None:
        self.outlet = SessionOutlet()
        self.closed = False
        self.session = Session(
            world.terms,
            self.outlet,
            hub=world.hub,
            channels=world.channels,
            publish=world.publisher,
            clock=world.clock,
            wall=world.wall,
            close=self.close,
        )

    def close(self) -> None:
        """End the session with the connection, as its protocol does."""
        self.closed = self.outlet.closing = True
        self.session.end()

    def say(self, *lines: str) -> None:
        for line in lines:
            assert not self.closed
            self.session.received(line.encode())

    def lines(self) -> list[str]:
        """Return the lines that have come since the last look."""
        received = self.outlet.received.decode().removesuffix("\n")
        self.outlet.sent.clear()
        return received.split("\n") if received else []

    def heard(self) -> list[Event]:
        """Return the events that have come since the last look."""
        return [json.loads(line) for line in self.lines()]

    def types(self) -> list[str]:
        """Return the types of the events that have come since the last look."""
        return [event["type"] for event in self.heard()]


def error(code: str, message: str, command: str | None = None, **more: object) -> Event:
    return {"type": "error", "code": code, "message": message, "command": command, **more}


@pytest.fixture
def world() -> World:
    return World()


class TestAnswers:
    """Each command, and what it is answered, word for word."""

    @pytest.mark.parametrize(("heartbeat", "shown"), [(30.0, "30"), (0.5, "0.5"), (1e9, "1000000000")])
    def test_welcome(self, heartbeat: float, shown: str) -> None:
        client = Client(World(heartbeat=heartbeat))
        client.session.begin()
        assert client.lines() == [
            f'{{"type":"welcome","version":1,"epoch":"k3f9ab","heartbeat":{shown},"auth":"none"}}'
        ]

    def test_welcome_where_a_token_is_asked_for(self) -> None:
        client = Client(World(tokens=Verifier(GRANTS)))
        client.session.begin()
        assert client.lines() == [
            '{"type":"welcome","version":1,"epoch":"k3f9ab","heartbeat":30,"auth":"required"}'
        ]

    def test_auth(self) -> None:
        client = World(tokens=Verifier(GRANTS)).client()
        client.say("AUTH alice", "auth nobody")
        assert client.lines() == [
            '{"type":"authenticated","name":"alice","expires":"1970-01-12T13:47:40.000Z"}',
            '{"type":"authenticated","name":null,"expires":"1970-01-12T13:47:40.000Z"}',
        ]

    def test_subscribe_is_answered_once_redis_has_confirmed(self, world: World) -> None:
        client = world.client()
        client.say("SUBSCRIBE scores", "PSUBSCRIBE news.*")
        assert client.lines() == []
        world.channels.confirmed(NEWS)
        world.channels.confirmed(SCORES)
        assert client.lines() == [
            '{"type":"subscribed","pattern":"news.*","offset":0,"id":"k3f9ab.2-0","upstream":"up"}',
            '{"type":"subscribed","channel":"scores","offset":0,"id":"k3f9ab.1-0","upstream":"up"}',
        ]

    def test_subscribe_is_answered_in_an_outage(self, world: World) -> None:
        client = world.client()
        client.say("SUBSCRIBE scores")
        world.channels.lost(SCORES)
        assert client.lines() == [
            '{"type":"subscribed","channel":"scores","offset":0,"id":"k3f9ab.1-0","upstream":"down"}'
        ]
        world.channels.interrupt(SCORES, SourceGap(WALL, WALL + 1.5))
        world.channels.confirmed(SCORES)
        world.publish(SCORES, b"1:0")
        assert client.lines() == [
            '{"type":"gap","channel":"scores","missed":null,"reason":"source","since":"1970-01-12T13:46:40.000Z"'
            ',"until":"1970-01-12T13:46:41.500Z","id":"k3f9ab.1-0+1"}',
            '{"type":"message","channel":"scores","offset":1,"id":"k3f9ab.1-1+1","data":"1:0"}',
        ]

    def test_messages(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores", "PSUBSCRIBE news.*")
        world.publish(SCORES, b"1:0", '2:0 \u2028"'.encode(), b"\xff\xfe", b"")
        world.publish(NEWS, b"what a goal")
        world.publish(NEWS, b"!", channel=b"news.\xff")
        assert client.lines() == [
            '{"type":"message","channel":"scores","offset":1,"id":"k3f9ab.1-1","data":"1:0"}',
            '{"type":"message","channel":"scores","offset":2,"id":"k3f9ab.1-2","data":"2:0 \u2028\\""}',
            '{"type":"message","channel":"scores","offset":3,"id":"k3f9ab.1-3","data_base64":"//4="}',
            '{"type":"message","channel":"scores","offset":4,"id":"k3f9ab.1-4","data":""}',
            '{"type":"message","pattern":"news.*","channel":"news.sport","offset":1,"id":"k3f9ab.2-1"'
            ',"data":"what a goal"}',
            '{"type":"message","pattern":"news.*","channel_base64":"bmV3cy7/","offset":2,"id":"k3f9ab.2-2"'
            ',"data":"!"}',
        ]

    def test_unsubscribe(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores", "PSUBSCRIBE news.*")
        world.publish(SCORES, b"1:0")
        client.heard()
        client.say("UNSUBSCRIBE scores", "PUNSUBSCRIBE news.*")
        assert client.lines() == [
            '{"type":"unsubscribed","channel":"scores","offset":1,"id":"k3f9ab.1-1"}',
            '{"type":"unsubscribed","pattern":"news.*","offset":0,"id":"k3f9ab.2-0"}',
        ]
        world.publish(SCORES, b"2:0")
        assert client.lines() == []

    def test_subscribe_from(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores")
        world.publish(SCORES, b"1:0", b"2:0")
        client.say("UNSUBSCRIBE scores")
        world.publish(SCORES, b"3:0")
        client.heard()
        client.say("SUBSCRIBE scores FROM k3f9ab.1-2")
        world.clock.advance(0)
        assert client.lines() == [
            '{"type":"subscribed","channel":"scores","offset":2,"id":"k3f9ab.1-2","upstream":"up","recovered":true}',
            '{"type":"message","channel":"scores","offset":3,"id":"k3f9ab.1-3","data":"3:0"}',
        ]

    @pytest.mark.parametrize("id_", ["k3f9aa.1-2", "k3f9ab.2-0", "k3f9ab.1-3", "k3f9ab.1-1+1", "nonsense"])
    def test_subscribe_from_an_unknown_id(self, world: World, id_: str) -> None:
        world.subscribed("SUBSCRIBE scores")
        world.publish(SCORES, b"1:0", b"2:0")
        client = world.client()
        client.say(f"SUBSCRIBE scores FROM {id_}")
        world.clock.advance(0)
        assert client.lines() == [
            f'{{"type":"subscribed","channel":"scores","offset":0,"id":"{id_}","upstream":"up","recovered":false}}',
            '{"type":"gap","channel":"scores","missed":null,"reason":"unknown","id":"k3f9ab.1-0"}',
            '{"type":"message","channel":"scores","offset":1,"id":"k3f9ab.1-1","data":"1:0"}',
            '{"type":"message","channel":"scores","offset":2,"id":"k3f9ab.1-2","data":"2:0"}',
        ]

    def test_subscribe_from_what_is_no_longer_kept(self) -> None:
        world = World(history=1000)
        world.subscribed("SUBSCRIBE scores SLOW skip").outlet.lagging = True
        for number in range(10):
            world.publish(SCORES, b"%d" % number + b"." * 399)
        world.channels.interrupt(SCORES, SourceGap(WALL, WALL))
        client = world.client()
        client.say("SUBSCRIBE scores FROM k3f9ab.1-3")
        world.clock.advance(0)
        first, gap, *messages = client.lines()
        assert [first, gap] == [
            '{"type":"subscribed","channel":"scores","offset":3,"id":"k3f9ab.1-3","upstream":"up","recovered":false}',
            '{"type":"gap","channel":"scores","from":4,"to":8,"missed":5,"reason":"evicted","id":"k3f9ab.1-8"}',
        ]
        assert [json.loads(line)["type"] for line in messages] == ["message", "message", "gap"]

    @pytest.mark.parametrize("id_", ["k3f9ab.1-3+1", "k3f9ab.1-0+4"])
    def test_subscribe_from_an_id_that_never_was_before_what_is_kept(self, id_: str) -> None:
        world = World(history=1000)
        world.subscribed("SUBSCRIBE scores SLOW skip").outlet.lagging = True
        for number in range(10):
            world.publish(SCORES, b"%d" % number + b"." * 399)
        client = world.client()
        client.say(f"SUBSCRIBE scores FROM {id_}")
        assert [(event["type"], event.get("reason")) for event in client.heard()] == [
            ("subscribed", None),
            ("gap", "unknown"),
        ]

    def test_subscribe_from_before_a_source_gap_that_is_no_longer_kept(self) -> None:
        world = World(history=1000)
        world.subscribed("SUBSCRIBE scores SLOW skip").outlet.lagging = True
        world.channels.interrupt(SCORES, SourceGap(WALL, WALL))
        for number in range(3):
            world.publish(SCORES, b"%d" % number + b"." * 399)
        client = world.client()
        client.say("SUBSCRIBE scores FROM k3f9ab.1-0")
        assert client.lines()[1] == (
            '{"type":"gap","channel":"scores","from":1,"to":1,"missed":1,"source_gaps":1,"reason":"evicted"'
            ',"id":"k3f9ab.1-1+1"}'
        )

    def test_subscribe_from_before_a_source_gap_is_not_recovered(self, world: World) -> None:
        world.subscribed("SUBSCRIBE scores")
        world.publish(SCORES, b"1:0")
        world.channels.interrupt(SCORES, SourceGap(WALL, WALL + 1))
        client = world.client()
        client.say("SUBSCRIBE scores FROM k3f9ab.1-1")
        world.clock.advance(0)
        first, gap = client.heard()
        assert (first["offset"], first["recovered"]) == (1, False)
        assert (gap["reason"], gap["id"]) == ("source", "k3f9ab.1-1+1")
        again = world.client()
        again.say("SUBSCRIBE scores FROM k3f9ab.1-1+1")
        assert [event["recovered"] for event in again.heard()] == [True]

    def test_what_is_continued_in_an_outage_is_not_recovered(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores")
        world.channels.lost(SCORES)
        client.say("UNSUBSCRIBE scores", "SUBSCRIBE scores FROM k3f9ab.1-0")
        assert client.heard()[1:] == [
            {"type": "subscribed", "channel": "scores", "offset": 0, "id": "k3f9ab.1-0", "upstream": "down"}
            | {"recovered": False}
        ]

    @pytest.mark.parametrize(("last", "offset"), [(0, 3), (1, 2), (3, 0), (999_999_999, 0)])
    def test_subscribe_last(self, world: World, last: int, offset: int) -> None:
        world.subscribed("SUBSCRIBE scores")
        world.publish(SCORES, b"1:0", b"2:0", b"3:0")
        client = world.client()
        client.say(f"SUBSCRIBE scores LAST {last}")
        world.clock.advance(0)
        first, *messages = client.heard()
        assert first == {
            "type": "subscribed",
            "channel": "scores",
            "offset": offset,
            "id": f"k3f9ab.1-{offset}",
            "upstream": "up",
        }
        assert [message["offset"] for message in messages] == list(range(offset + 1, 4))

    @pytest.mark.parametrize("policy", [None, *SlowPolicy])
    def test_the_slow_policy_is_the_command_s_or_that_of_all(self, policy: SlowPolicy | None) -> None:
        world = World(slow=SlowPolicy.SKIP)
        client = world.subscribed("SUBSCRIBE scores" + (f" SLOW {policy.value}" if policy else ""))
        (subscription,) = client.outlet.subscriptions
        assert subscription.policy is (policy or SlowPolicy.SKIP)

    def test_a_slow_consumer_is_told_what_is_left_out(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores SLOW latest")
        world.publish(SCORES, b"1:0")
        client.outlet.lagging = True
        world.publish(SCORES, b"2:0", b"3:0", b"4:0")
        client.outlet.lagging = False
        world.hub.wake(client.outlet.subscriptions)
        world.clock.advance(0)
        assert client.lines()[1:] == [
            '{"type":"gap","channel":"scores","from":2,"to":3,"missed":2,"reason":"slow","id":"k3f9ab.1-3"}',
            '{"type":"message","channel":"scores","offset":4,"id":"k3f9ab.1-4","data":"4:0"}',
        ]

    def test_what_has_not_been_told_is_not_said_to_have_been_at_the_end(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores SLOW latest")
        client.outlet.lagging = True
        world.publish(SCORES, b"1:0", b"2:0", b"3:0")
        client.outlet.lagging = False
        world.hub.wake(client.outlet.subscriptions)
        client.say("UNSUBSCRIBE scores", "SUBSCRIBE scores FROM k3f9ab.1-0")
        world.clock.advance(0)
        assert client.lines() == [
            '{"type":"unsubscribed","channel":"scores","offset":0,"id":"k3f9ab.1-0"}',
            '{"type":"subscribed","channel":"scores","offset":0,"id":"k3f9ab.1-0","upstream":"up","recovered":true}',
            *(
                f'{{"type":"message","channel":"scores","offset":{n},"id":"k3f9ab.1-{n}","data":"{n}:0"}}'
                for n in (1, 2, 3)
            ),
        ]

    def test_publish_is_answered_in_order(self, world: World) -> None:
        client = world.client()
        client.say("PUBLISH chat hello  world", 'publish chat "two\\nlines"', "PUBLISH chat x")
        assert client.lines() == []
        assert [command.payload for command, _ in world.publisher.waiting] == [
            b"hello  world",
            b"two\nlines",
            b"x",
        ]
        world.publisher.answer(3)
        command = world.publisher.waiting[0][0]
        world.publisher.answer(failed(command, "unavailable", "no answer within 5 s"))
        world.publisher.answer(0)
        assert client.lines() == [
            '{"type":"published","channel":"chat","receivers":3}',
            '{"type":"error","code":"unavailable","message":"no answer within 5 s","command":"PUBLISH"'
            ',"channel":"chat"}',
            '{"type":"published","channel":"chat","receivers":0}',
        ]

    @pytest.mark.parametrize(
        ("line", "data"),
        [
            ("PING", ""),
            ("ping are you there?", "are you there?"),
            ('PING "a\\u0000"', "a\\u0000"),
            ("PING snö", "snö"),
        ],
    )
    def test_ping(self, world: World, line: str, data: str) -> None:
        client = world.client()
        client.say(line)
        assert client.lines() == [f'{{"type":"pong","data":"{data}"}}']

    def test_status(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores SLOW skip")
        world.publish(SCORES, b"1:0")
        client.heard()
        client.say("STATUS")
        assert client.lines() == [
            '{"type":"status","client":"192.0.2.1:4242","upstream":"up","subscriptions":'
            '[{"channel":"scores","offset":1,"head":1,"missed":0,"slow":"skip"}]}'
        ]

    def test_status_does_not_tell_of_what_waits_for_redis(self, world: World) -> None:
        client = world.client()
        client.say("SUBSCRIBE scores", "STATUS")
        assert client.heard()[-1]["subscriptions"] == []

    def test_help(self, world: World) -> None:
        client = world.client()
        client.say("HELP")
        assert client.heard() == [{"type": "help", "commands": list(USAGE.values())}]

    def test_quit(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores")
        client.say("QUIT")
        assert client.lines() == ['{"type":"bye","reason":"quit"}']
        assert client.closed
        assert world.is_clean()

    @pytest.mark.parametrize("line", ["", "  \t "])
    def test_a_line_without_words_is_not_answered(self, world: World, line: str) -> None:
        client = world.client()
        client.say(line)
        assert client.lines() == []


def _saying(*lines: str) -> Callable[[World], Client]:
    def provoke(world: World) -> Client:
        client = world.client()
        client.say(*lines)
        return client

    return provoke


def _strange(*lines: str) -> Callable[[World], Client]:
    """Say something where a token is asked for."""

    def provoke(world: World) -> Client:
        world.terms = replace(world.terms, tokens=Verifier(GRANTS))
        return _saying(*lines)(world)

    return provoke


def _not_utf8(world: World) -> Client:
    client = world.client()
    client.session.received(b"PING \xff")
    return client


def _auth_timeout(world: World) -> Client:
    client = _strange()(world)
    world.clock.advance(5)
    return client


def _already(world: World) -> Client:
    client = world.subscribed("SUBSCRIBE scores")
    client.say("subscribe scores")
    return client


def _too_many(world: World) -> Client:
    world.terms = replace(world.terms, max_subscriptions=1)
    return _saying("SUBSCRIBE scores", "PSUBSCRIBE news.*")(world)


def _no_room(world: World) -> Client:
    for number in range(10):
        world.subscribed(f"SUBSCRIBE room.{number}")
    return _saying("SUBSCRIBE scores")(world)


def _refused(world: World) -> Client:
    client = _saying("PSUBSCRIBE news.*")(world)
    world.channels.refused(NEWS, "NOPERM no permissions")
    return client


def _unavailable(world: World) -> Client:
    client = _saying("PUBLISH chat hello")(world)
    command = world.publisher.waiting[0][0]
    world.publisher.answer(failed(command, "unavailable", "1024 messages wait for Redis already"))
    return client


ABOUT_SCORES = {"command": "SUBSCRIBE", "channel": "scores"}
ABOUT_NEWS = {"command": "PSUBSCRIBE", "pattern": "news.*"}

ERRORS: dict[str, tuple[Callable[[World], Client], Event]] = {
    "unknown-command": (
        _saying("JUMP high"),
        error("unknown-command", f"there is no such command; allowed: {', '.join(USAGE)}"),
    ),
    "bad-arguments": (
        _saying("PSUBSCRIBE news.* FROM"),
        error("bad-arguments", f"an id is wanted; allowed: {USAGE['PSUBSCRIBE']}", "PSUBSCRIBE"),
    ),
    "bad-encoding": (_not_utf8, error("bad-encoding", "the line is not UTF-8")),
    "auth-required": (
        _strange("SUBSCRIBE scores"),
        error("auth-required", "say AUTH and a token first", **ABOUT_SCORES),
    ),
    "auth-timeout": (_auth_timeout, error("auth-timeout", "no good AUTH within 5 s")),
    "auth-unused": (_saying("AUTH alice"), error("auth-unused", "no token is asked for here", "AUTH")),
    "token-invalid": (_strange("AUTH mallory"), error("token-invalid", "it is wrong", "AUTH")),
    "token-expired": (_strange("AUTH token-expired"), error("token-expired", "it is wrong", "AUTH")),
    "token-not-yet-valid": (
        _strange("AUTH token-not-yet-valid"),
        error("token-not-yet-valid", "it is wrong", "AUTH"),
    ),
    "forbidden": (
        _saying("SUBSCRIBE secrets"),
        error(
            "forbidden", "this client may not subscribe to secrets", command="SUBSCRIBE", channel="secrets"
        ),
    ),
    "already-subscribed": (
        _already,
        error("already-subscribed", "there is a subscription to scores", **ABOUT_SCORES),
    ),
    "not-subscribed": (
        _saying("PUNSUBSCRIBE news.*"),
        error("not-subscribed", "there is no subscription to news.*", "PUNSUBSCRIBE", pattern="news.*"),
    ),
    "too-many-subscriptions": (_too_many, error("too-many-subscriptions", "allowed: 1", **ABOUT_NEWS)),
    "too-many-channels": (_no_room, error("too-many-channels", "all logs are in use", **ABOUT_SCORES)),
    "refused": (_refused, error("refused", "Redis does not allow it", **ABOUT_NEWS)),
    "unavailable": (
        _unavailable,
        error("unavailable", "1024 messages wait for Redis already", "PUBLISH", channel="chat"),
    ),
    "rate-limited": (
        _saying(*[""] * 201),
        error("rate-limited", "allowed: 20 commands a second", retry_ms=10_000),
    ),
}
"""Each code that a session can give: how to get it, and the event."""

OF_CONNECTIONS = {"line-too-long", "too-many-clients"}
"""Codes that connections give, which tests/test_control.py is about."""


class TestErrors:
    def test_each_code_of_the_document_is_given(self) -> None:
        table = PROTOCOL.read_text().partition("### error")[2].partition("## Offsets and ids")[0]
        rows = re.findall(r"^\| (`[^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
        codes = {code: meaning for names, meaning in rows for code in re.findall(r"`([a-z-]+)`", names)}
        assert len(codes) > 15
        assert codes.keys() == ERRORS.keys() | OF_CONNECTIONS
        closing = {code for code, meaning in codes.items() if "**closed**" in meaning}
        assert closing == {"auth-timeout", "rate-limited"} | OF_CONNECTIONS

    @pytest.mark.parametrize("code", ERRORS)
    def test_a_mistake_has_its_code_and_leaves_nothing(self, world: World, code: str) -> None:
        provoke, expected = ERRORS[code]
        client = provoke(world)
        assert code == expected["code"]
        assert client.heard() == [expected]
        assert client.closed == (code in ("auth-timeout", "rate-limited"))
        if code != "already-subscribed":
            assert client.outlet.subscriptions == []

    def test_a_refused_message_and_one_that_may_not_be_published(self, world: World) -> None:
        client = world.client()
        client.say("PUBLISH scores 9:0", "PUBLISH chat hello")
        world.publisher.answer(failed(world.publisher.waiting[0][0], "refused", "NOPERM"))
        assert client.heard() == [
            error("forbidden", "this client may not publish to scores", "PUBLISH", channel="scores"),
            error("refused", "NOPERM", "PUBLISH", channel="chat"),
        ]

    def test_a_pattern_may_not_match_more_than_is_allowed(self, world: World) -> None:
        client = world.client()
        client.say("PSUBSCRIBE *", "PSUBSCRIBE news.sport.*", "PSUBSCRIBE scores")
        assert [event["code"] for event in client.heard()] == ["forbidden"]
        assert world.upstream.followed == [
            Topic(b"news.sport.*", Kind.PATTERN),
            Topic(b"scores", Kind.PATTERN),
        ]


class TestWaiting:
    """Between SUBSCRIBE and what Redis says."""

    def test_a_second_subscribe_meanwhile_is_a_mistake(self, world: World) -> None:
        client = world.client()
        client.say("SUBSCRIBE scores", "SUBSCRIBE scores LAST 1")
        assert [event["code"] for event in client.heard()] == ["already-subscribed"]
        world.channels.confirmed(SCORES)
        assert client.types() == ["subscribed"]

    def test_unsubscribe_meanwhile_is_answered_without_a_place(self, world: World) -> None:
        client = world.client()
        client.say("SUBSCRIBE scores", "UNSUBSCRIBE scores")
        assert client.lines() == ['{"type":"unsubscribed","channel":"scores"}']
        world.channels.confirmed(SCORES)
        world.publish(SCORES, b"1:0")
        assert client.lines() == []
        client.session.end()
        assert world.is_clean()

    def test_subscribe_again_meanwhile_is_answered_once(self, world: World) -> None:
        client = world.client()
        client.say("SUBSCRIBE scores", "UNSUBSCRIBE scores", "SUBSCRIBE scores")
        client.heard()
        world.channels.confirmed(SCORES)
        assert client.types() == ["subscribed"]

    def test_a_client_that_leaves_meanwhile_hears_nothing(self, world: World) -> None:
        client = world.client()
        client.say("SUBSCRIBE scores", "PUBLISH chat hello", "PUBLISH chat world")
        client.session.end()
        world.channels.confirmed(SCORES)
        world.publisher.answer(1)
        world.publisher.answer(failed(world.publisher.waiting[0][0], "unavailable", "too late"))
        assert client.lines() == []
        assert world.is_clean()

    def test_what_waits_counts_for_max_subscriptions_until_it_is_refused(self) -> None:
        world = World(max_subscriptions=2)
        client = world.client()
        client.say("SUBSCRIBE room.1", "SUBSCRIBE room.2", "SUBSCRIBE room.3")
        assert [event["code"] for event in client.heard()] == ["too-many-subscriptions"]
        world.channels.refused(Topic(b"room.1"), "NOPERM")
        world.channels.confirmed(Topic(b"room.2"))
        client.heard()
        client.say("SUBSCRIBE room.3", "SUBSCRIBE room.4")
        assert [event["code"] for event in client.heard()] == ["too-many-subscriptions"]
        client.say("UNSUBSCRIBE room.2", "SUBSCRIBE room.4")
        assert client.types() == ["unsubscribed"]

    def test_what_becomes_of_messages_is_told_in_their_order(self) -> None:
        world = World(bounds=permissions("*", publish=("chat",)))
        client = world.client()
        client.say("PUBLISH chat 1", "PUBLISH chat 2", "PUBLISH secret 3")
        (first, answer_first), (_, answer_second) = world.publisher.waiting
        answer_second(failed(first, "unavailable", "busy"))
        assert client.heard() == []
        answer_first(7)
        assert [event.get("code", event["type"]) for event in client.heard()] == [
            *("published", "unavailable", "forbidden")
        ]

    @pytest.mark.parametrize("line", ["POST / HTTP/1.1", "Host: localhost:8889", "host:x"])
    def test_browsers_are_not_listened_to(self, line: str) -> None:
        client = World().client()
        client.say("GET / HTTP/1.1", line)
        assert [event["code"] for event in client.heard()] == ["unknown-command", "unknown-command"]
        assert client.closed

    def test_patterns_are_fewer(self) -> None:
        world = World(bounds=permissions("*"))
        client = world.client()
        client.say(*(f"PSUBSCRIBE {number}*" for number in range(MAX_PATTERNS + 1)), "SUBSCRIBE a")
        assert [event["message"] for event in client.heard()] == ["allowed: 8 patterns"]

    def test_what_was_refused_can_be_asked_for_again(self, world: World) -> None:
        client = world.client()
        client.say("SUBSCRIBE scores")
        world.channels.refused(SCORES, "NOPERM")
        client.say("SUBSCRIBE scores", "UNSUBSCRIBE scores")
        assert [event["code"] for event in client.heard()] == ["refused", "refused", "not-subscribed"]
        world.channels.confirmed(SCORES)
        client.say("SUBSCRIBE scores")
        assert client.types() == ["subscribed"]

    def test_an_upstream_may_answer_at_once(self, world: World) -> None:
        world.upstream.at_once = world.channels.confirmed
        client = world.client()
        client.say("SUBSCRIBE scores", "PING")
        assert client.types() == ["subscribed", "pong"]


class TestFinishing:
    """A client that will say nothing more, and waits for its answers."""

    def test_it_is_closed_at_once_where_all_is_answered(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores", "PING")
        client.session.finish()
        assert client.closed
        assert client.lines() == []

    @pytest.mark.parametrize("becomes", ["confirmed", "lost", "refused"])
    def test_it_is_closed_once_redis_has_answered(self, world: World, becomes: str) -> None:
        client = world.client()
        client.say("SUBSCRIBE scores", "PUBLISH chat hello")
        client.session.finish()
        world.publisher.answer(1)
        assert client.types() == ["published"]
        assert not client.closed
        if becomes == "refused":
            world.channels.refused(SCORES, "NOPERM")
            assert client.types() == ["error"]
        else:
            getattr(world.channels, becomes)(SCORES)
            assert client.types() == ["subscribed"]
        assert client.closed
        assert world.is_clean()

    def test_it_is_closed_behind_the_last_answer_to_publish(self, world: World) -> None:
        client = world.client()
        client.say("PUBLISH chat hello", "PUBLISH chat world")
        client.session.finish()
        world.publisher.answer(1)
        assert not client.closed
        world.publisher.answer(failed(world.publisher.waiting[0][0], "unavailable", "no answer"))
        assert client.types() == ["published", "error"]
        assert client.closed


class TestStrangers:
    @pytest.fixture
    def world(self) -> World:
        return World(tokens=Verifier(GRANTS))

    @pytest.mark.parametrize("command", USAGE)
    def test_may_do_four_things(self, world: World, command: str) -> None:
        line = {
            "AUTH": "AUTH mallory",
            "SUBSCRIBE": "SUBSCRIBE scores",
            "PSUBSCRIBE": "PSUBSCRIBE news.*",
            "UNSUBSCRIBE": "UNSUBSCRIBE scores",
            "PUNSUBSCRIBE": "PUNSUBSCRIBE news.*",
            "PUBLISH": "PUBLISH chat hello",
        }.get(command, command)
        client = world.client()
        client.say(line)
        (said,) = client.heard()
        assert (said.get("code") == "auth-required") == (command not in ("AUTH", "PING", "HELP", "QUIT"))
        assert said.get("command", command) == command
        assert world.upstream.calls == world.publisher.waiting == []
        assert client.outlet.subscriptions == []

    def test_are_sent_no_heartbeat_and_leave_nothing(self, world: World) -> None:
        world.terms = replace(world.terms, auth_timeout=1000.0)
        client = world.client()
        world.clock.advance(10 * HEARTBEAT)
        assert client.lines() == []
        client.session.end()
        assert world.clock.getDelayedCalls() == []

    def test_have_so_much_time_whatever_else_they_say(self, world: World) -> None:
        client = world.client()
        for _ in range(4):
            world.clock.advance(1)
            client.say("PING", "HELP")
        client.say("AUTH mallory", "AUTH mallory")
        assert not client.closed
        client.heard()
        world.clock.advance(1)
        assert client.heard() == [error("auth-timeout", "no good AUTH within 5 s")]
        assert client.closed
        assert world.clock.getDelayedCalls() == []

    def test_have_three_tries(self, world: World) -> None:
        client = world.client()
        client.say("AUTH mallory", "AUTH mallory", "AUTH mallory")
        assert client.types() == ["error", "error", "error"]
        assert client.closed

    def test_may_say_who_they_are_after_a_mistake(self, world: World) -> None:
        client = world.client()
        assert client.session.is_stranger
        client.say("AUTH mallory", "AUTH alice", "SUBSCRIBE scores")
        assert client.types() == ["error", "authenticated"]
        assert not client.session.is_stranger
        assert world.upstream.followed == [SCORES]
        world.clock.advance(5)
        assert not client.closed


class TestTokens:
    @pytest.fixture
    def world(self) -> World:
        return World(tokens=Verifier(GRANTS), heartbeat=1e6, bounds=permissions("*", publish=("*",)))

    def test_expire(self, world: World) -> None:
        client = world.client()
        client.say("AUTH alice", "SUBSCRIBE scores")
        client.heard()
        world.clock.advance(59)
        assert client.lines() == []
        world.clock.advance(1)
        assert client.lines() == ['{"type":"bye","reason":"token-expired"}']
        assert client.closed
        assert world.is_clean()

    def test_can_be_extended(self, world: World) -> None:
        client = world.client()
        client.say("AUTH alice")
        world.clock.advance(59)
        client.say("AUTH longer")
        world.clock.advance(540)
        assert not client.closed
        assert [event["expires"] for event in client.heard()] == [
            "1970-01-12T13:47:40.000Z",
            "1970-01-12T13:56:40.000Z",
        ]
        world.clock.advance(1)
        assert client.closed

    @pytest.mark.parametrize("wrong", ["mallory", "token-expired", "token-not-yet-valid"])
    def test_that_are_wrong_leave_what_held_before(self, world: World, wrong: str) -> None:
        client = world.client()
        client.say("AUTH less", "SUBSCRIBE scores", f"AUTH {wrong}", "SUBSCRIBE room.1", "STATUS")
        world.channels.confirmed(SCORES)
        client.say("STATUS")
        said = client.heard()
        assert [event.get("code", event["type"]) for event in said] == [
            "authenticated",
            wrong if wrong.startswith("token-") else "token-invalid",
            "forbidden",
            "status",
            "subscribed",
            "status",
        ]
        assert (said[-1]["name"], len(said[-1]["subscriptions"])) == ("alice", 1)
        world.clock.advance(60)
        assert client.closed

    def test_that_grant_less_take_subscriptions_away(self, world: World) -> None:
        client = world.client()
        client.say("AUTH alice", "SUBSCRIBE scores", "SUBSCRIBE secrets", "PSUBSCRIBE news.*")
        for topic in (SCORES, Topic(b"secrets")):
            world.channels.confirmed(topic)
        world.publish(Topic(b"secrets"), b"one")
        client.heard()
        client.say("AUTH less")
        assert client.lines() == [
            '{"type":"authenticated","name":"alice","expires":"1970-01-12T13:47:40.000Z"}',
            '{"type":"unsubscribed","pattern":"news.*"}',
            '{"type":"unsubscribed","channel":"secrets","offset":1,"id":"k3f9ab.2-1"}',
        ]
        world.publish(Topic(b"secrets"), b"two")
        world.publish(SCORES, b"1:0")
        world.channels.confirmed(NEWS)
        assert client.types() == ["message"]
        world.clock.advance(LEAVE_SECONDS)
        assert world.upstream.followed == [SCORES]

    def test_allow_no_more_than_the_bounds(self, world: World) -> None:
        world.terms = replace(world.terms, bounds=permissions("news.*", publish=("chat",)))
        client = world.client()
        client.say("AUTH alice", "SUBSCRIBE scores", "PUBLISH scores 1", "SUBSCRIBE news.x", "PUBLISH chat x")
        assert [event.get("code") for event in client.heard()] == [None, "forbidden", "forbidden"]
        assert world.upstream.followed == [Topic(b"news.x")]
        assert len(world.publisher.waiting) == 1

    def test_may_allow_nothing(self, world: World) -> None:
        client = world.client()
        client.say("AUTH nobody", "SUBSCRIBE scores", "PUBLISH chat x")
        assert [event.get("code") for event in client.heard()] == [None, "forbidden", "forbidden"]

    def test_may_be_good_for_ever(self, world: World) -> None:
        client = world.client()
        client.say("AUTH for-ever")
        assert client.heard() == [
            {"type": "authenticated", "name": "alice", "expires": "9999-12-31T23:59:59.000Z"}
        ]
        for _ in range(1000):
            world.clock.advance(24 * 3600)
        assert not client.closed
        client.session.end()
        assert world.clock.getDelayedCalls() == []


class TestLimits:
    def test_so_many_commands_at_once_after_a_quiet_time(self, world: World) -> None:
        client = world.client()
        client.say(*["PING"] * 200)
        world.clock.advance(0.5)
        client.say(*["PING"] * 10)
        assert client.types() == ["pong"] * 210
        client.say("PING")
        assert [event["code"] for event in client.heard()] == ["rate-limited"]
        assert client.closed

    def test_the_error_is_the_last_thing_that_is_said(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores", *["JUMP"] * 199)
        client.say("PUBLISH chat hello")
        assert [event["code"] for event in client.heard()] == ["rate-limited"]
        assert world.publisher.waiting == []
        world.clock.advance(HEARTBEAT)
        assert client.lines() == []
        assert world.is_clean()

    def test_a_rate_may_be_less_than_one(self) -> None:
        world = World(command_rate=0.1)
        client = world.client()
        client.say("PING")
        world.clock.advance(10)
        client.say("PING")
        world.clock.advance(9)
        client.say("PING")
        assert client.heard()[-1]["message"] == "allowed: 0.1 commands a second"
        assert client.closed

    def test_an_idle_log_makes_room(self) -> None:
        world = World(max_channels=2)
        world.subscribed("SUBSCRIBE room.1")
        leaving = world.subscribed("SUBSCRIBE room.2")
        client = world.client()
        client.say("SUBSCRIBE scores")
        assert [event["code"] for event in client.heard()] == ["too-many-channels"]
        leaving.say("UNSUBSCRIBE room.2")
        client.say("SUBSCRIBE scores")
        world.channels.confirmed(SCORES)
        assert client.types() == ["subscribed"]
        assert world.upstream.followed == [Topic(b"room.1"), SCORES]

    def test_an_error_for_want_of_room_leaves_no_subscription(self) -> None:
        world = World(max_channels=1)
        other = world.subscribed("SUBSCRIBE room.1")
        client = world.client()
        client.say("SUBSCRIBE scores", "UNSUBSCRIBE scores")
        assert [event["code"] for event in client.heard()] == ["too-many-channels", "not-subscribed"]
        client.session.end()
        other.session.end()
        assert world.is_clean()


class TestShardChannels:
    @pytest.fixture
    def client(self, world: World) -> Client:
        world.channels.pin(Topic(b"room.orders", Kind.SHARD))
        world.channels.confirmed(Topic(b"room.orders", Kind.SHARD))
        return world.client()

    def test_are_meant_by_their_names(self, world: World, client: Client) -> None:
        client.say("SUBSCRIBE room.orders", "SUBSCRIBE room.orders")
        world.publish(Topic(b"room.orders", Kind.SHARD), b"one")
        client.say("UNSUBSCRIBE room.orders")
        assert client.lines() == [
            '{"type":"subscribed","channel":"room.orders","offset":0,"id":"k3f9ab.1-0","upstream":"up"}',
            '{"type":"error","code":"already-subscribed","message":"there is a subscription to room.orders"'
            ',"command":"SUBSCRIBE","channel":"room.orders"}',
            '{"type":"message","channel":"room.orders","offset":1,"id":"k3f9ab.1-1","data":"one"}',
            '{"type":"unsubscribed","channel":"room.orders","offset":1,"id":"k3f9ab.1-1"}',
        ]
        assert world.upstream.calls == []

    def test_are_not_meant_by_patterns(self, world: World, client: Client) -> None:
        client.say("PSUBSCRIBE room.orders", "UNSUBSCRIBE room.orders")
        assert [event["code"] for event in client.heard()] == ["not-subscribed"]
        assert world.upstream.followed == [Topic(b"room.orders", Kind.PATTERN)]


class TestHeartbeats:
    def test_come_every_so_often_the_first_a_little_sooner(self, world: World) -> None:
        clients = [world.client() for _ in range(100)]
        firsts = sorted(call.getTime() for call in world.clock.getDelayedCalls())
        assert HEARTBEAT / 2 <= firsts[0] < 0.7 * HEARTBEAT
        assert 0.8 * HEARTBEAT < firsts[-1] <= HEARTBEAT
        world.clock.advance(HEARTBEAT)
        for client in clients:
            assert client.lines() == ['{"type":"heartbeat","upstream":"up","offsets":{}}']
        for _ in range(3):
            world.clock.advance(HEARTBEAT)
            for client in clients:
                assert client.types() == ["heartbeat"]

    def test_come_from_auth_on(self) -> None:
        world = World(tokens=Verifier(GRANTS))
        client = world.client()
        world.clock.advance(4)
        client.say("AUTH longer", "AUTH longer")
        client.heard()
        world.clock.advance(HEARTBEAT)
        assert client.types() == ["heartbeat"]
        client.session.end()
        assert world.clock.getDelayedCalls() == []

    def test_tell_of_an_outage(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores")
        world.channels.lost(SCORES)
        world.clock.advance(HEARTBEAT)
        assert client.lines() == [
            '{"type":"heartbeat","upstream":"down","since":"1970-01-12T13:46:40.000Z","offsets":{"scores":0}}'
        ]

    def test_tell_nothing_of_what_waits_for_redis(self, world: World) -> None:
        client = world.client()
        client.say("SUBSCRIBE scores")
        world.clock.advance(HEARTBEAT)
        assert client.lines() == ['{"type":"heartbeat","upstream":"up","offsets":{}}']

    def test_end_with_the_session(self, world: World) -> None:
        client = world.client()
        client.session.end()
        client.session.end()
        assert world.clock.getDelayedCalls() == []


DEATHS: dict[str, tuple[str, ...]] = {
    "PING": ("PING",),
    "HELP": ("HELP",),
    "STATUS": ("STATUS",),
    "QUIT": ("QUIT",),
    "JUMP": ("JUMP",),
    "AUTH": ("AUTH longer",),
    "AUTH with less": ("AUTH less",),
    "AUTH with nothing": ("AUTH nobody",),
    "SUBSCRIBE": ("SUBSCRIBE room.1",),
    "UNSUBSCRIBE": ("UNSUBSCRIBE scores",),
    "too many": ("PING",) * 250,
}
"""What is said when the connection turns out to be dead."""


class TestDeadConnections:
    """The connection is lost inside a reply, as the transports of Twisted in memory do."""

    @pytest.mark.parametrize("tokens", [None, Verifier(GRANTS)])
    def test_at_the_welcome(self, tokens: Verifier | None) -> None:
        world = World(tokens=tokens)
        client = Client(world)
        client.outlet.on_reply = client.close
        client.session.begin()
        assert world.is_clean()

    @pytest.mark.parametrize("said", DEATHS)
    @pytest.mark.parametrize("replies", [1, 2])
    def test_at_an_answer(self, said: str, replies: int) -> None:
        world = World(tokens=Verifier(GRANTS), bounds=permissions("*", publish=("*",)))
        world.upstream.at_once = world.channels.confirmed
        client = world.client()
        client.say("AUTH alice", "SUBSCRIBE scores", "SUBSCRIBE secrets", "PSUBSCRIBE news.*")
        client.heard()

        def lose() -> None:
            if len(client.outlet.sent) == replies:
                client.close()

        client.outlet.on_reply = lose
        for line in DEATHS[said]:
            if not client.closed:
                client.say(line)
        client.session.end()
        assert world.is_clean()

    @pytest.mark.parametrize("becomes", ["confirmed", "lost", "refused", "published", "heartbeat", "expired"])
    def test_at_what_comes_later(self, becomes: str) -> None:
        world = World(tokens=Verifier(GRANTS), bounds=permissions("*", publish=("*",)))
        client = world.client()
        client.say("AUTH alice", "SUBSCRIBE scores", "SUBSCRIBE room.1", "PUBLISH chat hello")
        client.heard()
        client.outlet.on_reply = client.close
        match becomes:
            case "refused":
                world.channels.refused(SCORES, "NOPERM")
            case "published":
                world.publisher.answer(1)
            case "heartbeat" | "expired":
                world.clock.advance(HEARTBEAT if becomes == "heartbeat" else 60)
            case _:
                getattr(world.channels, becomes)(SCORES)
        assert client.closed
        assert len(client.outlet.sent) == 1
        for _, answer in world.publisher.waiting:
            answer(1)
        world.channels.confirmed(Topic(b"room.1"))
        assert len(client.outlet.sent) == 1
        assert world.is_clean()

    def test_at_a_message(self, world: World) -> None:
        client = world.subscribed("SUBSCRIBE scores", "PSUBSCRIBE news.*")
        other = world.subscribed("SUBSCRIBE scores")
        client.outlet.on_send = client.close
        world.publish(SCORES, b"1:0")
        world.publish(NEWS, b"one")
        assert (client.types(), other.types()) == (["message"], ["message"])
        other.session.end()
        assert world.is_clean()

    def test_while_it_finishes(self, world: World) -> None:
        client = world.client()
        client.say("PUBLISH chat hello", "SUBSCRIBE scores")
        client.session.finish()
        client.outlet.on_reply = client.close
        world.channels.confirmed(SCORES)
        world.publisher.answer(1)
        assert client.types() == ["subscribed"]
        assert world.is_clean()


def test_goodbyes(world: World) -> None:
    client = world.client()
    client.session.say_goodbye("drain", retry_ms=4210)
    client.session.say_error("line-too-long", "allowed: 8192 bytes")
    assert client.lines() == [
        '{"type":"bye","reason":"drain","retry_ms":4210}',
        '{"type":"error","code":"line-too-long","message":"allowed: 8192 bytes","command":null}',
    ]
