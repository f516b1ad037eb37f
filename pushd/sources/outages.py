"""Outages: which topics have no subscription at Redis, and since when; in few lines, and as source gaps."""

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pushd.message import SourceGap, Topic
from pushd.metrics import Metrics, Reason
from pushd.sources.connection import SourceError

SUMMARY_SECONDS = 60.0
"""How often an outage that lasts is mentioned."""

NAMED_TOPICS = 5
"""So many topics are named in a line."""


class Listener(Protocol):
    """What is told what becomes of topics. For each it is lost, then interrupted, then confirmed."""

    def interrupt(self, topic: Topic, gap: SourceGap) -> None:
        """Take note, behind all messages handed over so far, that some of a topic may be missing."""

    def confirmed(self, topic: Topic) -> None:
        """Take note that what is published to a topic comes from now on: each time it has been asked for."""

    def lost(self, topic: Topic) -> None:
        """Take note that a topic is not subscribed to now; may be called again and again meanwhile."""

    def refused(self, topic: Topic, why: str) -> None:
        """Take note that Redis forbids a topic, each time it does; it is asked for again until it is left."""


class Follower(Protocol):
    """What outages need to know of one source."""

    has_fixed: bool
    """Whether it follows topics that the log names even where none of them is to be had."""

    @property
    def subscribed_to(self) -> Sequence[Topic]:
        """The topics of which all messages come."""


def gap_until_now(since: float, clock: IReactorTime, wall: Callable[[], float]) -> SourceGap:
    """Return a gap from a time of the clock until now, as people tell the time."""
    until = wall()
    return SourceGap(until - (clock.seconds() - since), until)


class Outages:
    """Says when a deployment of Redis is lost to any of its sources, and when all are back: once each.

    Times are those of clock, which only goes forward; wall tells the seconds since 1970, for people.
    """

    _log = Logger()

    def __init__(
        self,
        listener: Listener,
        *,
        clock: IReactorTime,
        wall: Callable[[], float],
        metrics: Metrics,
        debug: bool,
    ) -> None:
        self._listener = listener
        self._clock = clock
        self._wall = wall
        self._metrics = metrics
        self._debug = debug
        self.down_since: float | None = wall()  # by wall; None while all sources have a subscription
        self._down: set[Follower] = set()
        self._since = 0.0  # of the outage that is under way: nothing is missing until then
        self._noticed = self._mentioned = 0.0
        self._attempts = 0
        self._reasons: set[Reason] = set()
        self._returned: dict[Follower, None] = {}  # a set that keeps its order
        self._counted_until = 0.0  # so that no second counts twice

    def gap(self, topic: Topic, since: float) -> None:
        """Record that some of a topic may be missing, from a time until now."""
        self._listener.interrupt(topic, gap_until_now(since, self._clock, self._wall))

    def failed(self, account: Follower, where: str, failure: SourceError, since: float) -> None:
        """Note that an attempt of a source has failed, or that its subscription has ended."""
        now = self._clock.seconds()
        self._metrics.reconnects[failure.reason] += 1
        if not self._down:
            self._since, self._noticed, self._attempts = since, now, 0
            self.down_since = self._wall() - (now - since)
            self._reasons.clear()
            text = "No subscription at {where}: {failure}; trying again until there is one"
        elif now - self._mentioned >= SUMMARY_SECONDS:
            text = (
                "Still no subscription at {where} after {seconds:.0f} s, {attempts} more attempts: {failure}"
            )
        elif failure.reason in (Reason.REFUSED, Reason.TLS) and failure.reason not in self._reasons:
            text = "Still no subscription at {where}: {failure}"  # what people have to mend
        else:
            text = ""
        self._down.add(account)
        self._since = min(self._since, since)
        self._attempts += 1
        self._reasons.add(failure.reason)
        fields = {
            "where": where,
            "failure": failure,
            "seconds": now - self._noticed,
            "attempts": self._attempts,
        }
        if text:
            self._mentioned = now
            self._log.warn(text, **fields)
        elif self._debug:
            self._log.debug("No subscription at {where}: {failure}", **fields)

    def lossy(self, topics: Sequence[Topic], since: float) -> None:
        """Say that a probe was lost between two that were not."""
        self._log.warn(
            "Redis has lost a probe: what was published for {names} from {since} to {until} may be missing",
            names=_named(topics),
            since=_shown(self._wall() - (self._clock.seconds() - since)),
            until=_shown(self._wall()),
        )

    def refused(self, where: str, topics: Sequence[Topic], failure: SourceError) -> None:
        """Say that Redis refuses some topics."""
        self._log.warn(
            "{where} refuses {names}: {failure}; asking again until it is allowed",
            where=where,
            names=_named(topics),
            failure=failure,
        )

    def not_left(self, where: str, failure: SourceError) -> None:
        """Say that Redis forbids to end subscriptions."""
        self._log.warn(
            "{where} goes on to send what nobody wants any more ({failure}): allow +unsubscribe and"
            " +punsubscribe",
            where=where,
            failure=failure,
        )

    def subscribed(self, account: Follower, where: str, since: float | None, remark: str) -> None:
        """Note that a source has all that it may have, where nothing is missing up to a time.

        Say so, once all sources have.
        """
        accounts = [account]
        if account in self._down:
            self._down.remove(account)
            self._returned[account] = None
            if self._down:
                return
            accounts, since = list(self._returned), self._since
            self._returned.clear()
        if not self._down:
            self.down_since = None
        if since is not None:
            self._count(since)
        if topics := [topic for each in accounts for topic in each.subscribed_to]:
            self._say_subscribed(where, topics, since, remark)
        elif not any(each.has_fixed for each in accounts):  # or all are refused, which has been said
            self._say_connected(where, since, remark)

    def allowed(self, where: str, topics: Sequence[Topic], since: float) -> None:
        """Note that Redis refuses some topics no more, of which something may be missing since a time."""
        self._count(since)
        self._say_subscribed(where, topics, since, "")

    def _say_subscribed(self, where: str, topics: Sequence[Topic], since: float | None, remark: str) -> None:
        if since is None:
            self._log.info("Subscribed to {names} at {where}", names=_named(topics), where=where)
            return
        seconds = self._clock.seconds() - since
        self._log.info(
            "Subscribed to {names} at {where} again, after {seconds:.1f} s: what was published from {since}"
            " to {until} is missing, unknown how much{remark}",
            names=_named(topics),
            where=where,
            seconds=seconds,
            since=_shown(self._wall() - seconds),
            until=_shown(self._wall()),
            remark=remark,
        )

    def _say_connected(self, where: str, since: float | None, remark: str) -> None:
        """Say what there is to say where nothing is followed."""
        if since is None:
            self._log.info("Connected to {where}", where=where)
            return
        self._log.info(
            "Connected to {where} again, after {seconds:.1f} s{remark}",
            where=where,
            seconds=self._clock.seconds() - since,
            remark=remark,
        )

    def close(self) -> None:
        """Bring the count of seconds up to date at the end."""
        if self._down:
            self._count(self._since)
            self._down.clear()

    def _count(self, since: float) -> None:
        now = self._clock.seconds()
        self._metrics.unsubscribed_seconds += max(0.0, now - max(since, self._counted_until))
        self._counted_until = now


def _named(topics: Sequence[Topic]) -> str:
    names = ", ".join(map(str, topics[:NAMED_TOPICS]))
    return names if len(topics) <= NAMED_TOPICS else f"{names}, and {len(topics) - NAMED_TOPICS} more"


def _shown(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
