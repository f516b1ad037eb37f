"""The probe: publishes to Redis as a service would, and sees whether that comes back on the subscription.

A Redis that answers PING proves nothing: it may be the wrong one, or demoted, or cut off.
"""

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from pushd.message import Kind, Topic
from pushd.metrics import Metrics, Reason
from pushd.redis_urls import Access
from pushd.sources.connection import Node, RedisConnection, SourceError
from pushd.sources.routes import Route
from pushd.sources.subscriber import PROBE_PREFIX

SILENT_PROBES = 2
"""So many in a row that were published, and did not come back, condemn a subscription."""

MAX_HOPS = 3
"""To so many nodes may a cluster send a probe on."""


class Probe:
    """Publishes to a topic of its own every so many seconds, each time over a new connection.

    A probe that cannot be published proves nothing.
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
        timeout: float,
        metrics: Metrics,
    ) -> None:
        self.topic = topic
        self._seconds = seconds
        self._route = route
        self._access = access
        self._clock = clock
        self._timeout = timeout
        self._metrics = metrics
        self.proven_at = (
            0.0  # when the last probe was sent that came back; at first, when the subscription began
        )
        self._number = 0
        self._sent_at = 0.0
        self._awaited: bytes | None = None  # what was published, and has not come back
        self._forbidden = False

    def heard(self, payload: bytes) -> None:
        """Take note of what came back on the subscription."""
        if payload == self._awaited:
            self._awaited = None
            self.proven_at = self._sent_at

    def forbidden(self, failure: SourceError) -> None:
        """Say, once, that Redis does not let pushd probe."""
        if not self._forbidden:
            self._forbidden = True
            self._log.warn(
                "Redis forbids the probe ({failure}): a wrong or demoted Redis will not be noticed; allow the"
                " channels {prefix}*, or say --redis-probe 0",
                failure=failure,
                prefix=PROBE_PREFIX.decode(),
            )

    async def watch(self) -> None:
        """Probe a subscription from now on; raises SourceError when it is silent.

        Returns where Redis forbids to publish.
        """
        silent = 0
        self.proven_at = self._clock.seconds()
        while True:
            try:
                published = await self._publish()
            except SourceError as failure:
                if failure.is_forbidden:
                    self.forbidden(failure)
                    return
                published = False
            await deferLater(self._clock, self._seconds)
            if published:
                missed = self._awaited is not None
                self._metrics.probes_missed += missed
                silent = silent + 1 if missed else 0
            if silent == SILENT_PROBES:
                raise SourceError(Reason.PROBE, f"{silent} probes in a row were published and did not arrive")

    async def _publish(self) -> bool:
        """Publish one probe; raises SourceError."""
        self._number += 1
        self._sent_at = self._clock.seconds()
        self._awaited = b"%d" % self._number
        for _ in range(MAX_HOPS):
            node = await self._route.find()
            try:
                await self._publish_at(node)
            except SourceError as failure:
                if not self._route.ended(node, failure):
                    raise
            else:
                self._route.ended(node, SourceError(Reason.CLOSED, "done"))
                self._metrics.probes_sent += 1
                return True
        return False

    async def _publish_at(self, node: Node) -> None:
        connection = RedisConnection(self._clock, self._timeout)
        command = b"SPUBLISH" if self.topic.kind is Kind.SHARD else b"PUBLISH"
        try:
            await connection.open(node, self._access)
            await connection.ask(command.decode(), command, self.topic.name, self._awaited or b"")
        finally:
            connection.give_up(Reason.CLOSED, "done")
