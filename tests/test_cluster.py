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
from pushd.sources.connection import Node, RedisConnection, SourceError
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
        Deferred.fromCoroutine(route.check(connection)).addCallbacks(
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
        assert not route.ended(node, CLOSED)
    assert addresses == [A, B, A]
    assert now(AnyNodeRoute(world.nodes, turn=1).find()).address == B


def test_it_learns_the_other_nodes(world: World) -> None:
    route = AnyNodeRoute(world.nodes)
    assert world.learn(route, slots([(b"b", 7000), (b"", 7005)], [(b"c", 7000), (b"?", 1)])) == ""
    found = []
    for _ in range(5):
        node = now(route.find())
        found.append(node.address)
        route.ended(node, CLOSED)
    assert found == [A, B, Address("a", 7005), C, A]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"-ERR This instance has cluster support disabled\r\n", "ERR This instance has cluster"),
        (b"-NOPERM no\r\n", ""),
        (b"*0\r\n", ""),
        (b"$-1\r\n", "that is not what CLUSTER SLOTS answers"),
        (b":1\r\n", "that is not what CLUSTER SLOTS answers"),
        (b"*1\r\n*1\r\n:0\r\n", "that is not what CLUSTER SLOTS answers"),
        (b"*1\r\n*3\r\n:0\r\n:1\r\n*2\r\n$-1\r\n:1\r\n", "that is not what CLUSTER SLOTS answers"),
        (slots([(b"\xff", 1)]), "that is not what CLUSTER SLOTS answers"),
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
    assert route.ended(node, moved("MOVED 3999 c:7000"))
    node = now(route.find())
    assert node.address == C
    # A node without a name of its own is at the host that was asked.
    assert route.ended(node, moved("MOVED 3999 :7009"))
    assert now(route.find()).address == Address("c", 7009)
    # That node is lost: another is asked.
    assert not route.ended(node, CLOSED)
    assert now(route.find()).address == B


def test_a_slot_that_has_moved_is_asked_for_at_the_next_node_at_once(world: World) -> None:
    route = SlotRoute(world.nodes)
    route.ended(now(route.find()), moved("MOVED 1 c:7000"))
    assert route.ended(now(route.find()), moved("its slot has moved to another node"))
    assert now(route.find()).address == B


@pytest.mark.parametrize("text", ["MOVED", "MOVED 1", "MOVED 1 nowhere", "MOVED 1 h:port", "MOVED 1 h:1 2"])
def test_to_be_sent_nowhere_leads_to_the_next_node(world: World, text: str) -> None:
    route = SlotRoute(world.nodes)
    route.ended(now(route.find()), moved(text))
    assert now(route.find()).address == B


def test_to_be_sent_in_circles_is_not_followed_without_end(world: World) -> None:
    route = SlotRoute(world.nodes)
    at_once = 0
    while route.ended(now(route.find()), moved("MOVED 1 a:7000")):
        at_once += 1
    assert at_once == MAX_REDIRECTIONS - 1


def test_a_redis_by_a_unix_socket_sends_nowhere(world: World) -> None:
    route = SlotRoute(world.nodes)
    assert route.ended(Node("local", Server(world.clock)), moved("MOVED 1 :7000"))
    assert now(route.find()).address == B


def test_topics_show_their_kind() -> None:
    assert str(Topic(b"part", Kind.SHARD)) == 'shard channel "part"'
