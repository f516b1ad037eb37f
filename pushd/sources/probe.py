"""The probe: publishes to Redis as a service would, and sees whether that comes back on the subscription.

A Redis that answers PING proves nothing: it may be the wrong one, or demoted, or cut off.
"""

from collections.abc import Callable

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from pushd.message import PROBE_PREFIX, Kind, Topic
from pushd.metrics import Metrics, Reason
from pushd.redis_urls import Access
from pushd.sources.connection import Node, RedisConnection, SourceError
from pushd.sources.routes import Route

SILENT_PROBES = 2
"""So many in a row that were published, and did not come back, condemn a subscription."""

MAX_HOPS = 3
"""To so many nodes may a cluster send a probe on."""


class Probe:
    """Publishes to a topic of its own every so many seconds, each time over a new connection.

    A probe that cannot be published proves nothing; nor does one behind which nothing has been heard yet.
    """

    _log = Logger()

    def __init__(
        self,
        topic: Topic,
        route: Route,
        access: Access,
        *,
        clock: IReactorTime,
        seconds: float,
        first_after: float,
        timeout: float,
        metrics: Metrics,
    ) -> None:
        self.topic = topic
        self._route = route
        self._access = access
        self._clock = clock
        self._seconds = seconds
        self._first_after = first_after
        self._timeout = timeout
        self._metrics = metrics
        # When the newest probe was sent that has come back; at first, when the subscription began.
        self.proven_at = 0.0
        self.is_allowed = True  # until Redis forbids to publish; again when one comes back
        self._number = 0
        self._sent_at: dict[int, float] = {}  # of probes that have not come back, oldest first
        self._lost: Callable[[float], None] = lambda _: None
        self._complained = False

    def heard(self, payload: bytes) -> None:
        """Take note of what came back on the subscription."""
        number = int(payload) if payload.isdigit() and len(payload) < 20 else 0
        if number not in self._sent_at:
            return
        if any(earlier < number for earlier in self._sent_at):
            self._lost(self.proven_at)  # what is published in order comes in order
        self.proven_at = self._sent_at[number]
        self.is_allowed = True
        self._sent_at = {later: sent for later, sent in self._sent_at.items() if later > number}

    def begin(self, lost: Callable[[float], None]) -> None:
        """Forget the last subscription; lost is told since when something is missing in the new one."""
        self.proven_at = self._clock.seconds()
        self.is_allowed = True
        self._sent_at.clear()
        self._lost = lost

    async def watch(self, proven_at: Callable[[], float]) -> None:
        """Probe a subscription that has begun, for ever; raises SourceError when it is silent.

        proven_at says when the last question was asked that was answered on the subscription.
        """
        silent = 0
        await deferLater(self._clock, self._first_after)
        while True:
            published = await self._publish()
            await deferLater(self._clock, self._seconds)
            if not published or self._is_undecided(published, proven_at()):
                continue
            missed = published in self._sent_at
            self._metrics.probes_missed += missed
            silent = silent + 1 if missed else 0
            if silent == SILENT_PROBES:
                raise SourceError(Reason.PROBE, f"{silent} probes in a row were published and did not arrive")

    def _is_undecided(self, number: int, proven_at: float) -> bool:
        """Tell whether a probe may still be behind what has not been read from Redis."""
        return number in self._sent_at and proven_at <= self._sent_at[number]

    async def _publish(self) -> int:
        """Publish one probe; return its number, or 0 where that could not be done."""
        self._number += 1
        number = self._number
        try:
            await self._publish_somewhere(number)
        except SourceError as failure:
            self._sent_at.pop(number, None)
            self.is_allowed = self.is_allowed and not failure.is_forbidden
            self.complain(failure)
            return 0
        self._complained = False
        self._metrics.probes_sent += 1
        return number

    async def _publish_somewhere(self, number: int) -> None:
        """Publish one probe where the route leads, and further if that sends on; raises SourceError."""
        hops = 1
        while True:
            node = None
            try:
                node = await self._route.find()
                await self._publish_at(node, number)
            except SourceError as failure:
                if node is None or hops == MAX_HOPS or not self._route.redirect(node, failure):
                    self._route.advance()
                    raise
                hops += 1
            else:
                self._route.advance()
                return

    async def _publish_at(self, node: Node, number: int) -> None:
        connection = RedisConnection(self._clock, self._timeout)
        command = b"SPUBLISH" if self.topic.kind is Kind.SHARD else b"PUBLISH"
        try:
            await connection.open(node, self._access)
            self._sent_at[number] = self._clock.seconds()
            await connection.ask(command.decode(), command, self.topic.name, b"%d" % number)
        finally:
            connection.give_up(Reason.CLOSED, "done")

    def complain(self, failure: SourceError) -> None:
        """Say that probing does not work, once until it does."""
        if not self._complained:
            self._complained = True
            self._log.warn(
                "Probing does not work ({failure}): a wrong or demoted Redis is not noticed; allow the"
                " channels {prefix}*, or say --redis-probe 0",
                failure=failure,
                prefix=PROBE_PREFIX.decode(),
            )
