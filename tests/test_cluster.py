"""The routes into a cluster, in memory: which node, when another, and where a node sends on to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.crc import key_slot
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from pushd.message import Kind, Topic
from pushd.metrics import Reason
from pushd.redis_urls import Access, Address
from pushd.sources.cluster import (
    MAX_REDIRECTIONS,
    AnyNodeRoute,
    ClusterNodes,
    SlotRoute,
    channel_in,
    slot_of,
)
from pushd.sources.connection import RedisConnection, SourceError
from pushd.sources.routes import Route
from tests.upstream import TIMEOUT, Server, bulk, command

A, B, C = (Address(host, 7000) for host in "abc")
CLOSED = SourceError(Reason.CLOSED, "closed")


class World:
    """Nodes in memory, of which two are given at first."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.nodes = ClusterNodes([A, B], lambda _: Server(self.clock))

    def learn(self, route: Route, answer: bytes) -> str:
        """Have the node that a route leads to answer CLUSTER SLOTS; return what is said against it."""
        node = now(route.find())
        connection = RedisConnection(self.clock, TIMEOUT)
        now(connection.open(node, Access()))
        outcome: list[str] = []
        Deferred.fromCoroutine(route.check(connection, node)).addCallbacks(
            lambda _: outcome.append(""), lambda failure: outcome.append(str(failure.value))
        )
        assert node.endpoint.asked() == command(b"CLUSTER", b"SLOTS")
        node.endpoint.answer(answer)
        return outcome[0]


def now(coroutine: Any) -> Any:
    """Return what a coroutine returns at once."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addCallback(results.append)
    return results[0]


def slots(*ranges: list[tuple[bytes, int]]) -> bytes:
    """Return an answer to CLUSTER SLOTS: for each range its nodes."""
    answer = b"*%d\r\n" % len(ranges)
    for nodes in ranges:
        answer += b"*%d\r\n:0\r\n:9\r\n" % (2 + len(nodes))
        answer += b"".join(
            b"*4\r\n" + bulk(host) + b":%d\r\n" % port + bulk(b"id") + b"*0\r\n" for host, port in nodes
        )
    return answer


@pytest.fixture
def world() -> World:
    return World()


@given(st.binary(max_size=20) | st.from_regex(rb"[a{}]{0,6}", fullmatch=True))
def test_slots_are_those_of_the_specification(channel: bytes) -> None:
    assert slot_of(channel) == key_slot(channel)


@given(st.integers(0, 16383))
def test_there_is_a_channel_in_every_slot(slot: int) -> None:
    assert key_slot(channel_in(slot, b"pushd:probe:x:")) == slot


def test_ordinary_topics_go_from_node_to_node(world: World) -> None:
    route = AnyNodeRoute(world.nodes)
    addresses = []
    for _ in range(3):
        node = now(route.find())
        assert now(route.find()).address == node.address
        addresses.append(node.address)
        assert not route.redirect(node, CLOSED)
        route.advance()
    assert addresses == [A, B, A]
    assert now(AnyNodeRoute(world.nodes, turn=1).find()).address == B


def test_it_learns_the_other_nodes(world: World) -> None:
    route = AnyNodeRoute(world.nodes)
    ranges = [(b"b", 7000), (b"", 7005)], [(b"?", 1), (b"c", 7000), (b"no_name", 1)]
    assert world.learn(route, slots(*ranges)) == ""
    found = []
    for _ in range(5):
        node = now(route.find())
        found.append(node.address)
        route.advance()
    assert found == [A, B, Address("a", 7005), Address("a", 1), C]


def test_a_node_without_a_name_is_at_the_host_that_was_asked(world: World) -> None:
    route = AnyNodeRoute(world.nodes)
    # As Redis 7 answers with cluster-preferred-endpoint-type unknown-endpoint.
    assert world.learn(route, b"*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$-1\r\n:7009\r\n") == ""
    route.advance()
    route.advance()
    assert now(route.find()).address == Address("a", 7009)


def test_a_probe_is_not_published_at_the_node_that_is_subscribed_to(world: World) -> None:
    route = AnyNodeRoute(world.nodes)
    beside = AnyNodeRoute(world.nodes, turn=1, beside=route)
    assert now(route.find()).address == A
    for _ in range(3):
        assert now(beside.find()).address == B
        beside.advance()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"-ERR This instance has cluster support disabled\r\n", "ERR This instance has cluster"),
        (b"-NOPERM no\r\n", ""),
        (b"*0\r\n", ""),
        (b"$-1\r\n", "that is not what CLUSTER SLOTS answers"),
        (b":1\r\n", "that is not what CLUSTER SLOTS answers"),
        (b"*1\r\n*1\r\n:0\r\n", "that is not what CLUSTER SLOTS answers"),
        (b"*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$1\r\nh\r\n$1\r\n1\r\n", "that is not what CLUSTER SLOTS"),
        (slots([(b"\xff", 1)]), ""),
    ],
)
def test_a_node_that_is_in_no_cluster_is_refused(world: World, answer: bytes, why: str) -> None:
    assert world.learn(AnyNodeRoute(world.nodes), answer).startswith(why)


def moved(text: str) -> SourceError:
    return SourceError(Reason.MOVED, text)


def test_a_slot_is_looked_for_where_a_node_sends(world: World) -> None:
    route = SlotRoute(world.nodes)
    node = now(route.find())
    assert node.address == A
    assert route.redirect(node, moved("MOVED 3999 c:7000"))
    node = now(route.find())
    assert node.address == C
    # A node without a name of its own is at the host that was asked.
    assert route.redirect(node, moved("MOVED 3999 :7009"))
    assert now(route.find()).address == Address("c", 7009)
    # That node is lost: another is asked.
    assert not route.redirect(node, CLOSED)
    route.advance()
    assert now(route.find()).address == B


def test_a_slot_that_has_moved_is_asked_for_at_the_next_node_at_once(world: World) -> None:
    route = SlotRoute(world.nodes)
    route.redirect(now(route.find()), moved("MOVED 1 c:7000"))
    assert route.redirect(now(route.find()), moved("its slot has moved to another node"))
    assert now(route.find()).address == B


@pytest.mark.parametrize("where", ["", " 1", " 1 nowhere", " 1 h:port", " 1 h:1 2", " 1 h:" + "9" * 5000])
def test_to_be_sent_nowhere_leads_to_the_next_node(world: World, where: str) -> None:
    route = SlotRoute(world.nodes)
    route.redirect(now(route.find()), moved(f"MOVED{where}"))
    assert now(route.find()).address == B


def test_to_be_sent_in_circles_is_not_followed_without_end(world: World) -> None:
    route = SlotRoute(world.nodes)
    sent = moved("MOVED 1 a:7000")
    redirected = [route.redirect(now(route.find()), sent) for _ in range(MAX_REDIRECTIONS + 1)]
    assert redirected == [True] * MAX_REDIRECTIONS + [False]
    route.advance()
    assert route.redirect(now(route.find()), sent)


def test_topics_show_their_kind() -> None:
    assert str(Topic(b"part", Kind.SHARD)) == 'shard channel "part"'
