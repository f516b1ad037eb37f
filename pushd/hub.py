"""The hub: knows which subscriptions read which log, and runs the passes that bring them up to date.

Appending costs the same however many subscriptions there are. A pass costs one send for each subscription
that is behind, however many messages came: what arrives meanwhile makes later sends larger, not more.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from pushd.chunks import Chunks
from pushd.encoders import Encoder
from pushd.log import Log
from pushd.message import Batch, SourceGap, Topic
from pushd.metrics import Metrics
from pushd.settings import SlowPolicy

SLICE_SECONDS = 0.005
"""How long a pass may keep everything else waiting: accepting, echoing, reading from the source."""

STRIDE = 16
"""Subscriptions served between two looks at the clock."""


class Clock(Protocol):
    """What the hub needs of a reactor."""

    def seconds(self) -> float:
        """Return the time, in seconds, from any fixed point."""

    def callLater(self, delay: float, call: Callable[[], object], /) -> object:
        """Call something after so many seconds, from a later turn of the loop."""


class Source(Protocol):
    """What the hub needs of what publishes to it, if that can wait."""

    def pauseProducing(self) -> None:
        """Publish no more, as far as possible."""

    def resumeProducing(self) -> None:
        """Go on publishing."""


class Outlet(Protocol):
    """What the hub needs of a client's way out."""

    lagging: bool
    """While true, the client takes no more, and is not sent to; ``Hub.wake`` says that it is over."""

    def send(self, data: bytes) -> None:
        """Send whole frames, all of them in time; may set ``lagging``. Only while it is not lagging."""

    def overrun(self, topic: Topic, messages: int, size: int) -> None:
        """End a client at once that is so many messages, and bytes of payload, behind a log's head."""

    def failed(self) -> None:
        """End a client at once that has just raised an exception."""


class _Feed:
    """A log, who reads it, and its encoded chunks by wire format."""

    __slots__ = ("chunks", "log", "subscriptions", "topic")

    def __init__(self, topic: Topic, history: int) -> None:
        self.topic = topic
        self.log = Log(history)
        self.subscriptions: dict[Subscription, None] = {}  # a set that keeps its order
        self.chunks: dict[Encoder, Chunks] = {}


class Subscription:
    """One client's place in one log. Made by ``Hub.subscribe``."""

    __slots__ = (
        "_joined",
        "active",
        "chunks",
        "cursor",
        "feed",
        "gaps",
        "missed",
        "outlet",
        "policy",
        "written",
    )

    def __init__(self, feed: _Feed, chunks: Chunks, outlet: Outlet, policy: SlowPolicy, cursor: int) -> None:
        self.feed = feed
        self.chunks = chunks
        self.outlet = outlet
        self.policy = policy
        self.active = True
        self.missed = 0  # messages in counted gaps so far
        self.cursor = cursor
        self.written = feed.log.written_at(cursor)  # bytes of payload up to the cursor
        self.gaps = self._joined = feed.log.gaps_at(cursor)  # source gaps of the log up to the cursor

    @property
    def source_gaps(self) -> int:
        """How many source gaps have come since this subscription began."""
        return self.gaps - self._joined

    @property
    def behind(self) -> int:
        """How many messages and source gaps the log has that this subscription has neither got nor missed."""
        return self.feed.log.head - self.cursor


class Hub:
    """Brings every message to every subscription of its topic, or counts it as missed.

    Each log keeps history bytes. The source, where there is one, is held back while clients that take
    everything may be a quarter of that behind: else a burst would outrun pushd itself, and they would fall
    off the log's tail. It waits for passes, never for a client: a pass leaves out those that lag.
    """

    def __init__(self, clock: Clock, history: int, metrics: Metrics) -> None:
        self.source: Source | None = None
        self._clock = clock
        self._history = history
        self._metrics = metrics
        self._feeds: dict[Topic, _Feed] = {}
        self._grown: dict[_Feed, None] = {}  # feeds with news for all their subscriptions
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
        self._feeds[topic] = _Feed(topic, self._history)

    def publish(self, batch: Batch) -> None:
        """Append a batch to its topic's log, and have a pass bring it to the subscriptions soon after."""
        feed = self._feeds[batch.topic]
        self._published += feed.log.append(batch.payloads)
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
        self, topic: Topic, outlet: Outlet, encoder: Encoder, policy: SlowPolicy, replay: int = 0
    ) -> Subscription:
        """Send an outlet what comes from now on, after the last replay messages that the log still holds."""
        feed = self._feeds[topic]
        if encoder not in feed.chunks:
            feed.chunks[encoder] = Chunks(feed.log, encoder, self._warm)
        subscription = Subscription(feed, feed.chunks[encoder], outlet, policy, feed.log.back(replay))
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
        behind = [subscription for feed in grown for subscription in feed.subscriptions]
        behind += [subscription for subscription in again if subscription.feed not in grown]
        return iter(behind)

    def _serve(self, subscription: Subscription) -> None:
        """Send one subscription what it is behind; whatever is wrong with it stays with it."""
        log, cursor = subscription.feed.log, subscription.cursor
        if not subscription.active or cursor == log.head:
            return
        try:
            if cursor < log.tail:
                self._fall_off(subscription)
            elif not subscription.outlet.lagging:
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
        """Move a cursor forward, and count what it leaves out."""
        log = subscription.feed.log
        gaps = log.gaps_at(cursor)
        missed = cursor - subscription.cursor - (gaps - subscription.gaps)
        subscription.missed += missed
        self._metrics.missed += missed
        subscription.cursor = cursor
        subscription.gaps = gaps
        subscription.written = log.written_at(cursor)

    def _cool(self) -> None:
        """Give back the memory of encoded chunks while there is nothing to send."""
        for chunks in self._warm:
            chunks.clear()
        self._warm.clear()
