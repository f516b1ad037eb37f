"""The hub: knows which subscriptions read which log, and runs the passes that bring them up to date.

Appending costs the same however many subscriptions there are. A pass costs one send for each subscription
that is behind, however many messages came: what arrives meanwhile makes later sends larger, not more.
"""

import math
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Protocol

from pushd.chunks import Chunks
from pushd.clock import Clock
from pushd.encoders import WireFormat
from pushd.message import Batch, SourceGap, Topic
from pushd.metrics import Metrics
from pushd.settings import SlowPolicy
from pushd.subscription import Feed, Outlet, Subscription

SLICE_SECONDS = 0.005
"""How long a pass may keep everything else waiting: accepting, echoing, reading from the source."""

STRIDE = 16
"""Subscriptions served between two looks at the clock."""


class Source(Protocol):
    """What the hub needs of what publishes to it, if that can wait."""

    def pauseProducing(self) -> None:
        """Publish no more, as far as possible."""

    def resumeProducing(self) -> None:
        """Go on publishing."""


class Hub:
    """Brings every message to every subscription of its topic, or counts it as missed.

    Each log keeps history bytes. Its label is the epoch, a token that no other pushd has, and a number, which
    a log that is opened anew for the same topic does not get again.

    The source, where there is one, is held back while clients that take everything may be a quarter of the
    history behind: else a burst would outrun pushd itself, and they would fall off the log's tail. It waits
    for passes, never for a client: a pass leaves out those that lag.
    """

    def __init__(self, clock: Clock, history: int, metrics: Metrics, epoch: str) -> None:
        self.source: Source | None = None
        self.epoch = epoch
        self._clock = clock
        self._history = history
        self._metrics = metrics
        self._feeds: dict[Topic, Feed] = {}
        self._opened = 0  # logs, those too that are closed
        self._grown: dict[Feed, None] = {}  # feeds with news for all their subscriptions
        self._again: dict[Subscription, None] = {}  # subscriptions that are behind by themselves
        self._warm: set[Chunks] = set()
        self._pass: Iterator[Subscription] | None = None
        self._scheduled = False
        # As logs count: how much those who take everything may have been behind when the pass began, what has
        # been published since, and what it has sent, at least, to those whom it could not send all at once.
        self._behind = 0.0
        self._published = 0
        self._sent: float = math.inf
        self._holding = False

    def open(self, topic: Topic) -> None:
        """Begin to keep a topic's log."""
        self._opened += 1
        self._feeds[topic] = Feed(topic, f"{self.epoch}.{self._opened}", self._history)

    def close(self, topic: Topic) -> None:
        """Forget a topic's log, which nobody reads."""
        feed = self._feeds.pop(topic)
        self._grown.pop(feed, None)
        self._warm.difference_update(feed.chunks.values())

    def feed(self, topic: Topic) -> Feed:
        """Return a topic's log, and what belongs to it."""
        return self._feeds[topic]

    def publish(self, batch: Batch) -> None:
        """Append a batch to its topic's log, and have a pass bring it to the subscriptions soon after.

        What is still on its way when a log is closed is nobody's.
        """
        feed = self._feeds.get(batch.topic)
        if feed is None:
            return
        self._published += feed.log.append(batch.payloads, batch.channels)
        self._metrics.messages += len(batch.payloads)
        self._metrics.batches += 1
        self._grown[feed] = None
        self._schedule()
        self._hold_source()

    def interrupt(self, topic: Topic, gap: SourceGap) -> None:
        """Record, behind what has been published so far, that messages of a topic may be missing."""
        feed = self._feeds[topic]
        feed.log.append_gap(gap)
        self._metrics.source_gaps += 1
        self._grown[feed] = None
        self._schedule()

    def subscribe(
        self, topic: Topic, outlet: Outlet, wire_format: WireFormat, policy: SlowPolicy, cursor: int
    ) -> Subscription:
        """Send an outlet what comes after a cursor, which is not below the tail of the topic's log."""
        feed = self._feeds[topic]
        chunks = feed.chunks_in(wire_format, self._warm)
        subscription = Subscription(feed, chunks, outlet, policy, cursor)
        feed.subscriptions[subscription] = None
        self._catch_up(subscription)
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """Send no more; harmless where it has been called before."""
        subscription.active = False
        subscription.feed.subscriptions.pop(subscription, None)

    def abandon(self, subscription: Subscription) -> None:
        """End a subscription on pushd's own account: what it is behind is counted as missed."""
        if subscription.active:
            self._skip(subscription, subscription.feed.log.head)
            self.unsubscribe(subscription)

    def wake(self, subscriptions: Iterable[Subscription]) -> None:
        """Go on with the subscriptions of an outlet that lagged, and takes data again."""
        for subscription in subscriptions:
            if subscription.policy is SlowPolicy.LATEST:
                self._skip_to_newest(subscription)
            self._catch_up(subscription)

    def _catch_up(self, subscription: Subscription) -> None:
        if subscription.behind and not subscription.outlet.lagging:
            self._again[subscription] = None
            self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._clock.callLater(0, self._run)

    def _run(self) -> None:
        """Run one slice of a pass; begin a new pass where none is under way."""
        self._scheduled = False
        if self._pass is None:
            self._pass = self._begin()
        deadline = self._clock.seconds() + SLICE_SECONDS
        for served, subscription in enumerate(self._pass, 1):
            self._serve(subscription)
            if served % STRIDE == 0 and self._clock.seconds() >= deadline:
                self._schedule()
                return
        self._pass = None
        self._behind = max(0, self._behind - self._sent)
        if self._grown or self._again:
            self._schedule()
        else:
            self._behind = 0  # who is behind lags
            self._cool()
        self._hold_source()

    def _hold_source(self) -> None:
        holding = self._behind + self._published > self._history / 4
        if self.source is not None and holding is not self._holding:
            self._holding = holding
            if holding:
                self.source.pauseProducing()
            else:
                self.source.resumeProducing()

    def _begin(self) -> Iterator[Subscription]:
        """Return all that is behind, as of now: what comes while the pass runs belongs to the next one."""
        self._behind += self._published
        self._published, self._sent = 0, math.inf
        grown, self._grown = self._grown, {}
        again, self._again = self._again, {}
        # Those first who lagged: of their subscriptions they have put one first that is seldom served.
        return chain(again, [subscription for feed in grown for subscription in feed.subscriptions])

    def _serve(self, subscription: Subscription) -> None:
        """Send one subscription what it is behind; whatever is wrong with it stays with it."""
        log, cursor = subscription.feed.log, subscription.cursor
        if not subscription.active or cursor == log.head:
            return
        try:
            if cursor < log.tail:
                self._fall_off(subscription)
                cursor = subscription.cursor
                if not subscription.active or cursor == log.head:
                    return
            if subscription.untold is not None and not subscription.outlet.lagging:
                subscription.tell_gap()
            if not subscription.outlet.lagging:
                chunk = subscription.chunks.read(cursor)
                subscription.cursor = chunk.end
                subscription.written = chunk.written
                subscription.gaps = chunk.gaps
                if chunk.data:
                    subscription.outlet.send(chunk.data)
                if chunk.cut and not subscription.outlet.lagging:
                    self._sent = min(self._sent, chunk.cost)
                    self._catch_up(subscription)
        except Exception:
            self.abandon(subscription)
            subscription.outlet.failed()

    def _fall_off(self, subscription: Subscription) -> None:
        """Apply the slow policy to a cursor that the log's tail has passed."""
        match subscription.policy:
            case SlowPolicy.SKIP:
                self._skip(subscription, subscription.feed.log.tail)
            case SlowPolicy.LATEST:
                self._skip_to_newest(subscription)
            case _:
                self._cut_off(subscription)
        self._catch_up(subscription)

    def _cut_off(self, subscription: Subscription) -> None:
        log = subscription.feed.log
        missed, size = subscription.missed, log.written - subscription.written
        self.abandon(subscription)
        self._metrics.slow_disconnects += 1
        subscription.outlet.overrun(subscription.feed.topic, subscription.missed - missed, size)

    def _skip_to_newest(self, subscription: Subscription) -> None:
        if subscription.cursor < (newest := subscription.feed.log.newest):
            self._skip(subscription, newest)

    def _skip(self, subscription: Subscription, cursor: int) -> None:
        self._metrics.missed += subscription.skip(cursor)

    def _cool(self) -> None:
        """Give back the memory of encoded chunks while there is nothing to send."""
        for chunks in self._warm:
            chunks.clear()
        self._warm.clear()
