"""Topics that come and go at a real Redis: followed, left, interrupted, published to."""

from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater

from pushd.message import Batch, Kind, SourceGap, Topic
from pushd.metrics import Metrics
from pushd.redis_urls import parse_source
from pushd.settings import Settings
from pushd.sources.connection import SourceError
from pushd.sources.deployments import RedisSources, redis_sources
from tests.chaos import Entry, Published, check
from tests.harness import TIMEOUT, RedisServer, free_port
from tests.upstream import Told

ROOM = Topic(b"room.1")
ROOMS = Topic(b"room.*", Kind.PATTERN)
MANY = 10_000


class World(Told):
    """What follows topics at a Redis, and all that it has told."""

    def __init__(self, port: int, reactor: Any) -> None:
        super().__init__()
        self.entries: list[Batch | SourceGap] = []
        self._reactor = reactor
        self.sources: RedisSources = redis_sources(
            Settings(topics=(), source=parse_source(f"redis://127.0.0.1:{port}"), redis_probe=0.2),
            self.entries.append,
            self,
            control=True,
            reactor=reactor,
            metrics=Metrics(),
        )
        self.sources.startService()

    def interrupt(self, topic: Topic, gap: SourceGap) -> None:
        super().interrupt(topic, gap)
        self.entries.append(gap)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something is so."""
        deadline = self._reactor.seconds() + TIMEOUT
        while not condition():
            assert self._reactor.seconds() < deadline, self.said[-10:]
            await deferLater(self._reactor, 0.005)

    async def confirmed_times(self, count: int) -> None:
        """Wait until topics have been confirmed so many times in all."""
        await self.until(lambda: sum(what == "confirmed" for what, _ in self.said) == count)


@pytest_twisted.async_yield_fixture
async def worlds(reactor: Any) -> AsyncIterator[Callable[[int], World]]:
    """Make worlds, and stop them at the end."""
    made: list[World] = []

    def make(port: int) -> World:
        made.append(World(port, reactor))
        return made[-1]

    yield make
    for world in made:
        await world.sources.stopService()


@pytest_twisted.ensureDeferred
async def test_topics_come_and_go(worlds: Callable[[int], World]) -> None:
    port = free_port()
    with RedisServer(port=port) as server:
        world = worlds(port)
        world.sources.follow(ROOM)
        world.sources.follow(ROOMS)
        await world.confirmed_times(2)
        assert server.cli("PUBSUB", "CHANNELS", "room*") == "room.1\n"
        assert await world.sources.publish(b"room.1", b"\xff\r\n") == 2
        await world.until(lambda: len(world.entries) == 4)
        # Before the connection was made something may have been missed.
        assert world.entries[2:] == [Batch(ROOM, [b"\xff\r\n"]), Batch(ROOMS, [b"\xff\r\n"], [b"room.1"])]
        world.sources.leave(ROOMS)
        await world.until(lambda: server.cli("PUBSUB", "NUMPAT") == "0\n")
        world.said.clear()
        world.gaps.clear()
    await world.until(lambda: world.said[:1] == [("lost", ROOM)])
    with pytest.raises(SourceError):
        await world.sources.publish(b"room.1", b"nobody")
    with RedisServer(port=port) as server:
        await world.confirmed_times(1)
        assert world.said[-2:] == [("interrupt", ROOM), ("confirmed", ROOM)]
        assert [topic for topic, _ in world.gaps if topic == ROOM] == [ROOM]
        assert await world.sources.publish(b"room.1", b"again") == 1
        await world.until(lambda: world.entries[-1] == Batch(ROOM, [b"again"]))
        world.sources.leave(ROOM)
        await world.until(lambda: server.cli("PUBSUB", "CHANNELS", "room*") == "\n")


@pytest_twisted.ensureDeferred
async def test_what_may_not_be_subscribed_to_or_published(
    redis_server: RedisServer, worlds: Callable[[int], World]
) -> None:
    redis_server.cli("ACL", "SETUSER", "default", "resetchannels", "&room.1")
    world = worlds(redis_server.port)
    world.sources.follow(Topic(b"hidden"))
    await world.until(lambda: any(what.startswith("refused: NOPERM") for what, _ in world.said))
    with pytest.raises(SourceError, match="NOPERM"):
        await world.sources.publish(b"hidden", b"x")
    world.sources.leave(Topic(b"hidden"))
    world.sources.follow(ROOM)
    await world.confirmed_times(1)
    assert await world.sources.publish(b"room.1", b"x") == 1
    await world.until(lambda: world.entries)


@pytest_twisted.ensureDeferred
async def test_many_topics_are_confirmed_again_within_seconds(
    redis_server: RedisServer, worlds: Callable[[int], World], reactor: Any
) -> None:
    world = worlds(redis_server.port)
    for number in range(MANY):
        world.sources.follow(Topic(b"room-%d" % number))
    await world.confirmed_times(MANY)
    world.said.clear()
    lost = reactor.seconds()
    redis_server.cli("CLIENT", "KILL", "TYPE", "pubsub")
    await world.confirmed_times(MANY)
    assert reactor.seconds() - lost < TIMEOUT / 2  # a second or two, on a machine that does nothing else


@pytest.mark.parametrize("seed", range(4))
@pytest_twisted.ensureDeferred
async def test_whatever_comes_and_goes_nothing_is_missing_without_a_gap(
    seed: int, redis_server: RedisServer, worlds: Callable[[int], World], reactor: Any
) -> None:
    world = worlds(redis_server.port)
    chance = Random(seed)
    published: list[Published] = []
    world.sources.follow(ROOM)
    await world.confirmed_times(1)

    async def publish() -> None:
        with redis_server.client() as publisher:
            while True:
                before = reactor.seconds()
                publisher.publish("room.1", b"%d" % len(published))
                published.append(Published(before, reactor.seconds()))
                await deferLater(reactor, 0.0005)

    publishing = Deferred.fromCoroutine(publish())
    publishing.addErrback(lambda failure: failure.trap(CancelledError))
    since: float | None = None
    for _ in range(300):
        if since is None:
            since = world.sources.leave(ROOM)
        else:
            world.sources.follow(ROOM, since)
            since = None
        if chance.random() < 0.02:
            redis_server.cli("CLIENT", "KILL", "TYPE", "pubsub")
        if chance.random() < 0.6:
            await deferLater(reactor, chance.random() * 0.02)
    if since is not None:
        world.sources.follow(ROOM, since)
    await world.until(lambda: len(world.entries) and world.said[-1] == ("confirmed", ROOM))
    count, seen = len(published), len(world.entries)
    await world.until(lambda: any(isinstance(entry, Batch) for entry in world.entries[seen:]))
    publishing.cancel()
    entries: list[Entry] = []
    for entry in world.entries:
        entries += [entry] if isinstance(entry, SourceGap) else map(int, entry.payloads)
    assert count > 100
    check(entries, published)
