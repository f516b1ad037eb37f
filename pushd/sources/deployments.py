"""From settings to sources: which subscriptions one Redis, Sentinels, or a cluster take."""

import random
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from twisted.application.internet import backoffPolicy
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred, maybeDeferred

from pushd.errors import SettingsError
from pushd.message import PROBE_PREFIX, Kind, Topic
from pushd.metrics import Metrics
from pushd.redis_urls import Cluster, Embedded, Redis, Sentinel
from pushd.settings import Settings
from pushd.sources.account import Account
from pushd.sources.attempt import Terms
from pushd.sources.buffer_limit import BufferLimit
from pushd.sources.cluster import AnyNodeRoute, ClusterNodes, SlotRoute, channel_in, slot_of
from pushd.sources.connection import Node, SourceError, connector, unix_endpoint
from pushd.sources.outages import Listener, Outages
from pushd.sources.probe import Probe
from pushd.sources.publisher import Publisher
from pushd.sources.redis import RedisSource
from pushd.sources.routes import Route
from pushd.sources.sentinel import SentinelRoute
from pushd.sources.subscriber import Deliver

FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 2.0
"""Attempts to connect are so far apart, and up to a quarter more, so that many pushd do not come at once."""

SENTINEL_DELAY_SECONDS = 0.5
"""With Sentinels, who say where to go."""


@dataclass(frozen=True, slots=True)
class Share:
    """Topics that one subscription can serve, and the ways there: one for it, and one for its probe."""

    topics: list[Topic]  # from the start
    route: Route
    probe_route: Route
    probe: Topic
    longest_delay: float = LONGEST_DELAY_SECONDS


class RedisSources(MultiService):
    """All sources of one deployment, which are held back together.

    With control, channels and patterns can come and go, and be published to.
    """

    def __init__(self, outages: Outages) -> None:
        super().__init__()
        self._outages = outages
        self._ordinary: RedisSource | None = None
        self._publisher: Publisher | None = None

    def control(self, ordinary: RedisSource, publisher: Publisher) -> None:
        """Have what comes and goes followed by one of the sources."""
        self._ordinary = ordinary
        self._publisher = publisher

    @property
    def down_since(self) -> float | None:
        """Since when, by wall time, a source has had no subscription; None while all have one."""
        return self._outages.down_since

    @property
    def descriptors(self) -> int:
        """How many connections they may need at a time: each its own and its probe's, and the publisher's."""
        return 2 * len(list(self)) + (self._publisher is not None)

    def pauseProducing(self) -> None:
        """Read no more for now."""
        for source in self:
            source.pauseProducing()

    def resumeProducing(self) -> None:
        """Read on."""
        for source in self:
            source.resumeProducing()

    def follow(self, topic: Topic, since: float | None = None) -> None:
        """Begin to follow a channel or pattern that is not followed; what was published since is missing."""
        assert self._ordinary is not None
        self._ordinary.follow(topic, since)

    def leave(self, topic: Topic) -> float:
        """End to follow a topic; return the time of the clock up to which nothing is missing.

        What is still on its way is delivered.
        """
        assert self._ordinary is not None
        return self._ordinary.leave(topic)

    def publish(self, channel: bytes, payload: bytes) -> Deferred[int]:
        """Publish as a service would; return how many Redis has sent it to.

        Fails with SourceError, or PublisherBusy. Nothing is sent twice.
        """
        assert self._publisher is not None
        return self._publisher.publish(channel, payload)

    def stopService(self) -> Deferred[None]:
        """Leave Redis, and close the account."""
        self._outages.close()
        if self._publisher is not None:
            self._publisher.stop()
        return maybeDeferred(super().stopService)


def redis_sources(
    settings: Settings, deliver: Deliver, listener: Listener, *, control: bool, reactor: Any, metrics: Metrics
) -> RedisSources:
    """Return what follows the topics of the settings at Redis, and with control others that come and go.

    Raises SettingsError where --redis-ca holds no certificate, or a host can have none.
    """
    redis = settings.source
    assert not isinstance(redis, Embedded)
    outages = Outages(listener, clock=reactor, wall=time.time, metrics=metrics, debug=settings.debug)
    sources = RedisSources(outages)
    try:
        all_shares = list(shares(settings, reactor, control=control))
    except SourceError as error:
        raise SettingsError(f"--redis: {error}; allowed: a host that a certificate can name") from None
    for share in all_shares:
        terms = Terms(
            deliver=deliver,
            redis=redis,
            route=share.route,
            probe=_probe(settings, share, reactor, metrics),
            account=Account(share.topics, outages, listener, reactor),
            buffer_limit=BufferLimit(),
            clock=reactor,
            ping=settings.redis_ping,
            timeout=settings.redis_timeout,
            retry_delay=_retry_delay(share.longest_delay),
        )
        source = RedisSource(terms)
        source.setServiceParent(sources)
        if control and share.probe.kind is Kind.CHANNEL:
            sources.control(source, _publisher(settings, share, reactor))
    return sources


def _retry_delay(longest: float) -> Callable[[int], float]:
    return backoffPolicy(
        FIRST_DELAY_SECONDS, longest, factor=2.0, jitter=lambda: random.uniform(0, longest / 4)
    )


def _probe(settings: Settings, share: Share, reactor: Any, metrics: Metrics) -> Probe | None:
    assert not isinstance(settings.source, Embedded)
    if not settings.redis_probe:
        return None
    return Probe(
        share.probe,
        share.probe_route,
        settings.source,
        clock=reactor,
        seconds=settings.redis_probe,
        # There may be many of slots, which are not to connect all at once.
        first_after=random.uniform(0, settings.redis_probe) if share.probe.kind is Kind.SHARD else 0,
        timeout=settings.redis_timeout,
        metrics=metrics,
    )


def _publisher(settings: Settings, share: Share, reactor: Any) -> Publisher:
    assert not isinstance(settings.source, Embedded)
    return Publisher(share.probe_route, settings.source, clock=reactor, timeout=settings.redis_timeout)


def shares(settings: Settings, reactor: Any, *, control: bool) -> Iterator[Share]:
    """Return how the topics of the settings are shared out among subscriptions.

    With control there is one for channels and patterns even where the settings name none.
    """
    redis = settings.source
    assert not isinstance(redis, Embedded)
    timeout = settings.redis_timeout
    topics = list(settings.topics)
    prefix = PROBE_PREFIX + secrets.token_hex(8).encode()
    connect = connector(redis, timeout, reactor)
    match redis:
        case Sentinel():
            connect_sentinel = connector(redis.sentinel_access, timeout, reactor)
            route = SentinelRoute(redis, connect_sentinel, connect, reactor, timeout)
            yield Share(topics, route, route, Topic(prefix), SENTINEL_DELAY_SECONDS)
        case Cluster():
            nodes = ClusterNodes(redis.addresses, connect)
            for address in redis.addresses:
                nodes.node(address)  # or it is refused
            ordinary = [topic for topic in topics if topic.kind is not Kind.SHARD]
            if ordinary or control:
                any_node = AnyNodeRoute(nodes)
                yield Share(ordinary, any_node, AnyNodeRoute(nodes, turn=1, beside=any_node), Topic(prefix))
            for slot, shards in _by_slot(topics).items():
                probe = Topic(channel_in(slot, prefix + b":"), Kind.SHARD)
                yield Share(shards, SlotRoute(nodes), SlotRoute(nodes, turn=1), probe)
        case Redis():
            endpoint = unix_endpoint(redis.path, timeout, reactor) if redis.path else connect(redis.address)
            only = Route(Node(str(redis), endpoint))
            yield Share(topics, only, only, Topic(prefix))


def _by_slot(topics: list[Topic]) -> dict[int, list[Topic]]:
    """Return the shard channels, those of one slot together: it moves as a whole."""
    slots: dict[int, list[Topic]] = {}
    for topic in topics:
        if topic.kind is Kind.SHARD:
            slots.setdefault(slot_of(topic.name), []).append(topic)
    return slots
