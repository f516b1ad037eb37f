"""Redis Pub/Sub as the source: one subscription, replaced when it is lost, silent, or at the wrong server."""

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from pushd.errors import one_line
from pushd.message import Topic
from pushd.metrics import Reason
from pushd.sources.attempt import Attempt, Terms
from pushd.sources.connection import Node, SourceError


class RedisSource(Service):
    """Keeps a subscription to topics, which may come and go, at the server that a route leads to, for ever.

    Between what comes before and after an interruption each topic gets a source gap. A topic that Redis
    refuses (NOPERM) is asked for again, and does not disturb the others.
    """

    _log = Logger()

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._proven_at = 0.0  # up to then nothing is missing
        self._failures = 0
        self._attempt: Attempt | None = None
        self._held_back = False
        self._running: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        self._proven_at = self._terms.clock.seconds()
        self._terms.route.start()
        self._running = Deferred.fromCoroutine(self._follow())
        self._running.addErrback(lambda failure: failure.trap(CancelledError))

    def stopService(self) -> None:
        """Drop the connection, or the attempt, without waiting for Redis."""
        super().stopService()
        if self._running is not None:
            self._running.cancel()
            self._terms.route.stop()

    def follow(self, topic: Topic, since: float | None = None) -> None:
        """Begin to follow a topic that is not followed; what was published since a time is missing.

        So it is, without such a time, if it has been left, and messages from before may still come.
        """
        if since is None and self._attempt is not None:
            since = self._attempt.leaving_since(topic)
        self._terms.account.follow(topic, since)
        if self._attempt is None or not self._attempt.follow(topic):
            self._terms.account.lost([topic], self._proven_at)

    def leave(self, topic: Topic) -> float:
        """End to follow a topic; return up to when nothing of it is missing."""
        proven_at = self._proven_at
        if self._attempt is not None:
            if self._attempt.proven_at is not None:
                proven_at = self._attempt.proven_at
            self._attempt.leave(topic)
        return self._terms.account.leave(topic, proven_at)

    def pauseProducing(self) -> None:
        """Read no more from Redis for now."""
        self._hold_back(True)

    def resumeProducing(self) -> None:
        """Read on."""
        self._hold_back(False)

    def _hold_back(self, holding: bool) -> None:
        self._held_back = holding
        if self._attempt is not None:
            self._attempt.hold_back(holding)

    async def _follow(self) -> None:
        while True:
            at_once = await self._try()
            delay = 0.0 if at_once else self._terms.retry_delay(self._failures)
            self._failures += 1
            await deferLater(self._terms.clock, delay)

    async def _try(self) -> bool:
        """Make one attempt, whatever comes of it; return whether to make the next without a delay."""
        where = str(self._terms.redis)
        try:
            node = await self._terms.route.find()
            where = node.name
            attempt = Attempt(node, self._terms, self._proven_at)
            attempt.hold_back(self._held_back)
            return self._ended(node, attempt, await self._run(attempt))
        except SourceError as failure:
            self._terms.route.advance()
            self._terms.account.failed(where, failure, self._proven_at)
        except CancelledError:
            if not self.running:
                raise
        except Exception as error:  # to go on after a mistake of our own is better than silence
            self._log.failure("Following {where} failed", where=where)
            self._terms.route.advance()
            self._terms.account.failed(where, SourceError(Reason.PROTOCOL, one_line(error)), self._proven_at)
        return False

    async def _run(self, attempt: Attempt) -> SourceError:
        """Return why an attempt has ended; until then topics that come and go concern it."""
        self._attempt = attempt
        try:
            return await attempt.run()
        finally:
            self._attempt = None

    def _ended(self, node: Node, attempt: Attempt, failure: SourceError) -> bool:
        """Take note of why an attempt has ended; return whether it has been sent on to another server."""
        if attempt.was_steady:
            self._failures = 0
        redirected = self._terms.route.redirect(node, failure)
        if not redirected:
            self._terms.route.advance()
        if attempt.proven_at is not None:
            self._proven_at = attempt.proven_at
        if attempt.proven_at is not None or not redirected:  # to be sent on alone is no failure
            self._terms.account.failed(node.name, failure, self._proven_at)
        else:
            self._terms.account.sent_on(self._proven_at)
        return redirected
