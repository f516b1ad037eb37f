"""Sessions against a naive model: clients come and go, Redis too, logs forget, and every account closes."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock

from pushd.channels import LEAVE_SECONDS, Channels
from pushd.events import show_time
from pushd.hub import Hub
from pushd.message import Batch, Kind, SourceGap, Topic
from pushd.metrics import Metrics
from pushd.session import Session
from pushd.settings import SlowPolicy
from pushd.subscription import Subscription
from tests.test_session import TERMS, Event, RecordingPublisher, permissions

ROOMS = (b"a", b"b", b"c")
TOPICS = (*map(Topic, ROOMS), Topic(b"?", Kind.PATTERN))
MAX_CHANNELS = 3
LINGER = 20
HISTORY = 2000

WHO = st.integers(0, 2)
MOSTLY = st.sampled_from((TOPICS[0], TOPICS[0], TOPICS[0], *TOPICS))
POLICY = st.sampled_from((None, *SlowPolicy))
SIZES = st.lists(st.integers(0, 300), min_size=1, max_size=8)
SECONDS = st.sampled_from((0, 0, 1, 3, 5, 20))

MODEL_TERMS = replace(TERMS, bounds=permissions("*"), command_rate=1e6, heartbeat=2.0)


class ModelLog:
    """All that one log has ever had: messages with their channels, and source gaps. Nothing is evicted."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.entries: list[tuple[bytes, bytes] | SourceGap] = []
        self._messages = [0]  # before each place

    def append(self, entry: tuple[bytes, bytes] | SourceGap) -> None:
        self.entries.append(entry)
        self._messages.append(self._messages[-1] + (not isinstance(entry, SourceGap)))

    def messages(self, place: int = -1) -> int:
        """Return how many messages are before a place, or in all."""
        return self._messages[place]

    def gaps(self, place: int = -1) -> int:
        """Return how many source gaps are before a place, or in all."""
        return (len(self.entries) if place == -1 else place) - self._messages[place]

    def place(self, messages: int, gaps: int) -> int:
        """Return the place that so many messages and source gaps are before."""
        place = messages + gaps
        assert (self.messages(place), self.gaps(place)) == (messages, gaps)
        return place


@dataclass(eq=False)
class Kept:
    """A topic that has a log."""

    log: ModelLog | None = None  # until it is followed for the first time
    claimants: set["Client"] = field(default_factory=set)
    left_at: float | None = None  # as the upstream has answered
    was_empty: bool = False  # when its last claimant left
    leave_due: float | None = None
    close_due: float | None = None


@dataclass
class Followed:
    """What Redis has of a topic."""

    missing_since: float | None
    state: str = "asked"  # then up, down or refused
    down_at: float = 0.0


class Redis:
    """What sources are together: for each topic it is lost, then interrupted, then confirmed."""

    down_since: float | None = None

    def __init__(self, world: "Sessions", *, is_up: bool, forbidden: set[Topic]) -> None:
        self.world = world
        self.is_up = is_up
        self.forbidden = forbidden
        self.answers_at_once = True
        self.topics: dict[Topic, Followed] = {}

    @property
    def now(self) -> float:
        return self.world.clock.seconds()

    def follow(self, topic: Topic, since: float | None = None) -> None:
        assert topic not in self.topics
        kept = self.world.kept[topic]
        assert since == kept.left_at
        if kept.log is None:
            kept.log = self.world.new_log(topic)
        kept.left_at = None
        self.topics[topic] = Followed(since)
        if not self.is_up:
            self._lose(topic)
        elif self.answers_at_once:
            self.answer(topic)

    def leave(self, topic: Topic) -> float:
        followed = self.topics.pop(topic)
        complete_until = self.now if followed.missing_since is None else followed.missing_since
        if topic in self.world.kept:
            self.world.kept[topic].left_at = complete_until
        return complete_until

    def lose_all(self) -> None:
        self.is_up = False
        for topic in list(self.topics):
            self._lose(topic)

    def answer(self, topic: Topic) -> None:
        followed = self.topics[topic]
        if followed.state == "up":
            return
        if topic in self.forbidden:
            self._fail(followed, "refused")
            self.world.channels.refused(topic, "NOPERM")
            return
        if followed.missing_since is not None:
            gap = SourceGap(followed.missing_since, self.now)
            followed.missing_since = None
            self.world.log(topic).append(gap)
            self.world.channels.interrupt(topic, gap)
        followed.state = "up"
        self.world.channels.confirmed(topic)

    def publish(self, channel: bytes, payloads: list[bytes]) -> None:
        for topic in list(self.topics):
            if self.topics[topic].state == "up" and topic.name in (channel, b"?"):
                self.world.deliver(topic, channel, payloads)

    def lose_something(self, topic: Topic) -> None:
        """Notice that something was lost although the subscription lasts."""
        if self.topics[topic].state == "up":
            gap = SourceGap(self.now, self.now)
            self.world.log(topic).append(gap)
            self.world.channels.interrupt(topic, gap)

    def _lose(self, topic: Topic) -> None:
        self._fail(self.topics[topic], "down")
        self.world.channels.lost(topic)

    def _fail(self, followed: Followed, state: str) -> None:
        if followed.missing_since is None:
            followed.missing_since = self.now
        if followed.state in ("asked", "up"):
            followed.down_at = self.now
        followed.state = state


class ClientOutlet:
    """One connection; the test decides whether it lags, and what it is sent is read at once."""

    def __init__(self, client: "Client") -> None:
        self.lagging = False
        self.lags_next = False
        self.peer = "192.0.2.1:4242"
        self.subscriptions: list[Subscription] = []
        self._client = client

    def send(self, data: bytes) -> None:
        assert not self.lagging
        self.reply(data)

    def reply(self, data: bytes) -> None:
        """Send behind the frame that is on its way, and before all that is sent later."""
        self.lagging |= self.lags_next
        self._client.hear(data)

    def overrun(self, topic: Topic, messages: int, size: int) -> None:
        assert self._client.subscribed[topic].policy is SlowPolicy.DISCONNECT
        self._client.world.heard["overrun"] += 1
        self._client.disconnect()

    def failed(self) -> None:
        raise  # noqa: PLE0704 - what the hub has just caught


@dataclass
class Place:
    """What a client knows an id to mean."""

    id: str
    log: ModelLog
    place: int


@dataclass
class Asked:
    """What a client has said in SUBSCRIBE."""

    policy: SlowPolicy
    last: int | None = None
    after: Place | None = None


@dataclass
class Subscribed:
    """A client's account of one subscription: up to where it has everything, or knows that it misses it."""

    log: ModelLog
    policy: SlowPolicy
    place: int
    id: str
    told_next: tuple[str, int] | None = None  # a gap that must come at once: its reason, and where it ends


class Client:
    """One client, which remembers over all its connections which ids it got."""

    def __init__(self, world: "Sessions") -> None:
        self.world = world
        self._session: Session | None = None
        self.outlet = ClientOutlet(self)
        self.asked: dict[Topic, Asked] = {}
        self.subscribed: dict[Topic, Subscribed] = {}
        self.places: list[Place] = []
        self._errors: list[str] = []  # that are expected

    def say(self, line: str, *errors: str) -> None:
        """Say something that is answered with these errors."""
        if self._session is None:
            self._connect()
        assert self._session is not None
        self._errors += errors
        self._session.received(line.encode())
        assert self._errors == []

    def _connect(self) -> None:
        self._session = Session(
            MODEL_TERMS,
            self.outlet,
            hub=self.world.hub,
            channels=self.world.channels,
            publish=RecordingPublisher(),
            clock=self.world.clock,
            wall=self.world.clock.seconds,
            close=self.disconnect,
        )
        self._session.begin()

    def disconnect(self) -> None:
        if self._session is not None:
            self._session.end()
            for topic in (*self.asked, *self.subscribed):
                self.world.release(topic, self)
            self.forget()

    def forget(self) -> None:
        """Have no connection any more, maybe since there is no pushd any more."""
        self._session = None
        self.outlet = ClientOutlet(self)
        self.asked.clear()
        self.subscribed.clear()

    def wake(self) -> None:
        self.outlet.lags_next = False
        if self.outlet.lagging:
            self.outlet.lagging = False
            self.world.hub.wake(self.outlet.subscriptions)

    def hear(self, data: bytes) -> None:
        assert self._session is not None, "after the end"
        for line in data.decode().split("\n")[:-1]:
            event = json.loads(line)
            self.world.heard[_kind(event)] += 1
            getattr(self, f"_{event['type']}")(event)
        assert all(subscribed.told_next is None for subscribed in self.subscribed.values())

    def _welcome(self, event: Event) -> None:
        assert event["epoch"] == self.world.hub.epoch

    def _bye(self, event: Event) -> None:
        assert event["reason"] == "quit"

    def _error(self, event: Event) -> None:
        if event["code"] == "refused":
            topic = _topic(event)
            assert self.world.redis.topics[topic].state == "refused"
            del self.asked[topic]
            self.world.release(topic, self)
        else:
            assert event["code"] == self._errors.pop(0)

    def _subscribed(self, event: Event) -> None:
        topic = _topic(event)
        asked = self.asked.pop(topic)
        log, tail = self.world.log(topic), self.world.hub.feed(topic).log.tail
        is_up = self.world.redis.topics[topic].state == "up"
        assert event["upstream"] == ("up" if is_up else "down")
        subscribed = Subscribed(log, asked.policy, len(log.entries), event["id"])
        self.subscribed[topic] = subscribed
        if asked.after is not None:
            self._continued(event, subscribed, asked.after, tail, is_up=is_up)
        else:
            assert "recovered" not in event
            if asked.last:
                kept = log.messages() - log.messages(tail)
                subscribed.place = log.place(event["offset"], log.gaps(_from_last(log, tail, asked.last)))
                assert log.messages() - event["offset"] == min(asked.last, kept)
            self._got(subscribed, event)
        assert event["offset"] == log.messages(subscribed.place)

    def _continued(
        self, event: Event, subscribed: Subscribed, after: Place, tail: int, *, is_up: bool
    ) -> None:
        log = subscribed.log
        assert event["id"] == after.id
        if after.log is not log:
            subscribed.place, subscribed.told_next = tail, ("unknown", tail)
        else:
            subscribed.place = after.place
            if after.place < tail:
                subscribed.told_next = "evicted", tail
        is_complete = subscribed.told_next is None and log.gaps() == log.gaps(after.place)
        assert event["recovered"] == (is_complete and is_up)

    def _message(self, event: Event) -> None:
        topic = _topic(event)
        subscribed = self.subscribed[topic]
        entry = subscribed.log.entries[subscribed.place]
        assert (event["channel"].encode(), event["data"].encode()) == entry
        subscribed.place += 1
        assert event["offset"] == subscribed.log.messages(subscribed.place)
        self._got(subscribed, event)

    def _gap(self, event: Event) -> None:
        subscribed = self.subscribed[_topic(event)]
        log, place = subscribed.log, subscribed.place
        match event["reason"]:
            case "source":
                entry = log.entries[place]
                assert isinstance(entry, SourceGap)
                assert (event["since"], event["until"]) == (show_time(entry.since), show_time(entry.until))
                assert event["missed"] is None
                subscribed.place += 1
            case "unknown":
                assert subscribed.told_next == ("unknown", place)
                assert event["missed"] is None
            case reason:
                messages, gaps = log.messages(place), log.gaps(place)
                missed, source_gaps = event["missed"], event.get("source_gaps", 0)
                assert missed or source_gaps
                if missed:
                    assert (event["from"], event["to"]) == (messages + 1, messages + missed)
                subscribed.place = log.place(messages + missed, gaps + source_gaps)
                if reason == "evicted":
                    assert subscribed.told_next == ("evicted", subscribed.place)
                else:
                    assert reason == "slow"
                    assert subscribed.policy is not SlowPolicy.DISCONNECT
        subscribed.told_next = None
        self._got(subscribed, event)

    def _got(self, subscribed: Subscribed, event: Event) -> None:
        subscribed.id = event["id"]
        self.places.append(Place(event["id"], subscribed.log, subscribed.place))

    def _heartbeat(self, event: Event) -> None:
        heads: dict[str, dict[str, int]] = {"": {}, "pattern_": {}}
        behind: dict[str, dict[str, int]] = {"": {}, "pattern_": {}}
        for topic, subscribed in self.subscribed.items():
            prefix, name = "pattern_" * (topic.kind is Kind.PATTERN), topic.name.decode()
            heads[prefix][name] = head = subscribed.log.messages()
            if left := head - subscribed.log.messages(subscribed.place):
                behind[prefix][name] = left
        assert all(event.get(f"{prefix}offsets", {}) == said for prefix, said in heads.items())
        assert all(event.get(f"{prefix}behind", {}) == said for prefix, said in behind.items())
        followed = [self.world.redis.topics[topic] for topic in self.subscribed]
        down = [each.down_at for each in followed if each.state in ("down", "refused")]
        assert event["upstream"] == ("down" if down else "up")
        assert event.get("since") == (show_time(min(down)) if down else None)

    def _unsubscribed(self, event: Event) -> None:
        topic = _topic(event)
        if topic in self.asked:
            assert event.keys() == {"type", *_about(topic)}
            del self.asked[topic]
        else:
            subscribed = self.subscribed.pop(topic)
            assert event["offset"] == subscribed.log.messages(subscribed.place)
            assert event["id"] == subscribed.id
        self.world.release(topic, self)


def _kind(event: Event) -> str:
    """Return what kind of event it is, for the count of those that were come through."""
    match event:
        case {"type": "heartbeat", "behind": _} | {"type": "heartbeat", "pattern_behind": _}:
            return "heartbeat behind"
        case {"type": "subscribed", "recovered": recovered}:
            return "subscribed recovered" if recovered else "subscribed not recovered"
        case {"type": "gap", "reason": reason}:
            return f"gap {reason} with source gaps" if "source_gaps" in event else f"gap {reason}"
        case {"type": "error", "code": code}:
            return f"error {code}"
        case {"type": "unsubscribed"} if "id" not in event:
            return "unsubscribed waiting"
    return str(event["type"])


def _about(topic: Topic) -> dict[str, str]:
    return {"pattern" if topic.kind is Kind.PATTERN else "channel": topic.name.decode()}


def _topic(event: Event) -> Topic:
    if "pattern" in event:
        return Topic(event["pattern"].encode(), Kind.PATTERN)
    return Topic(event["channel"].encode())


def _from_last(log: ModelLog, tail: int, messages: int) -> int:
    """Return the place before so many of the newest messages, or before all that are kept."""
    places = [
        place for place in range(tail, len(log.entries)) if not isinstance(log.entries[place], SourceGap)
    ]
    return places[-messages] if messages <= len(places) else tail


class Sessions(RuleBasedStateMachine):
    """Any interleaving of what clients say, what is published, outages, lags, and restarts of pushd.

    Whatever comes must continue what came: each message once, with what was published under its offset, or
    a gap that covers exactly what is missing. What pushd follows and keeps must be what the model says.
    """

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.heard: Counter[str] = Counter()
        self.published = 0
        self.epochs = 0
        self.labels: set[str] = set()
        self.redis = Redis(self, is_up=True, forbidden=set())
        self.clients = [Client(self) for _ in range(3)]
        self.start()

    def start(self) -> None:
        now = self.clock.seconds()
        self.clock = Clock()
        self.clock.rightNow = now
        self.epochs += 1
        self.hub = Hub(self.clock, HISTORY, Metrics(), f"e{self.epochs}")
        self.channels = Channels(
            self.hub,
            self.clock,
            self.clock.seconds,
            linger=LINGER,
            max_channels=MAX_CHANNELS,
            max_patterns=1000,
        )
        self.redis = Redis(self, is_up=self.redis.is_up, forbidden=self.redis.forbidden)
        self.channels.upstream = self.redis
        self.kept: dict[Topic, Kept] = {}
        self.idle: list[Topic] = []  # in the order in which their last claimants left

    def new_log(self, topic: Topic) -> ModelLog:
        label = self.hub.feed(topic).label
        assert label not in self.labels
        self.labels.add(label)
        return ModelLog(label)

    def log(self, topic: Topic) -> ModelLog:
        log = self.kept[topic].log
        assert log is not None
        return log

    def deliver(self, topic: Topic, channel: bytes, payloads: list[bytes]) -> None:
        for payload in payloads:
            self.log(topic).append((channel, payload))
        channels = [channel] * len(payloads) if topic.kind is Kind.PATTERN else []
        self.hub.publish(Batch(topic, payloads, channels))

    def claim(self, topic: Topic, client: Client) -> bool:
        """Tell whether there is room for a topic."""
        if topic not in self.kept:
            if len(self.kept) == MAX_CHANNELS:
                if not self.idle:
                    return False
                leaving = next((each for each in self.idle if self.kept[each].was_empty), self.idle[0])
                self.idle.remove(leaving)
                del self.kept[leaving]
            self.kept[topic] = Kept()
        kept = self.kept[topic]
        kept.leave_due = kept.close_due = None
        kept.claimants.add(client)
        if topic in self.idle:
            self.idle.remove(topic)
        return True

    def release(self, topic: Topic, client: Client) -> None:
        kept = self.kept[topic]
        kept.claimants.remove(client)
        if not kept.claimants:
            kept.leave_due = self.clock.seconds() + LEAVE_SECONDS
            kept.was_empty = self.hub.feed(topic).log.head == 0
            self.idle.append(topic)

    @rule(who=WHO, topic=MOSTLY, start=st.sampled_from(("now", "last", "from", "from")), policy=POLICY)
    def subscribe(self, who: int, topic: Topic, start: str, policy: SlowPolicy | None) -> None:
        self._subscribe(self.clients[who], topic, Asked(policy or MODEL_TERMS.slow), start, policy)

    def _subscribe(
        self, client: Client, topic: Topic, asked: Asked, start: str, policy: SlowPolicy | None = None
    ) -> None:
        words = ["PSUBSCRIBE" if topic.kind is Kind.PATTERN else "SUBSCRIBE", topic.name.decode()]
        if start == "last":
            asked.last = self.published % 8
            words += ["LAST", str(asked.last)]
        elif start == "from" and client.places:
            asked.after = asked.after or self._last_place(client, topic)
            words += ["FROM", asked.after.id]
        if policy is not None:
            words += ["SLOW", policy.value]
        if topic in client.asked or topic in client.subscribed:
            client.say(" ".join(words), "already-subscribed")
        elif not self.claim(topic, client):
            client.say(" ".join(words), "too-many-channels")
        else:
            client.asked[topic] = asked
            client.say(" ".join(words))

    def _last_place(self, client: Client, topic: Topic) -> Place:
        """Return the last place that the client knows in the log that there is, if any, or in another one."""
        log = self.kept[topic].log if topic in self.kept else None
        return next((place for place in reversed(client.places) if place.log is log), client.places[-1])

    @rule(who=WHO, topic=MOSTLY, back=st.integers(0, 50), policy=POLICY)
    def subscribe_from_an_older_place(
        self, who: int, topic: Topic, back: int, policy: SlowPolicy | None
    ) -> None:
        client = self.clients[who]
        if client.places:
            place = client.places[-1 - back % len(client.places)]
            asked = Asked(policy or MODEL_TERMS.slow, after=place)
            self._subscribe(client, topic, asked, "from", policy)

    @rule(
        who=WHO,
        meanwhile=st.lists(st.one_of(SIZES, SECONDS, st.just("lost")), max_size=10),
        older=st.integers(0, 20),
    )
    def come_back(self, who: int, meanwhile: list[list[int] | int | str], older: int) -> None:
        """Have a client lose its connection, and continue everything later, maybe from an older place."""
        client = self.clients[who]
        had = {topic: (subscribed.policy, subscribed.log) for topic, subscribed in client.subscribed.items()}
        client.disconnect()
        for happens in meanwhile:
            match happens:
                case int(seconds):
                    self.let_time_pass(seconds)
                case str():
                    self.lose_something(TOPICS[0])
                case sizes:
                    self.publish(ROOMS[0], sizes)
        for topic, (policy, log) in had.items():
            places = [place for place in client.places if place.log is log]
            place = places[-1 - older % len(places)] if places else None
            self._subscribe(client, topic, Asked(policy, after=place), "from", policy)

    @precondition(lambda self: any(client.subscribed for client in self.clients))
    @rule(who=WHO, topic=MOSTLY)
    def unsubscribe(self, who: int, topic: Topic) -> None:
        client = self.clients[who]
        word = "PUNSUBSCRIBE" if topic.kind is Kind.PATTERN else "UNSUBSCRIBE"
        known = topic in client.asked or topic in client.subscribed
        client.say(f"{word} {topic.name.decode()}", *([] if known else ["not-subscribed"]))

    @precondition(lambda self: any(client.subscribed for client in self.clients))
    @rule(who=WHO, politely=st.booleans())
    def disconnect(self, who: int, politely: bool) -> None:
        if politely:
            self.clients[who].say("QUIT")
        else:
            self.clients[who].disconnect()

    @rule(channel=st.sampled_from((*ROOMS, b"a", b"a")), sizes=SIZES)
    def publish(self, channel: bytes, sizes: list[int]) -> None:
        self.redis.publish(channel, self._payloads(sizes))

    @rule(sizes=st.lists(SIZES, min_size=5, max_size=10))
    def publish_a_lot(self, sizes: list[list[int]]) -> None:
        for each in sizes:
            self.redis.publish(b"a", self._payloads(each))
            self.clock.advance(0)

    def _payloads(self, sizes: list[int]) -> list[bytes]:
        first, self.published = self.published, self.published + len(sizes)
        return [b"%06d" % number + b"." * size for number, size in enumerate(sizes, first)]

    @rule(size=st.integers(0, 300))
    def deliver_what_was_on_its_way(self, size: int) -> None:
        """Redis goes on to send until it has been told that a topic is left."""
        for topic in self.idle:
            if topic not in self.redis.topics:
                self.deliver(topic, topic.name, self._payloads([size]))

    @rule(at_once=st.booleans())
    def answer(self, at_once: bool) -> None:
        """Have Redis answer, and then at once or only when this rule is chosen again."""
        self.redis.answers_at_once = at_once
        self._answer()

    def _answer(self) -> None:
        if self.redis.is_up:
            for topic in list(self.redis.topics):
                self.redis.answer(topic)

    @precondition(lambda self: self.redis.topics)
    @rule(again=st.booleans())
    def lose_redis(self, again: bool) -> None:
        for _ in range(1 + again):
            self.redis.lose_all()

    @precondition(lambda self: not self.redis.is_up)
    @rule()
    def find_redis(self) -> None:
        self.redis.is_up = True
        if self.redis.answers_at_once:
            self._answer()

    @rule(topic=MOSTLY)
    def lose_something(self, topic: Topic) -> None:
        if topic in self.redis.topics:
            self.redis.lose_something(topic)

    @rule(topic=st.sampled_from(TOPICS))
    def forbid(self, topic: Topic) -> None:
        self.redis.forbidden ^= {topic}

    @rule(seconds=SECONDS)
    def let_time_pass(self, seconds: int) -> None:
        self.clock.advance(0)
        for _ in range(seconds):
            self.clock.advance(1)
            self._leave_and_close()

    def _leave_and_close(self) -> None:
        now = self.clock.seconds()
        for topic in list(self.idle):
            kept = self.kept[topic]
            if kept.leave_due == now:
                kept.leave_due, kept.close_due = None, now + LINGER - LEAVE_SECONDS
            elif kept.close_due == now:
                del self.kept[topic]
                self.idle.remove(topic)

    @rule(who=WHO, now=st.booleans())
    def lag(self, who: int, now: bool) -> None:
        outlet = self.clients[who].outlet
        outlet.lagging |= now
        outlet.lags_next = True

    @rule(sizes=SIZES)
    def wait_for_heartbeats_while_all_lag(self, sizes: list[int]) -> None:
        for client in self.clients:
            client.outlet.lagging = True
        self.publish(ROOMS[0], sizes)
        self.let_time_pass(2)

    @rule(who=WHO)
    def wake(self, who: int) -> None:
        self.clients[who].wake()

    @precondition(lambda self: self.published > 20 * self.epochs)
    @rule()
    def restart(self) -> None:
        for client in self.clients:
            client.forget()
        self.start()

    @invariant()
    def what_is_followed_and_kept_is_what_the_model_says(self) -> None:
        followed = {
            topic for topic, kept in self.kept.items() if kept.claimants or kept.leave_due is not None
        }
        assert self.redis.topics.keys() == followed
        assert self.hub._feeds.keys() == self.kept.keys()
        assert len(self.kept) <= MAX_CHANNELS
        for topic in self.kept:
            log, real = self.log(topic), self.hub.feed(topic).log
            assert (len(log.entries), log.gaps()) == (real.head, real.gaps)

    @invariant()
    def accounts_are_what_pushd_has(self) -> None:
        for client in self.clients:
            assert len(client.outlet.subscriptions) == len(client.subscribed)
            for subscription in client.outlet.subscriptions:
                subscribed = client.subscribed[subscription.feed.topic]
                assert subscription.position.offset == subscribed.log.messages(subscribed.place)

    def teardown(self) -> None:
        """Let everybody read, then leave: all are at the heads, and nothing is kept."""
        self.redis.is_up = True
        self.redis.forbidden.clear()
        for topic in list(self.redis.topics):
            self.redis.answer(topic)
        for client in self.clients:
            client.wake()
        for _ in range(200):
            self.clock.advance(0)
        for client in self.clients:
            assert not client.asked
            for subscribed in client.subscribed.values():
                assert subscribed.place == len(subscribed.log.entries)
            client.disconnect()
        for _ in range(LINGER):
            self.clock.advance(1)
            self._leave_and_close()
        self.what_is_followed_and_kept_is_what_the_model_says()
        assert not self.kept
        left: list[Any] = [self.channels._channels, self.channels._idle, self.clock.getDelayedCalls()]
        left += [self.hub._grown, self.hub._again, self.hub._warm]
        assert not any(left)


TestSessions = Sessions.TestCase
TestSessions.settings = settings(max_examples=75, stateful_step_count=50, deadline=None)


COME_THROUGH = (
    "heartbeat behind",
    "subscribed recovered",
    "subscribed not recovered",
    "gap slow",
    "gap slow with source gaps",
    "gap evicted",
    "gap evicted with source gaps",
    "gap unknown",
    "gap source",
    "error refused",
    "error too-many-channels",
    "error already-subscribed",
    "error not-subscribed",
    "unsubscribed waiting",
    "overrun",
)
"""What long walks must have met, to have shown anything."""


def _walk(seed: int, steps: int) -> Counter[str]:
    """Choose steps by weight, which gets further than what is made to shrink; return what was heard."""
    chance = random.Random(seed)
    sessions = Sessions()

    def sizes() -> list[int]:
        return [chance.randrange(300) for _ in range(chance.randint(1, 8))]

    def who() -> int:
        return chance.randrange(3)

    def topic() -> Topic:
        return chance.choice((TOPICS[0], TOPICS[0], *TOPICS))

    def policy() -> SlowPolicy | None:
        allowed: list[SlowPolicy | None] = [None, *SlowPolicy]
        return chance.choice(allowed)

    def come_back() -> None:
        happens = [
            chance.choice((sizes(), sizes(), chance.randint(0, 8))) for _ in range(chance.randint(0, 6))
        ]
        lost = ["lost"] if chance.random() < 0.1 else []
        sessions.come_back(who(), happens + lost, chance.choice((0, 0, 0, chance.randrange(30))))

    def lose_and_find() -> None:
        sessions.lose_redis(chance.random() < 0.3)
        sessions.let_time_pass(chance.randrange(3))
        sessions.lose_redis(chance.random() < 0.3)
        for _ in range(chance.randrange(5)):
            take(chance.choice(ways))
        sessions.find_redis()

    ways: list[tuple[float, Callable[[], object]]] = [
        (10, lambda: sessions.subscribe(who(), topic(), chance.choice(("now", "last", "from")), policy())),
        (3, lambda: sessions.subscribe_from_an_older_place(who(), topic(), chance.randrange(100), policy())),
        (10, come_back),
        (5, lambda: sessions.unsubscribe(who(), topic())),
        (2, lambda: sessions.disconnect(who(), chance.random() < 0.5)),
        (15, lambda: sessions.publish(chance.choice((b"a", b"a", *ROOMS)), sizes())),
        (2, lambda: sessions.publish_a_lot([sizes() for _ in range(6)])),
        (3, lambda: sessions.deliver_what_was_on_its_way(chance.randrange(300))),
        (5, lambda: sessions.answer(chance.random() < 0.3)),
        (1, lose_and_find),
        (1, lambda: sessions.lose_something(topic())),
        (1, lambda: sessions.forbid(chance.choice(TOPICS[1:]))),
        (15, lambda: sessions.let_time_pass(chance.choice((0, 0, 0, 0, 1, 2, 6)))),
        (4, lambda: sessions.lag(who(), chance.random() < 0.5)),
        (1, lambda: sessions.wait_for_heartbeats_while_all_lag(sizes())),
        (8, lambda: sessions.wake(who())),
        (0.2, sessions.restart),
    ]
    weights = [weight for weight, _ in ways]

    def take(way: tuple[float, Callable[[], object]]) -> None:
        way[1]()
        sessions.what_is_followed_and_kept_is_what_the_model_says()
        sessions.accounts_are_what_pushd_has()

    for way in chance.choices(ways, weights, k=steps):
        take(way)
    sessions.teardown()
    return sessions.heard


@pytest.fixture
def _chosen_heartbeats() -> Iterator[None]:
    """Have first heartbeats come when they came the last time."""
    state = random.getstate()
    random.seed(0)
    yield
    random.setstate(state)


@pytest.mark.usefixtures("_chosen_heartbeats")
def test_long_walks_come_through_everything() -> None:
    heard = sum((_walk(seed, 400) for seed in range(20)), Counter[str]())
    for kind in COME_THROUGH:
        assert heard[kind] >= 5, kind
    assert heard["message"] > 5000
