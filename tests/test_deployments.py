"""From settings to sources: how many subscriptions, which topics each has, and how its probe gets there."""

from typing import Any

import pytest
from redis.crc import key_slot
from twisted.python.failure import Failure

from pushd.errors import SettingsError
from pushd.message import PROBE_PREFIX, Kind, Topic
from pushd.metrics import Metrics
from pushd.redis_urls import Address, Sentinel, parse_source
from pushd.settings import Settings
from pushd.sources.cluster import AnyNodeRoute, SlotRoute
from pushd.sources.connection import SourceError
from pushd.sources.deployments import LONGEST_DELAY_SECONDS, RedisSources, redis_sources, shares
from pushd.sources.sentinel import SentinelRoute
from tests.upstream import Told

UPDATES = Topic(b"updates")
NEWS = Topic(b"news.*", Kind.PATTERN)
PART, TWIN, OTHER = (Topic(name, Kind.SHARD) for name in (b"part", b"{part}.two", b"other"))


def settings(url: str, *topics: Topic) -> Settings:
    return Settings(topics=topics or (UPDATES, NEWS), source=parse_source(url))


def sources(chosen: Settings, reactor: Any, *, control: bool = False) -> RedisSources:
    return redis_sources(chosen, lambda _: None, Told(), control=control, reactor=reactor, metrics=Metrics())


@pytest.mark.parametrize("url", ["redis://h", "rediss://h", "unix:///run/redis.sock"])
def test_one_redis_is_one_subscription(url: str, reactor: Any) -> None:
    (share,) = shares(settings(url), reactor, control=False)
    assert share.topics == [UPDATES, NEWS]
    assert share.route is share.probe_route
    assert share.probe.name.startswith(PROBE_PREFIX)
    assert len(list(sources(settings(url), reactor))) == 1


def test_a_master_behind_sentinels_is_one_subscription_that_waits_less(reactor: Any) -> None:
    (share,) = shares(settings("redis+sentinel://h/main"), reactor, control=False)
    assert isinstance(share.route, SentinelRoute)
    assert share.longest_delay < LONGEST_DELAY_SECONDS


def test_a_cluster_is_one_subscription_for_ordinary_topics_and_one_for_each_slot(reactor: Any) -> None:
    chosen = settings("redis+cluster://a,b", PART, UPDATES, OTHER, TWIN, NEWS)
    ordinary, first, second = shares(chosen, reactor, control=False)
    assert ordinary.topics == [UPDATES, NEWS]
    assert type(ordinary.route) is type(ordinary.probe_route) is AnyNodeRoute
    assert ordinary.route is not ordinary.probe_route
    assert (first.topics, second.topics) == ([PART, TWIN], [OTHER])
    for share in (first, second):
        assert type(share.route) is type(share.probe_route) is SlotRoute
        assert share.probe.kind is Kind.SHARD
        assert key_slot(share.probe.name) == key_slot(share.topics[0].name)
    assert len(list(sources(chosen, reactor))) == 3


@pytest.mark.parametrize("url", ["redis://h", "redis+sentinel://h/main", "redis+cluster://a,b"])
@pytest.mark.parametrize("topics", [(), (UPDATES,)])
def test_with_control_there_is_a_source_for_channels_that_come_and_go(
    topics: tuple[Topic, ...], url: str, reactor: Any
) -> None:
    chosen = Settings(topics=topics, source=parse_source(url))
    (share,) = shares(chosen, reactor, control=True)
    assert share.topics == list(topics)
    assert share.probe.kind is Kind.CHANNEL
    told = Told()
    group = redis_sources(chosen, lambda _: None, told, control=True, reactor=reactor, metrics=Metrics())
    assert group.descriptors == 3
    began = reactor.seconds()
    group.follow(NEWS)
    assert told.said == [("lost", NEWS)]
    assert began <= group.leave(NEWS) <= reactor.seconds()
    group.follow(NEWS, since=1)
    assert group.leave(NEWS) == 1
    group.stopService()
    refused: list[Failure] = []
    group.publish(b"updates", b"x").addErrback(refused.append)
    assert refused[0].check(SourceError)


def test_with_control_a_cluster_of_shard_channels_has_a_source_for_others(reactor: Any) -> None:
    chosen = settings("redis+cluster://a,b", PART)
    ordinary, shard = shares(chosen, reactor, control=True)
    assert ordinary.topics == []
    assert (type(ordinary.route), type(ordinary.probe_route)) == (AnyNodeRoute, AnyNodeRoute)
    assert shard.topics == [PART]
    assert [sources(chosen, reactor, control=control).descriptors for control in (False, True)] == [2, 5]


def test_no_two_pushd_probe_in_one_channel(reactor: Any) -> None:
    (one,) = shares(settings("redis://h"), reactor, control=False)
    (other,) = shares(settings("redis://h"), reactor, control=False)
    assert one.probe != other.probe


def test_authorities_that_are_none_are_refused_at_once(reactor: Any) -> None:
    redis = Sentinel(addresses=(Address("h", 26379),), master="main", tls=True, ca=b"none")
    with pytest.raises(SettingsError, match="--redis-ca"):
        sources(Settings(topics=(UPDATES,), source=redis), reactor)


@pytest.mark.parametrize("url", ["rediss://xn--a", "rediss+sentinel://xn--a/m", "rediss+cluster://h,xn--a"])
def test_a_host_that_no_certificate_can_name_is_refused_at_once(url: str, reactor: Any) -> None:
    with pytest.raises(SettingsError, match="--redis: no certificate can be for 'xn--a'; allowed: "):
        sources(settings(url), reactor)


def test_all_sources_are_held_back_together(reactor: Any) -> None:
    group = sources(settings("redis+cluster://a", PART, OTHER), reactor)
    group.pauseProducing()
    group.resumeProducing()
    assert not group.running
