"""The account of one source: which topics it follows, which of them come, and since when others may not."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from twisted.internet.interfaces import IReactorTime

from pushd.message import Topic
from pushd.sources.connection import SourceError
from pushd.sources.outages import Listener, Outages


@dataclass(slots=True, eq=False)
class Followed:
    """What is known of one topic from when it is followed until it is left."""

    begun: float
    fixed: bool = False  # it is never left, and the log names it
    missing_since: float | None = None
    was_confirmed: bool = False
    was_refused: bool = False  # since it was confirmed

    def complete_until(self, proven_at: float) -> float:
        """Return up to when nothing is missing, if that was proven for what is subscribed to."""
        if self.missing_since is not None:
            return self.missing_since
        return max(self.begun, proven_at) if self.was_confirmed else self.begun


class Account:
    """What one source has of its topics: some from its start to its end, others that come and go.

    A first subscription that comes about at once ends no outage.
    """

    def __init__(
        self, topics: Sequence[Topic], outages: Outages, listener: Listener, clock: IReactorTime
    ) -> None:
        now = clock.seconds()
        self.followed = {topic: Followed(now, fixed=True) for topic in topics}  # in the order of their coming
        self.has_fixed = bool(topics)
        self._outages = outages
        self._listener = listener
        self._clock = clock
        self._has_complained = False
        # Fixed topics that have just been confirmed, and since when they were missing.
        self._fresh: dict[Topic, float | None] = {}

    @property
    def subscribed_to(self) -> list[Topic]:
        """The topics of which all messages come."""
        return [
            topic
            for topic, followed in self.followed.items()
            if followed.was_confirmed and followed.missing_since is None
        ]

    def follow(self, topic: Topic, since: float | None) -> None:
        """Begin to keep account of a topic, of which something may be missing since a time."""
        self.followed[topic] = Followed(self._clock.seconds(), missing_since=since)

    def leave(self, topic: Topic, proven_at: float) -> float:
        """Keep account of a topic no more; return up to when nothing of it is missing."""
        return self.followed.pop(topic).complete_until(proven_at)

    def failed(self, where: str, failure: SourceError, since: float) -> None:
        """Note that there is no subscription, for any topic; nothing is missing up to a time."""
        self._fresh.clear()
        self._outages.failed(self, where, failure, since)
        self.lost(list(self.followed), since)

    def sent_on(self, since: float) -> None:
        """Note that another server has to be asked before any topic was confirmed.

        That is no failure, nor a loss for topics that nobody could be waiting for.
        """
        self.lost([topic for topic, followed in self.followed.items() if not followed.fixed], since)

    def lost(self, topics: Sequence[Topic], since: float) -> None:
        """Note that there is no subscription to some topics; nothing is missing up to a time."""
        self._miss(topics, since)
        for topic in topics:
            if topic in self.followed:  # until the listener has left it, just now
                self._listener.lost(topic)

    def refused(self, where: str, refusals: Mapping[Topic, SourceError], since: float) -> None:
        """Note that Redis refuses some topics, and why."""
        self._miss(list(refusals), since)
        fixed = {topic: self.followed[topic] for topic in refusals if self.followed[topic].fixed}
        if new := [topic for topic, followed in fixed.items() if not followed.was_refused]:
            self._outages.refused(where, new, refusals[new[0]])
        for followed in fixed.values():
            followed.was_refused = True
        for topic, failure in refusals.items():
            if topic in self.followed:
                self._listener.refused(topic, str(failure))

    def confirmed(self, topic: Topic) -> None:
        """Note that messages of a topic come, from now on."""
        followed = self.followed[topic]
        since, followed.missing_since = followed.missing_since, None
        followed.was_confirmed, followed.was_refused = True, False
        if followed.fixed:
            self._fresh[topic] = since
        if since is not None:
            self._outages.gap(topic, since)
        self._listener.confirmed(topic)

    def interrupted(self, topic: Topic) -> None:
        """Note that messages come before a topic is confirmed; of those between, some may be missing."""
        if (since := self.followed[topic].missing_since) is not None:
            self._outages.gap(topic, since)

    def not_left(self, where: str, failure: SourceError) -> None:
        """Note that Redis forbids to end a subscription: its messages come until the connection ends."""
        if not self._has_complained:
            self._has_complained = True
            self._outages.not_left(where, failure)

    def subscribed(self, where: str, remark: str = "") -> None:
        """Note that all topics that are allowed have just been confirmed."""
        _, since = self._take_fresh()
        self._outages.subscribed(self, where, since, remark)

    def allowed(self, where: str) -> None:
        """Note that it may be that some topics that were refused have just been confirmed."""
        topics, since = self._take_fresh()
        if since is not None:
            self._outages.allowed(where, topics, since)

    def _take_fresh(self) -> tuple[list[Topic], float | None]:
        fresh, self._fresh = self._fresh, {}
        return list(fresh), min((since for since in fresh.values() if since is not None), default=None)

    def _miss(self, topics: Iterable[Topic], since: float) -> None:
        for topic in topics:
            followed = self.followed[topic]
            followed.missing_since = followed.complete_until(since)

    def lossy(self, since: float) -> None:
        """Note that something was lost since a time, although the subscription lasts."""
        if self.followed:
            self._outages.lossy(list(self.followed), since)
        for topic in self.subscribed_to:
            self._outages.gap(topic, self.followed[topic].complete_until(since))
