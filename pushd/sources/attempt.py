"""One attempt to be subscribed at one server, and all that lasts as long as the subscription does."""

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from pushd.errors import one_line
from pushd.message import Batch, Topic
from pushd.metrics import Reason
from pushd.redis_urls import RedisServers
from pushd.sources.account import Account
from pushd.sources.buffer_limit import BufferLimit
from pushd.sources.connection import Node, SourceError
from pushd.sources.probe import Probe
from pushd.sources.routes import Route
from pushd.sources.subscriber import Deliver, RedisSubscriber

ASK_AGAIN_SECONDS = 5.0
"""How often topics are asked for that Redis refuses."""

STEADY_SECONDS = 10.0
"""A subscription that has lasted so long was a success: what ends it is tried again soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a source follows, how, and where it says so. Times are in seconds."""

    deliver: Deliver
    redis: RedisServers
    route: Route
    probe: Probe | None
    account: Account
    buffer_limit: BufferLimit
    clock: IReactorTime
    ping: float  # between two signs of life that are asked for, while subscribed
    timeout: float  # for a connection, and for each answer
    retry_delay: Callable[[int], float]  # after so many failures in a row, from 0


class Attempt:
    """Connects, subscribes, and keeps the subscription until it ends.

    proven_at is the time up to which nothing is missing; None before there is a subscription.
    """

    _log = Logger()

    def __init__(self, node: Node, terms: Terms, proven_at: float) -> None:
        self._node = node
        self._terms = terms
        self._missing_since = proven_at  # of the last subscription
        self._subscriber = RedisSubscriber(
            terms.clock, terms.timeout, deliver=self._guarded, probe=terms.probe
        )
        self._asking = False  # for topics: from then on each is asked for when it comes
        self._refused: dict[Topic, None] = {}  # to be asked for again
        self._asks_again = False
        self._beside: set[Deferred[None]] = set()  # what runs while the subscription lasts
        self._probing = False
        self._held_back = False
        self._subscribed_at: float | None = None

    @property
    def proven_at(self) -> float | None:
        """What was published until then has been handed on, as far as that can be known."""
        proven_at, probe = self._subscriber.proven_at, self._terms.probe
        if proven_at is None or probe is None or not (self._probing and probe.is_allowed):
            return proven_at
        # The answers may have been those of a server that was the right one no more.
        return min(proven_at, probe.proven_at)

    @property
    def was_steady(self) -> bool:
        """Whether the subscription has lasted for a while."""
        now = self._terms.clock.seconds()
        return self._subscribed_at is not None and now - self._subscribed_at >= STEADY_SECONDS

    def hold_back(self, holding: bool) -> None:
        """Read nothing from Redis, or read on; until it has subscribed, it reads on."""
        self._held_back = holding
        if self._subscribed_at is not None:
            self._subscriber.hold_back(holding)

    def follow(self, topic: Topic) -> bool:
        """Ask for one more topic; return False where it is too early, and it will be asked for with all."""
        if self._asking:
            self._run_beside(self._confirm([topic]))
        return self._asking

    def leaving_since(self, topic: Topic) -> float | None:
        """Return when a topic was left whose messages may still come; None where none may."""
        return self._subscriber.leaving_since(topic)

    def leave(self, topic: Topic) -> None:
        """Ask for a topic no more."""
        self._refused.pop(topic, None)
        if self._asking:
            self._run_beside(self._unsubscribe(topic))

    async def run(self) -> SourceError:
        """Return why the server does not serve, or does no longer."""
        serving = Deferred.fromCoroutine(self._serve())
        left = self._terms.route.left(self._node)
        left.addCallbacks(lambda _: serving.cancel(), lambda failure: failure.trap(CancelledError))
        try:
            return await serving
        except SourceError as failure:
            return failure
        except CancelledError:
            if not left.called:
                raise
            return SourceError(Reason.MOVED, "another server has taken its place")
        finally:
            left.cancel()
            self._subscriber.give_up(Reason.CLOSED, "done")

    async def _serve(self) -> SourceError:
        terms, subscriber = self._terms, self._subscriber
        await subscriber.open(self._node, terms.redis)
        await terms.route.check(subscriber, self._node)
        remark = await terms.buffer_limit.look(subscriber, self._node.name)
        try:
            await self._subscribe()
            self._subscribed_at = terms.clock.seconds()
            terms.account.subscribed(self._node.name, remark)
            subscriber.keep_alive(terms.ping)
            if self._held_back:
                subscriber.hold_back(True)
            if self._probing and terms.probe:
                self._run_beside(terms.probe.watch(lambda: subscriber.proven_at or 0.0))
            return await subscriber.lost
        finally:
            for task in tuple(self._beside):
                task.cancel()

    async def _subscribe(self) -> None:
        """Ask for the probe, and for all topics at once, by a command each; return once all is answered."""
        self._asking = True
        probing = Deferred.fromCoroutine(self._confirm_probe())
        confirming = Deferred.fromCoroutine(self._confirm(list(self._terms.account.followed)))
        self._probing, _ = await _all([probing, confirming])

    async def _confirm_probe(self) -> bool:
        """Subscribe to the probe, if there is one; return whether that is allowed."""
        probe = self._terms.probe
        if probe is None:
            return False
        if failure := await self._refusal(probe.topic):
            probe.complain(failure)
            return False
        probe.begin(self._terms.account.lossy)
        return True

    async def _confirm(self, topics: Sequence[Topic]) -> None:
        """Subscribe to topics; those that are refused are asked for again."""
        refusals = await _all([Deferred.fromCoroutine(self._confirm_one(topic)) for topic in topics])
        refused = {
            topic: refusal
            for topic, refusal in zip(topics, refusals, strict=True)
            if refusal and topic in self._terms.account.followed
        }
        if refused:
            self._refused.update(dict.fromkeys(refused))
            self._terms.account.refused(self._node.name, refused, self._missing_since)
            if not self._asks_again:
                self._asks_again = True
                self._run_beside(self._ask_again())

    async def _confirm_one(self, topic: Topic) -> SourceError | None:
        """Subscribe to a topic; return why Redis forbids that, if it is still of interest."""
        account = self._terms.account
        asked_for = account.followed[topic]
        refusal = await self._refusal(topic)
        if account.followed.get(topic) is asked_for:
            if refusal is None:
                account.confirmed(topic)
            return refusal
        # It has been left. If it has been asked for anew, what comes until Redis leaves it is welcome.
        if refusal is None and topic in account.followed:
            account.interrupted(topic)
        elif refusal is None:
            self._subscriber.ignore(topic)
        return None

    async def _refusal(self, topic: Topic) -> SourceError | None:
        """Subscribe to a topic; return why Redis forbids that; raises SourceError for other reasons."""
        try:
            await self._subscriber.subscribe_to(topic)
        except SourceError as failure:
            if failure.is_forbidden:
                return failure
            raise
        return None

    async def _ask_again(self) -> None:
        await deferLater(self._terms.clock, ASK_AGAIN_SECONDS)
        while self._held_back:  # the answer would be late, behind what is not read
            await deferLater(self._terms.clock, ASK_AGAIN_SECONDS)
        self._asks_again = False
        refused, self._refused = self._refused, {}
        await self._confirm(list(refused))
        self._terms.account.allowed(self._node.name)

    async def _unsubscribe(self, topic: Topic) -> None:
        try:
            await self._subscriber.unsubscribe_from(topic)
        except SourceError as failure:
            if not failure.is_forbidden:
                raise
            self._terms.account.not_left(self._node.name, failure)

    def _run_beside(self, task: Coroutine[Any, Any, None]) -> None:
        """Run something while the subscription lasts; a failure of it ends that."""

        def failed(failure: Failure) -> None:
            if failure.check(CancelledError):
                return
            if isinstance(failure.value, SourceError):
                self._subscriber.give_up(failure.value.reason, str(failure.value))
                return
            self._log.failure("Following {node} failed", failure=failure, node=self._node.name)
            self._subscriber.give_up(Reason.PROTOCOL, one_line(failure.value))

        running = Deferred.fromCoroutine(task).addErrback(failed)
        self._beside.add(running)
        running.addBoth(lambda _: self._beside.discard(running))

    def _guarded(self, batch: Batch) -> None:
        """Deliver; an exception must not end the connection and lose what else the read brought."""
        try:
            self._terms.deliver(batch)
        except Exception:
            self._log.failure(
                "Lost {count} messages of {topic}", count=len(batch.payloads), topic=batch.topic
            )


async def _all(answers: Sequence[Deferred[Any]]) -> Any:
    """Return all answers, or raise what the first one fails with."""
    try:
        return await gatherResults(answers, consumeErrors=True)
    except FirstError as error:
        error.subFailure.raiseException()
