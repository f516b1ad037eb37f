"""Outages: which topics have no subscription at Redis, and since when; in few lines, and as source gaps."""

from collections.abc import Callable, Sequence

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from pushd.message import SourceGap, Topic
from pushd.metrics import Metrics
from pushd.sources.connection import SourceError

SUMMARY_SECONDS = 60.0
"""How often an outage that lasts is mentioned."""

NAMED_TOPICS = 5
"""So many topics are named in a line."""

Interrupt = Callable[[Topic, SourceGap], None]
"""Takes note, behind all messages handed over so far, that some of a topic may be missing."""


class Outages:
    """Keeps account for one source; the first subscription, if it comes about at once, ends no outage."""

    _log = Logger()

    def __init__(
        self,
        topics: Sequence[Topic],
        interrupt: Interrupt,
        *,
        clock: IReactorTime,
        metrics: Metrics,
        debug: bool,
    ) -> None:
        self._topics = topics
        self._interrupt = interrupt
        self._clock = clock
        self._metrics = metrics
        self._debug = debug
        self._missing: dict[Topic, float] = {}  # since when; not those that have never been tried
        self._refused: set[Topic] = set()
        self._began: float | None = None  # when the outage that is under way was noticed
        self._attempts = 0
        self._mentioned = 0.0

    def failed(self, where: str, failure: SourceError, since: float) -> None:
        """Note that there is no subscription, for any topic; since is up to when nothing is missing."""
        now = self._clock.seconds()
        for topic in self._topics:
            self._missing.setdefault(topic, since)
        self._metrics.reconnects[failure.reason] += 1
        self._attempts += 1
        if self._began is None:
            self._began = self._mentioned = now
            self._attempts = 0
            self._log.warn(
                "No subscription at {where}: {failure}; trying again until there is one",
                where=where,
                failure=failure,
            )
        elif now - self._mentioned >= SUMMARY_SECONDS:
            self._mentioned = now
            self._log.warn(
                "Still no subscription at {where} after {seconds:.0f} s, {attempts} more attempts: {failure}",
                where=where,
                seconds=now - self._began,
                attempts=self._attempts,
                failure=failure,
            )
        elif self._debug:
            self._log.debug("No subscription at {where}: {failure}", where=where, failure=failure)

    def refused(self, topic: Topic, where: str, failure: SourceError, since: float) -> None:
        """Note that Redis refuses one topic, and say so when that is new."""
        self._missing.setdefault(topic, since)
        if topic not in self._refused:
            self._refused.add(topic)
            self._log.warn(
                "{where} refuses {topic}: {failure}; asking again until it is allowed",
                where=where,
                topic=topic,
                failure=failure,
            )

    def confirmed(self, topic: Topic) -> None:
        """Note that messages of a topic come, from now on."""
        self._refused.discard(topic)
        if (since := self._missing.pop(topic, None)) is not None:
            self._interrupt(topic, SourceGap(since, self._clock.seconds()))

    def subscribed(self, where: str, topics: Sequence[Topic], remark: str = "") -> None:
        """Note that these topics have just been confirmed, and that none is waited for any more."""
        names = ", ".join(map(str, topics[:NAMED_TOPICS]))
        if len(topics) > NAMED_TOPICS:
            names += f", and {len(topics) - NAMED_TOPICS} more"
        if self._began is None:
            self._log.info("Subscribed to {names} at {where}", names=names, where=where)
            return
        self._log.info(
            "Subscribed to {names} at {where} again, after {seconds:.1f} s: what was published meanwhile is"
            " missing, unknown how much{remark}",
            names=names,
            where=where,
            seconds=self._end(),
            remark=remark,
        )

    def close(self) -> None:
        """Bring the account up to date at the end."""
        if self._began is not None:
            self._end()

    def _end(self) -> float:
        assert self._began is not None
        seconds = self._clock.seconds() - self._began
        self._metrics.unsubscribed_seconds += seconds
        self._began = None
        return seconds
