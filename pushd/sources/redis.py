"""Redis Pub/Sub as the source: one subscription, replaced when it is lost, silent, or at the wrong server."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushd.errors import one_line
from pushd.message import Batch, Topic
from pushd.metrics import Reason
from pushd.redis_urls import RedisServers
from pushd.sources.buffer_limit import BufferLimit
from pushd.sources.connection import Node, SourceError
from pushd.sources.outages import Outages
from pushd.sources.probe import Probe
from pushd.sources.routes import Route
from pushd.sources.subscriber import Deliver, RedisSubscriber

ASK_AGAIN_SECONDS = 5.0
"""How often a topic is asked for that Redis refuses."""

RetryDelay = Callable[[int], float]
"""Says how many seconds to wait after so many failures since the last success, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long Redis is waited for, in seconds."""

    ping: float  # between two signs of life that are asked for, while subscribed
    timeout: float  # for a connection, and for each answer
    retry_delay: RetryDelay


class RedisSource(Service):
    """Keeps a subscription to some topics at the server that a route leads to, for ever.

    Between what comes before and after an interruption each topic gets a source gap. A topic that Redis
    refuses (NOPERM) is asked for again, and does not disturb the others.
    """

    _log = Logger()

    def __init__(
        self,
        topics: Sequence[Topic],
        deliver: Deliver,
        *,
        route: Route,
        redis: RedisServers,
        outages: Outages,
        probe: Probe | None,
        clock: IReactorTime,
        patience: Patience,
    ) -> None:
        self._topics = topics
        self._deliver = deliver
        self._route = route
        self._redis = redis
        self._outages = outages
        self._probe = probe
        self._clock = clock
        self._patience = patience
        self._buffer_limit = BufferLimit()
        self._failures = 0
        self._proven_at = 0.0  # up to then nothing is missing, as its answers say
        self._subscriber: RedisSubscriber | None = None  # while it is subscribed
        self._running: Deferred[None] | None = None

    def startService(self) -> None:
        """Begin to connect."""
        super().startService()
        self._proven_at = self._clock.seconds()
        self._route.start()
        self._running = Deferred.fromCoroutine(self._follow())
        self._running.addErrback(lambda failure: failure.trap(CancelledError))

    def stopService(self) -> None:
        """Drop the connection, or the attempt, without waiting for Redis."""
        super().stopService()
        if self._running is not None:
            self._running.cancel()
            self._route.stop()
            self._outages.close()

    def pauseProducing(self) -> None:
        """Read no more from Redis for now; until it has subscribed, the source reads on."""
        if self._subscriber is not None:
            self._subscriber.hold_back(True)

    def resumeProducing(self) -> None:
        """Read on."""
        if self._subscriber is not None:
            self._subscriber.hold_back(False)

    async def _follow(self) -> None:
        while True:
            at_once = await self._attempt()
            delay = 0.0 if at_once else self._patience.retry_delay(self._failures)
            self._failures += 1
            await deferLater(self._clock, delay)

    async def _attempt(self) -> bool:
        """Follow one subscription until it ends; return whether to go on without a delay."""
        try:
            node = await self._route.find()
        except SourceError as error:
            self._outages.failed(str(self._redis), error, self._proven_at)
            return False
        failure = await self._serve(node)
        subscribed, self._subscriber = self._subscriber is not None, None
        at_once = self._route.ended(node, failure)
        if subscribed or not at_once:  # to be sent on is no failure
            self._outages.failed(node.name, failure, self._since(failure))
        return at_once

    def _since(self, failure: SourceError) -> float:
        """Return the time up to which it is certain that nothing is missing."""
        if self._probe and failure.reason in (Reason.PROBE, Reason.MOVED):
            # The answers were those of a server that was the right one no more.
            return min(self._probe.proven_at, self._proven_at)
        return self._proven_at

    async def _serve(self, node: Node) -> SourceError:
        """Return why a node does not serve, or does no longer."""
        subscriber = RedisSubscriber(
            self._clock, self._patience.timeout, topics=self._topics, deliver=self._guarded, probe=self._probe
        )
        serving = Deferred.fromCoroutine(self._subscription(subscriber, node))
        left = self._route.left(node)
        left.addCallbacks(lambda _: serving.cancel(), lambda failure: failure.trap(CancelledError))
        try:
            return await serving
        except SourceError as failure:
            return failure
        except CancelledError:
            if not self.running or not left.called:
                raise
            return SourceError(Reason.MOVED, "another server has taken its place")
        except Exception as error:  # to go on with a mistake of our own is better than silence
            self._log.failure("Following {node} failed", node=node.name)
            return SourceError(Reason.PROTOCOL, one_line(error))
        finally:
            left.cancel()
            subscriber.give_up(Reason.CLOSED, "done")

    async def _subscription(self, subscriber: RedisSubscriber, node: Node) -> SourceError:
        """Subscribe, and return why that has ended; raises SourceError where it did not come about."""
        await subscriber.open(node, self._redis)
        await self._route.check(subscriber)
        remark = await self._buffer_limit.look(subscriber, node.name)
        provable, *confirmed = await self._subscribe(subscriber, node)
        self._failures = 0
        self._subscriber = subscriber
        if any(confirmed):
            self._outages.subscribed(node.name, list(compress(self._topics, confirmed)), remark)
        refused = [topic for topic, good in zip(self._topics, confirmed, strict=True) if not good]
        subscriber.keep_alive(self._patience.ping)
        beside = [self._beside(subscriber, self._ask_again(subscriber, node, refused))]
        if self._probe and provable:
            beside.append(self._beside(subscriber, self._probe.watch()))
        try:
            return await subscriber.lost
        finally:
            self._proven_at = subscriber.proven_at
            for task in beside:
                task.cancel()

    async def _subscribe(self, subscriber: RedisSubscriber, node: Node) -> list[bool]:
        """Ask for all at once, by a command each; return what is allowed: the probe, then the topics."""
        asked = [
            self._confirm_probe(subscriber),
            *(self._confirm(subscriber, node, topic) for topic in self._topics),
        ]
        try:
            return await gatherResults([*map(Deferred.fromCoroutine, asked)], consumeErrors=True)
        except FirstError as error:
            error.subFailure.raiseException()
            raise

    async def _confirm_probe(self, subscriber: RedisSubscriber) -> bool:
        if self._probe is None:
            return False
        try:
            await subscriber.subscribe_to(self._probe.topic)
        except SourceError as failure:
            if not failure.is_forbidden:
                raise
            self._probe.forbidden(failure)
            return False
        return True

    async def _confirm(self, subscriber: RedisSubscriber, node: Node, topic: Topic) -> bool:
        try:
            await subscriber.subscribe_to(topic)
        except SourceError as failure:
            if not failure.is_forbidden:
                raise
            self._outages.refused(topic, node.name, failure, self._proven_at)
            return False
        self._outages.confirmed(topic)
        return True

    async def _ask_again(self, subscriber: RedisSubscriber, node: Node, refused: list[Topic]) -> None:
        while refused:
            await deferLater(self._clock, ASK_AGAIN_SECONDS)
            for topic in tuple(refused):
                if await self._confirm(subscriber, node, topic):
                    refused.remove(topic)
                    self._outages.subscribed(node.name, [topic])

    def _beside(self, subscriber: RedisSubscriber, task: Coroutine[Any, Any, None]) -> Deferred[None]:
        """Run something while a connection lasts; a failure of it ends the connection."""

        def failed(failure: Failure) -> None:
            failure.trap(SourceError, CancelledError)
            if isinstance(failure.value, SourceError):
                subscriber.give_up(failure.value.reason, str(failure.value))

        return Deferred.fromCoroutine(task).addErrback(failed)

    def _guarded(self, batch: Batch) -> None:
        """Deliver; an exception must not end the connection and lose what else the read brought."""
        try:
            self._deliver(batch)
        except Exception:
            self._log.failure(
                "Lost {count} messages of {topic}", count=len(batch.payloads), topic=batch.topic
            )
