"""Sessions: one client of the control protocol, from its commands to its replies."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

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
from pushd.message import Topic
from pushd.permissions import Permissions
from pushd.positions import show_id
from pushd.resume import Start, start_in
from pushd.settings import SlowPolicy
from pushd.subscription import Outlet, Subscription
from pushd.tokens import Grant, TokenError

VERSION = 1
"""Of the protocol: it changes when clients that follow the document would no longer understand."""

BURST_SECONDS = 10.0
"""A client that was quiet for so long may send the commands of that time at once."""

LONGEST_TIMER = 24 * 3600.0
"""Tokens may be good for thousands of years; timers are not."""


class Connection(Outlet, Protocol):
    """What a session needs of its client's connection."""

    peer: str
    subscriptions: list[Subscription]

    def reply(self, data: bytes) -> None:
        """Send whole lines, in time, before messages that have not been sent."""


class Publisher(Protocol):
    """Publishes to where messages come from."""

    def __call__(self, command: Publish, answer: Callable[[int | CommandError], None], /) -> None:
        """Publish, and answer with the number of receivers, or why there is none, in the order of calls."""


class Verifier(Protocol):
    """Knows good tokens from bad ones."""

    def verify(self, token: str) -> Grant:
        """Return what a token grants; raises TokenError."""


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
        self._wall = wall
        self._close = close
        self._grant: Grant | None = None
        self._asked: dict[Topic, Subscribe] = {}
        self._subscriptions: dict[Topic, Subscription] = {}
        self._has_ended = False
        self._deadline: Timer | None = None  # to say who one is, at first or again
        self._heartbeat: Timer | None = None
        self._allowance = terms.command_rate * BURST_SECONDS
        self._counted_at = clock.seconds()

    @property
    def is_stranger(self) -> bool:
        """Whether the client has still to say who it is."""
        return self._terms.tokens is not None and self._grant is None

    def begin(self) -> None:
        """Welcome the client."""
        self._tell(
            "welcome",
            version=VERSION,
            epoch=self._hub.epoch,
            heartbeat=_number(self._terms.heartbeat),
            auth="required" if self.is_stranger else "none",
        )
        if self.is_stranger:
            self._deadline = self._clock.callLater(self._terms.auth_timeout, self._stayed_stranger)
        else:
            self._begin_heartbeats()

    def received(self, line: bytes) -> None:
        """Take in one line, without its terminator."""
        if not self._is_within_rate():
            self.say_error("rate-limited", f"allowed: {self._terms.command_rate:g} commands a second")
            self._close()
            return
        try:
            command = parse(line)
            if command is not None:
                self._do(command)
        except CommandError as error:
            self._tell_error(error)

    def say_error(self, code: str, message: str) -> None:
        """Say what is wrong with the connection, which is closed then."""
        self._tell("error", code=code, message=message, command=None)

    def say_goodbye(self, reason: str, **more: object) -> None:
        """Say why the connection is closed then, which is nobody's mistake."""
        self._tell("bye", reason=reason, **more)

    def end(self) -> None:
        """Let go of everything; harmless where it has been called before."""
        self._has_ended = True
        for timer in (self._deadline, self._heartbeat):
            if timer is not None:
                timer.cancel()
        self._deadline = self._heartbeat = None
        for topic in [*self._asked, *self._subscriptions]:
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
        recovered = {"recovered": start.is_complete and is_up} if isinstance(command.start, From) else {}
        self._tell(
            "subscribed",
            **named(topic),
            offset=start.place.offset,
            id=show_id(feed.label, start.place),
            upstream="up" if is_up else "down",
            **recovered,
        )
        self._tell_missing(topic, feed.label, start)

    def refused(self, topic: Topic, why: str) -> None:
        """Say that there is no subscription."""
        command = self._asked[topic]
        self._let_go(topic)
        self._tell_error(failed(command, "refused", why))

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
                self._tell_status()
            case Help():
                self._tell("help", commands=list(USAGE.values()))
            case Quit():
                self.say_goodbye("quit")
                self._close()

    def _is_within_rate(self) -> bool:
        now, rate = self._clock.seconds(), self._terms.command_rate
        self._allowance += (now - self._counted_at) * rate
        self._allowance = min(self._allowance, rate * BURST_SECONDS) - 1
        self._counted_at = now
        return self._allowance >= 0

    def _authenticate(self, command: Auth) -> None:
        if self._terms.tokens is None:
            raise failed(command, "auth-unused", "no token is asked for here")
        try:
            grant = self._terms.tokens.verify(command.token)
        except TokenError as error:
            raise failed(command, error.code, str(error)) from None
        was_stranger, self._grant = self.is_stranger, grant
        self._tell("authenticated", name=grant.name, expires=show_time(grant.expires))
        self._watch_expiry()
        if was_stranger:
            self._begin_heartbeats()
        for topic in [*self._asked, *self._subscriptions]:
            if not self._may_subscribe(topic):
                self._take_away(topic)

    def _may_subscribe(self, topic: Topic) -> bool:
        return all(permissions.may_subscribe(topic) for permissions in self._permissions)

    @property
    def _permissions(self) -> tuple[Permissions, ...]:
        bounds = self._terms.bounds
        return (bounds, self._grant.permissions) if self._grant else (bounds,)

    def _subscribe(self, command: Subscribe) -> None:
        topic = self._channels.resolve(command.topic)
        if not self._may_subscribe(topic):
            raise failed(command, "forbidden", f"this client may not subscribe to {_shown(topic)}")
        if topic in self._asked or topic in self._subscriptions:
            raise failed(command, "already-subscribed", f"there is a subscription to {_shown(topic)}")
        limit = self._terms.max_subscriptions
        if len(self._asked) + len(self._subscriptions) >= limit:
            raise failed(command, "too-many-subscriptions", f"allowed: {limit}")
        self._asked[topic] = command
        try:
            self._channels.claim(topic, self)
        except TooManyChannelsError:
            del self._asked[topic]
            raise failed(command, "too-many-channels", "all logs are in use") from None

    def _unsubscribe(self, command: Unsubscribe) -> None:
        topic = self._channels.resolve(command.topic)
        if topic not in self._asked and topic not in self._subscriptions:
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
        self._asked.pop(topic, None)
        if subscription := self._subscriptions.pop(topic, None):
            self._hub.unsubscribe(subscription)
            self._connection.subscriptions.remove(subscription)
        self._channels.release(topic, self)

    def _publish(self, command: Publish) -> None:
        shown = told("channel", command.channel)
        if not all(permissions.may_publish(command.channel) for permissions in self._permissions):
            raise failed(command, "forbidden", f"this client may not publish to {shown['channel']}")

        def answer(outcome: int | CommandError) -> None:
            if self._has_ended:
                return
            if isinstance(outcome, CommandError):
                self._tell_error(outcome)
            else:
                self._tell("published", **shown, receivers=outcome)

        self._publish_upstream(command, answer)

    def _begin_heartbeats(self) -> None:
        # Those who came together are not to be served together for ever.
        first = random.uniform(0.5, 1) * self._terms.heartbeat
        self._heartbeat = self._clock.callLater(first, self._beat)

    def _beat(self) -> None:
        self._heartbeat = self._clock.callLater(self._terms.heartbeat, self._beat)
        heads: dict[str, dict[str, int]] = {"channel": {}, "pattern": {}}
        for topic, subscription in self._subscriptions.items():
            ((kind, name),) = named(topic).items()
            heads[kind][name] = subscription.feed.log.position(subscription.feed.log.head).offset
        patterns = {"pattern_offsets": heads["pattern"]} if heads["pattern"] else {}
        self._tell("heartbeat", **self._upstream(), offsets=heads["channel"], **patterns)

    def _upstream(self) -> dict[str, str]:
        since = self._channels.down_since(self._subscriptions)
        return {"upstream": "up"} if since is None else {"upstream": "down", "since": show_time(since)}

    def _tell_status(self) -> None:
        grant = self._grant
        who = {"name": grant.name, "expires": show_time(grant.expires)} if grant else {}
        subscriptions = [
            {
                **named(topic),
                "offset": each.position.offset,
                "head": each.feed.log.position(each.feed.log.head).offset,
                "missed": each.missed,
                "slow": each.policy.value,
            }
            for topic, each in self._subscriptions.items()
        ]
        self._tell(
            "status", client=self._connection.peer, **who, **self._upstream(), subscriptions=subscriptions
        )

    def _tell_missing(self, topic: Topic, label: str, start: Start) -> None:
        if start.gap:
            self._connection.reply(encode_gap(named(topic), label, start.gap, "evicted"))
        if start.is_unknown:
            self._tell("gap", **named(topic), missed=None, reason="unknown", id=show_id(label, start.place))

    def _stayed_stranger(self) -> None:
        self._deadline = None
        self.say_error("auth-timeout", f"no good AUTH within {self._terms.auth_timeout:g} s")
        self._close()

    def _watch_expiry(self) -> None:
        assert self._grant is not None
        if self._deadline is not None:
            self._deadline.cancel()
        left = self._grant.expires - self._wall()
        self._deadline = self._clock.callLater(min(max(0, left), LONGEST_TIMER), self._look_at_expiry)

    def _look_at_expiry(self) -> None:
        assert self._grant is not None
        self._deadline = None
        if self._grant.expires <= self._wall():
            self.say_goodbye("token-expired")
            self._close()
        else:
            self._watch_expiry()

    def _tell_error(self, error: CommandError) -> None:
        self._tell("error", code=error.code, message=str(error), command=error.command)

    def _tell(self, kind: str, **members: object) -> None:
        self._connection.reply(event(kind, **members))


def _number(seconds: float) -> float:
    return int(seconds) if seconds.is_integer() else seconds


def _shown(topic: Topic) -> str:
    return topic.name.decode()
