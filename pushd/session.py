"""Sessions: one client of the control protocol, from its commands to its replies."""

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pushd import reports
from pushd.channels import Channels, TooManyChannelsError
from pushd.clock import Clock, Timer
from pushd.commands import (
    USAGE,
    Auth,
    Command,
    CommandError,
    From,
    Help,
    Ping,
    Publish,
    Quit,
    Status,
    Subscribe,
    Unsubscribe,
    failed,
    parse,
)
from pushd.encoders import Events, encode_gap
from pushd.events import event, named, show_time, told
from pushd.hub import Hub
from pushd.identity import Identity, Verifier
from pushd.message import Kind, Topic
from pushd.permissions import Permissions
from pushd.positions import show_id
from pushd.rate import BURST_SECONDS, RateLimit
from pushd.resume import Start, start_in
from pushd.settings import SlowPolicy
from pushd.subscription import Feed, Outlet, Subscription
from pushd.tokens import TokenError

VERSION = 1
"""Of the protocol: it changes when clients that follow the document would no longer understand."""

MAX_PATTERNS = 8
"""Patterns of one client: Redis sends a message once for each pattern that it matches."""

MAX_FAILED_TOKENS = 3
"""So many in a row end the connection: to verify one takes milliseconds in which nothing else is done."""

HTTP = (b"POST ", b"HOST:")
"""How lines begin that a browser sends before what a foreign page makes it send, which may be commands."""


class Connection(Outlet, Protocol):
    """What a session needs of its client's connection."""

    peer: str
    subscriptions: list[Subscription]

    def reply(self, data: bytes) -> None:
        """Send whole lines, in time, before messages that have not been sent."""


class Publisher(Protocol):
    """Publishes to where messages come from."""

    def __call__(self, command: Publish, answer: Callable[[int | CommandError], None], /) -> None:
        """Publish, and answer once: with the number of receivers, or why there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What every client of the control protocol gets, and may do. Times are in seconds."""

    slow: SlowPolicy  # of those who do not choose
    max_line: int  # bytes, without its terminator
    idle_timeout: float | None  # since the client last sent something
    heartbeat: float
    bounds: Permissions  # nobody may do more
    tokens: Verifier | None  # None where no client has to say who it is
    auth_timeout: float
    max_subscriptions: int
    command_rate: float  # per second


@dataclass(slots=True)
class _Publishing:
    """A message on its way, without its payload, and what became of it."""

    channel: bytes
    outcome: int | CommandError | None = None


class Session:
    """Answers commands, tells heartbeats, and ends in time; close is called when nothing more is to come.

    Until a client has said who it is, where it must, nothing is kept of it.
    """

    def __init__(
        self,
        terms: Terms,
        connection: Connection,
        *,
        hub: Hub,
        channels: Channels,
        publish: Publisher,
        clock: Clock,
        wall: Callable[[], float],
        close: Callable[[], None],
    ) -> None:
        self._terms = terms
        self._connection = connection
        self._hub = hub
        self._channels = channels
        self._publish_upstream = publish
        self._clock = clock
        self._close = close
        self._identity = Identity(
            terms.bounds, terms.tokens, clock=clock, wall=wall, ended=self._identity_ended
        )
        self._rate = RateLimit(terms.command_rate, clock.seconds())
        self._asked: dict[Topic, Subscribe] = {}
        self._subscriptions: dict[Topic, Subscription] = {}
        self._heartbeat: Timer | None = None
        self._publishing: deque[_Publishing] = deque()  # of which it has still to be told what became
        self._failed_tokens = 0  # since the last good one
        self._is_finishing = False
        self._has_ended = False

    @property
    def is_stranger(self) -> bool:
        """Whether the client has still to say who it is."""
        return self._identity.is_stranger

    def begin(self) -> None:
        """Welcome the client."""
        if self.is_stranger:
            self._identity.wait(self._terms.auth_timeout)
        else:
            self._begin_heartbeats()
        heartbeat = self._terms.heartbeat
        self._tell(
            "welcome",
            version=VERSION,
            epoch=self._hub.epoch,
            heartbeat=int(heartbeat) if heartbeat.is_integer() else heartbeat,
            auth="required" if self.is_stranger else "none",
        )

    def received(self, line: bytes) -> None:
        """Take in one line, without its terminator."""
        if not self._rate.allows(self._clock.seconds()):
            why = f"allowed: {self._rate.per_second:g} commands a second"
            self.say_error("rate-limited", why, retry_ms=int(1000 * BURST_SECONDS))
            self._close()
            return
        if line[:5].upper() in HTTP:
            self.say_error("unknown-command", "this is not HTTP")
            self._close()
            return
        try:
            command = parse(line)
            if command is not None:
                self._do(command)
        except CommandError as error:
            self._tell_error(error)

    def say_error(self, code: str, message: str, **more: object) -> None:
        """Say what is wrong with the connection, which is closed then."""
        self._tell("error", code=code, message=message, command=None, **more)

    def say_goodbye(self, reason: str, **more: object) -> None:
        """Say why the connection is closed then, which is nobody's mistake."""
        self._tell("bye", reason=reason, **more)

    def finish(self) -> None:
        """Close the connection once all commands are answered: the client will send no more."""
        self._is_finishing = True
        self._close_if_finished()

    def end(self) -> None:
        """Let go of everything; harmless where it has been called before."""
        self._has_ended = True
        self._identity.forget()
        if self._heartbeat is not None:
            self._heartbeat.cancel()
            self._heartbeat = None
        for topic in self._topics:
            self._let_go(topic)

    def confirmed(self, topic: Topic) -> None:
        """Begin the subscription: its messages come after what is said here."""
        command = self._asked.pop(topic)
        feed = self._hub.feed(topic)
        start = start_in(feed.log, feed.label, command.start)
        policy = command.slow or self._terms.slow
        subscription = self._hub.subscribe(topic, self._connection, Events, policy, start.cursor)
        self._subscriptions[topic] = subscription
        self._connection.subscriptions.append(subscription)
        is_up = self._channels.down_since([topic]) is None
        self._connection.reply(_subscribed(feed, command, start, is_up=is_up))
        self._close_if_finished()

    def refused(self, topic: Topic, why: str) -> None:  # noqa: ARG002
        """Say that there is no subscription; why is not for strangers: it may name users of Redis."""
        command = self._asked[topic]
        self._let_go(topic)
        self._tell_error(failed(command, "refused", "Redis does not allow it"))
        self._close_if_finished()

    @property
    def _topics(self) -> list[Topic]:
        return [*self._asked, *self._subscriptions]

    def _wants(self, topic: Topic) -> bool:
        return topic in self._asked or topic in self._subscriptions

    def _do(self, command: Command) -> None:
        if self.is_stranger and not isinstance(command, Auth | Ping | Help | Quit):
            raise failed(command, "auth-required", "say AUTH and a token first")
        match command:
            case Auth():
                self._authenticate(command)
            case Subscribe():
                self._subscribe(command)
            case Unsubscribe():
                self._unsubscribe(command)
            case Publish():
                self._publish(command)
            case Ping(text):
                self._tell("pong", data=text)
            case Status():
                who = self._connection.peer, self._identity.grant
                self._connection.reply(reports.status(*who, self._subscriptions, self._channels))
            case Help():
                self._tell("help", commands=list(USAGE.values()))
            case _:  # Quit
                self.say_goodbye("quit")
                self._close()

    def _authenticate(self, command: Auth) -> None:
        if self._identity.tokens is None:
            raise failed(command, "auth-unused", "no token is asked for here")
        try:
            grant = self._identity.tokens.verify(command.token)
        except TokenError as error:
            self._tell_error(failed(command, error.code, str(error)))
            self._failed_tokens += 1
            if self._failed_tokens == MAX_FAILED_TOKENS:
                self._close()
            return
        self._failed_tokens = 0
        if self.is_stranger:
            self._begin_heartbeats()
        self._identity.accept(grant)
        self._tell("authenticated", name=grant.name, expires=show_time(grant.expires))
        for topic in self._topics:
            if not self._identity.may_subscribe(topic):
                self._take_away(topic)

    def _subscribe(self, command: Subscribe) -> None:
        topic = self._channels.resolve(command.topic)
        if not self._identity.may_subscribe(topic):
            raise failed(command, "forbidden", f"this client may not subscribe to {_shown(topic)}")
        if self._wants(topic):
            raise failed(command, "already-subscribed", f"there is a subscription to {_shown(topic)}")
        if len(self._topics) >= self._terms.max_subscriptions:
            raise failed(command, "too-many-subscriptions", f"allowed: {self._terms.max_subscriptions}")
        patterns = sum(each.kind is Kind.PATTERN for each in self._topics)
        if topic.kind is Kind.PATTERN and patterns >= MAX_PATTERNS:
            raise failed(command, "too-many-subscriptions", f"allowed: {MAX_PATTERNS} patterns")
        self._asked[topic] = command
        try:
            self._channels.claim(topic, self)
        except TooManyChannelsError:
            del self._asked[topic]
            raise failed(command, "too-many-channels", "all logs are in use") from None

    def _unsubscribe(self, command: Unsubscribe) -> None:
        topic = self._channels.resolve(command.topic)
        if not self._wants(topic):
            raise failed(command, "not-subscribed", f"there is no subscription to {_shown(topic)}")
        self._take_away(topic)

    def _take_away(self, topic: Topic) -> None:
        """End a subscription, and say up to where it has been served."""
        place = {}
        if subscription := self._subscriptions.get(topic):
            position = subscription.position
            place = {"offset": position.offset, "id": show_id(subscription.feed.label, position)}
        self._let_go(topic)
        self._tell("unsubscribed", **named(topic), **place)

    def _let_go(self, topic: Topic) -> None:
        if not self._wants(topic):
            return  # the connection was lost meanwhile
        self._asked.pop(topic, None)
        if subscription := self._subscriptions.pop(topic, None):
            self._hub.unsubscribe(subscription)
            self._connection.subscriptions.remove(subscription)
        self._channels.release(topic, self)

    def _publish(self, command: Publish) -> None:
        publishing = _Publishing(command.channel)
        self._publishing.append(publishing)

        def answer(outcome: int | CommandError) -> None:
            publishing.outcome = outcome
            self._tell_published()

        if self._identity.may_publish(command.channel):
            self._publish_upstream(command, answer)
        else:
            name = command.channel.decode()
            answer(failed(command, "forbidden", f"this client may not publish to {name}"))

    def _tell_published(self) -> None:
        """Tell what became of messages, in the order in which they came."""
        while self._publishing and (outcome := self._publishing[0].outcome) is not None:
            channel = told("channel", self._publishing.popleft().channel)
            if self._has_ended:
                continue
            if isinstance(outcome, CommandError):
                self._tell_error(outcome)
            else:
                self._tell("published", **channel, receivers=outcome)
        self._close_if_finished()

    def _begin_heartbeats(self) -> None:
        # Those who came together are not to be served together for ever.
        first = random.uniform(0.5, 1) * self._terms.heartbeat
        self._heartbeat = self._clock.callLater(first, self._beat)

    def _beat(self) -> None:
        self._heartbeat = self._clock.callLater(self._terms.heartbeat, self._beat)
        self._connection.reply(reports.heartbeat(self._subscriptions, self._channels))

    def _close_if_finished(self) -> None:
        if self._is_finishing and not self._asked and not self._publishing:
            self._close()

    def _identity_ended(self) -> None:
        if self.is_stranger:
            self.say_error("auth-timeout", f"no good AUTH within {self._terms.auth_timeout:g} s")
        else:
            self.say_goodbye("token-expired")
        self._close()

    def _tell_error(self, error: CommandError) -> None:
        self._tell("error", code=error.code, message=str(error), command=error.command, **error.about)

    def _tell(self, kind: str, **members: object) -> None:
        self._connection.reply(event(kind, **members))


def _subscribed(feed: Feed, command: Subscribe, start: Start, *, is_up: bool) -> bytes:
    """Return the event, and what is known to be missing: together, since a connection may end between."""
    name, here = named(feed.topic), show_id(feed.label, start.place)
    recovered = {}
    if isinstance(command.start, From):
        recovered = {"recovered": start.is_complete and is_up}
    said = event(
        "subscribed",
        **name,
        offset=start.place.offset,
        # Who comes back before it knows of the gap is told of it again.
        id=command.start.id if isinstance(command.start, From) else here,
        upstream="up" if is_up else "down",
        **recovered,
    )
    if start.gap:
        return said + encode_gap(name, feed.label, start.gap, "evicted")
    if start.is_unknown:
        return said + event("gap", **name, missed=None, reason="unknown", id=here)
    return said


def _shown(topic: Topic) -> str:
    return topic.name.decode()
