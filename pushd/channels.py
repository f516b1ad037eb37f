"""Channels: which topics are followed at the source, for whom, and how long their logs are kept."""

from collections.abc import Callable, Iterable, Iterator
from enum import Enum, auto
from itertools import chain
from typing import Protocol

from pushd.clock import Clock, Timer
from pushd.hub import Hub
from pushd.message import Kind, SourceGap, Topic

LEAVE_SECONDS = 5.0
"""So long after its last claimant a topic is still followed: who comes back meanwhile misses nothing."""


class Upstream(Protocol):
    """What follows topics where messages come from, and tells Channels of them."""

    @property
    def down_since(self) -> float | None:
        """Since when, as wall time, there has been nobody to ask; None while there is."""

    def follow(self, topic: Topic, since: float | None = None) -> None:
        """Ask for a topic; if a time is given, what was published from then on until now is missing."""

    def leave(self, topic: Topic) -> float:
        """Ask for a topic no more; return the time up to which nothing is missing."""


class Claimant(Protocol):
    """Who wants a topic, and is answered once for each claim."""

    def confirmed(self, topic: Topic) -> None:
        """Go on: messages come, or will when there is an upstream again."""

    def refused(self, topic: Topic, why: str) -> None:
        """Give up, and release the topic: Redis does not allow it."""


class TooManyChannelsError(Exception):
    """As many topics are claimed as may be."""


class _State(Enum):
    ASKED = auto()  # the upstream has still to answer
    UP = auto()
    DOWN = auto()
    REFUSED = auto()


class _Channel:
    """A topic that has a log."""

    __slots__ = (
        "claimants",
        "is_pinned",
        "left_at",
        "refusal",
        "since",
        "state",
        "timer",
        "topic",
        "waiting",
    )

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.state = _State.ASKED
        self.since = 0.0  # wall time of when no more messages came
        self.refusal = ""
        self.is_pinned = False  # it was named at start, and is followed for ever
        self.claimants: dict[Claimant, None] = {}  # sets that keep their order
        self.waiting: dict[Claimant, None] = {}  # those who have not been answered
        self.left_at: float | None = None  # up to then nothing is missing; None while it is followed
        self.timer: Timer | None = None  # to leave it, or to close its log


class Channels:
    """Opens a log when its first claimant comes; closes it linger seconds after the last has gone.

    There are at most max_channels logs, of which at most max_patterns are of patterns, beside those that are
    pinned: each pattern brings a copy of each message that it matches. Beyond, a new one takes the place of
    one that nobody claims: one that was empty when it was released, else the one that has been idle longest.
    """

    def __init__(
        self,
        hub: Hub,
        clock: Clock,
        wall: Callable[[], float],
        *,
        linger: float,
        max_channels: int,
        max_patterns: int,
    ) -> None:
        self.upstream: Upstream | None = None
        self._hub = hub
        self._clock = clock
        self._wall = wall
        self._linger = linger
        self._max_channels = max_channels
        self._max_patterns = max_patterns
        self._patterns = 0  # that are not pinned
        self._channels: dict[Topic, _Channel] = {}
        self._is_stopped = False
        # Those without a claimant, that for the longest time first; and those among them without a message.
        self._idle: dict[_Channel, None] = {}
        self._empty: dict[_Channel, None] = {}

    def pin(self, topic: Topic) -> None:
        """Keep the log of a topic that the upstream follows by itself, for ever."""
        self._open(topic).is_pinned = True

    def resolve(self, topic: Topic) -> Topic:
        """Return what a client means: a channel's name may be that of a shard channel that is pinned."""
        shard = Topic(topic.name, Kind.SHARD)
        return shard if topic.kind is Kind.CHANNEL and shard in self._channels else topic

    def claim(self, topic: Topic, claimant: Claimant) -> None:
        """Have a topic followed, and its log kept, until it is released; the claimant is answered.

        At once where the state of the topic is known. Raises TooManyChannelsError.
        """
        channel = self._channels.get(topic)
        if channel is None:
            self._make_room(topic)
            channel = self._open(topic)
            self._patterns += topic.kind is Kind.PATTERN
            self._add(channel, claimant)
            self._upstream.follow(topic)
            return
        self._add(channel, claimant)
        if channel.left_at is not None:
            since, channel.left_at = channel.left_at, None
            channel.state = _State.ASKED
            self._upstream.follow(topic, since)
        elif channel.state is not _State.ASKED:
            self._answer(channel)

    def release(self, topic: Topic, claimant: Claimant) -> None:
        """Take a claim back; the claimant reads the log no more."""
        channel = self._channels[topic]
        del channel.claimants[claimant]
        channel.waiting.pop(claimant, None)
        if not channel.claimants and not channel.is_pinned and not self._is_stopped:
            self._idle[channel] = None
            if not self._hub.feed(topic).log.head:
                self._empty[channel] = None
            channel.timer = self._clock.callLater(LEAVE_SECONDS, lambda: self._leave(channel))

    def down_since(self, topics: Iterable[Topic]) -> float | None:
        """Return since when, as wall time, any of these topics has no upstream; None where all have.

        Of no topics, since when there is no upstream at all.
        """
        channels = [self._channels[topic] for topic in topics]
        down = [each.since for each in channels if each.state in (_State.DOWN, _State.REFUSED)]
        if channels and not down:
            return None
        outage = self._upstream.down_since  # it may have begun before a topic was asked for
        return min(down if outage is None else [*down, outage], default=None)

    def stop(self) -> None:
        """Neither leave nor close anything any more."""
        self._is_stopped = True
        for channel in self._idle:
            self._cancel(channel)

    def interrupt(self, topic: Topic, gap: SourceGap) -> None:
        """Take note that some of a topic may be missing."""
        self._hub.interrupt(topic, gap)

    def confirmed(self, topic: Topic) -> None:
        """Take note that messages come."""
        self._settle(topic, _State.UP)

    def lost(self, topic: Topic) -> None:
        """Take note that no messages come."""
        self._settle(topic, _State.DOWN)

    def refused(self, topic: Topic, why: str) -> None:
        """Take note that Redis does not allow a topic."""
        self._channels[topic].refusal = why
        self._settle(topic, _State.REFUSED)

    def _settle(self, topic: Topic, state: _State) -> None:
        channel = self._channels[topic]
        if channel.state in (_State.ASKED, _State.UP):
            channel.since = self._wall()
        channel.state = state
        self._answer(channel)

    def _answer(self, channel: _Channel) -> None:
        waiting, channel.waiting = channel.waiting, {}
        for claimant in waiting:
            if channel.state is _State.REFUSED:
                claimant.refused(channel.topic, channel.refusal)
            else:
                claimant.confirmed(channel.topic)

    @property
    def _upstream(self) -> Upstream:
        assert self.upstream is not None
        return self.upstream

    def _open(self, topic: Topic) -> _Channel:
        self._hub.open(topic)
        channel = self._channels[topic] = _Channel(topic)
        return channel

    def _add(self, channel: _Channel, claimant: Claimant) -> None:
        channel.claimants[claimant] = channel.waiting[claimant] = None
        if channel in self._idle:
            del self._idle[channel]
            self._empty.pop(channel, None)
            self._cancel(channel)

    def _make_room(self, topic: Topic) -> None:
        """Close what is idle where there is no room for one more; raises TooManyChannelsError."""
        idle: Iterator[_Channel] = chain(self._empty, self._idle)
        if topic.kind is Kind.PATTERN and self._patterns >= self._max_patterns:
            idle = (channel for channel in idle if channel.topic.kind is Kind.PATTERN)
        elif len(self._channels) < self._max_channels:
            return
        channel = next(idle, None)
        if channel is None:
            raise TooManyChannelsError
        self._cancel(channel)
        if channel.left_at is None:
            self._upstream.leave(channel.topic)
        self._close(channel)

    def _leave(self, channel: _Channel) -> None:
        channel.left_at = self._upstream.leave(channel.topic)
        linger = max(0.0, self._linger - LEAVE_SECONDS)
        channel.timer = self._clock.callLater(linger, lambda: self._close(channel))

    def _close(self, channel: _Channel) -> None:
        channel.timer = None
        del self._idle[channel]
        self._empty.pop(channel, None)
        del self._channels[channel.topic]
        self._patterns -= channel.topic.kind is Kind.PATTERN
        self._hub.close(channel.topic)

    def _cancel(self, channel: _Channel) -> None:
        assert channel.timer is not None
        channel.timer.cancel()
        channel.timer = None
