"""The route through Sentinels, on a clock and in memory: whom it believes, and when it leaves a master."""

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from pushd.metrics import Reason
from pushd.redis_urls import Address, Sentinel
from pushd.sources.connection import Node, RedisConnection, SourceError
from pushd.sources.sentinel import POLL_SECONDS, SentinelRoute
from tests.upstream import TIMEOUT, Server, bulk, command

HOSTS = ("s1", "s2", "s3")
MASTER = command(b"SENTINEL", b"MASTER", b"main")
ADDRESS = command(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", b"main")


def described(epoch: int) -> bytes:
    """Return what Sentinel answers about a master, as far as it matters."""
    return command(b"name", b"main", b"config-epoch", b"%d" % epoch)


class World:
    """A route, started, and three Sentinels in memory."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.sentinels = {host: Server(self.clock) for host in HOSTS}
        self.masters: list[Address] = []
        settings = Sentinel(
            addresses=tuple(Address(host, 26379) for host in HOSTS),
            master="main",
            sentinel_password=b"secret",
        )
        self.route = SentinelRoute(
            settings, lambda address: self.sentinels[address.host], self.connect, self.clock, TIMEOUT
        )
        self.route.start()

    def connect(self, address: Address) -> Server:
        self.masters.append(address)
        return Server(self.clock)

    def answer(self, host: str, epoch: int, master: str, port: int = 6379) -> None:
        """Have one Sentinel answer what it has just been asked."""
        server = self.sentinels[host]
        asked = server.asked()
        if asked == command(b"AUTH", b"secret"):
            server.answer(b"+OK\r\n")
            asked = server.asked()
        assert asked == MASTER
        server.answer(described(epoch))
        assert server.asked() == ADDRESS
        server.answer(b"*2\r\n" + bulk(master.encode()) + bulk(b"%d" % port))

    def find(self) -> "Deferred[Node]":
        return Deferred.fromCoroutine(self.route.find())

    def found(self) -> Address | None:
        nodes: list[Node] = []
        self.find().addCallback(nodes.append)
        return nodes[0].address

    def stop(self) -> None:
        self.route.stop()
        self.clock.advance(0)
        assert self.clock.getDelayedCalls() == []


@pytest.fixture
def world() -> World:
    return World()


def test_the_first_answer_is_enough(world: World) -> None:
    nodes: list[Node] = []
    world.find().addCallback(nodes.append)
    assert nodes == []
    world.answer("s2", 0, "m1")
    assert [(node.name, node.address) for node in nodes] == [('m1:6379 (master "main")', Address("m1", 6379))]
    world.stop()


def test_sentinels_that_disagree_are_believed_by_the_epoch_of_what_they_know(world: World) -> None:
    world.answer("s1", 3, "old")
    world.answer("s2", 3, "old")
    assert world.found() == Address("old", 6379)
    world.answer("s3", 4, "new", 6380)
    assert world.found() == Address("new", 6380)
    # Those that have not heard of it yet do not lead back.
    world.clock.advance(POLL_SECONDS)
    world.answer("s1", 3, "old")
    assert world.found() == Address("new", 6380)
    world.stop()


def test_the_newest_configuration_is_kept_while_those_who_know_it_are_silent(world: World) -> None:
    world.answer("s1", 7, "new")
    world.sentinels["s1"].connection.lose(ConnectionDone())
    world.answer("s2", 5, "old")
    world.answer("s3", 5, "old")
    world.clock.advance(POLL_SECONDS)
    world.answer("s2", 5, "old")
    assert world.found() == Address("new", 6379)
    # Once all are of one mind, as after Sentinels were set up anew, they are believed.
    world.clock.advance(POLL_SECONDS)
    world.answer("s1", 5, "old")
    assert world.found() == Address("old", 6379)
    world.stop()


def test_at_one_epoch_the_majority_is_believed(world: World) -> None:
    world.answer("s1", 1, "a")
    world.answer("s2", 1, "b")
    world.answer("s3", 1, "b")
    assert world.found() == Address("b", 6379)
    world.stop()


def test_a_master_is_left_when_another_is_named(world: World) -> None:
    left: list[object] = []
    world.answer("s1", 1, "a")
    nodes: list[Node] = []
    world.find().addCallback(nodes.append)
    world.route.left(nodes[0]).addCallback(left.append)
    given_up = world.route.left(nodes[0])
    given_up.addErrback(lambda _: None)
    given_up.cancel()
    world.clock.advance(POLL_SECONDS)
    world.answer("s1", 1, "a")
    assert left == []
    world.clock.advance(POLL_SECONDS)
    world.answer("s1", 2, "b")
    assert left == [None]
    world.stop()


def test_to_be_sent_away_by_the_master_itself_is_no_reason_to_hurry(world: World) -> None:
    world.answer("s1", 1, "a")
    nodes: list[Node] = []
    world.find().addCallback(nodes.append)
    moved = SourceError(Reason.MOVED, "MOVED 1 b:1")
    assert not world.route.redirect(nodes[0], moved)
    world.clock.advance(POLL_SECONDS)
    world.answer("s1", 2, "b")
    assert world.route.redirect(nodes[0], moved)
    world.stop()


def test_without_any_sentinel_that_answers_the_last_master_is_kept(world: World) -> None:
    world.answer("s1", 1, "a")
    for server in world.sentinels.values():
        server.refuses = True
        server.connection.abortConnection()
    for _ in range(5):
        world.clock.advance(POLL_SECONDS)
    assert world.found() == Address("a", 6379)
    for server in world.sentinels.values():
        server.refuses = False
    world.clock.advance(POLL_SECONDS)
    world.answer("s3", 2, "b")
    assert world.found() == Address("b", 6379)
    world.stop()


def test_a_frozen_sentinel_delays_nobody_and_is_asked_again(world: World) -> None:
    for number in range(int(TIMEOUT / POLL_SECONDS) + 2):
        world.answer("s1", number, f"m{number}")
        assert world.found() == Address(f"m{number}", 6379)
        world.clock.advance(POLL_SECONDS)
    assert world.sentinels["s2"].attempts == 2
    assert world.sentinels["s1"].attempts == 1
    world.stop()


@pytest.mark.parametrize(
    "answers",
    [
        [b"-ERR No such master with that name\r\n"],
        [b"*-1\r\n", command(b"m", b"1")],
        [b"+OK\r\n", command(b"m", b"1")],
        [command(b"name"), command(b"m", b"1")],
        [command(b"config-epoch", b"x"), command(b"m", b"1")],
        [command(b"name", b"main"), command(b"m", b"1")],
        [described(1), b"*-1\r\n"],
        [described(1), b":1\r\n"],
        [described(1), command(b"m")],
        [described(1), command(b"m", b"port")],
        [described(1), b"*2\r\n:1\r\n:2\r\n"],
        [b"nonsense\r\n"],
    ],
)
def test_once_all_have_failed_it_says_how(world: World, answers: list[bytes]) -> None:
    failures: list[Failure] = []
    world.find().addErrback(failures.append)
    world.sentinels["s2"].connection.abortConnection()
    world.sentinels["s3"].answer(b"-WRONGPASS no\r\n")
    world.clock.advance(0)
    assert failures == []
    for answer in (b"+OK\r\n", *answers):
        world.sentinels["s1"].answer(answer)
    world.clock.advance(0)
    assert len(failures) == 1
    text = str(failures[0].value)
    assert text.startswith("no Sentinel names a master: s1:26379: ")
    assert "; s2:26379: Connection was closed cleanly; s3:26379: WRONGPASS no" in text
    assert "\n" not in text
    assert "secret" not in text
    # Soon it is asked again.
    world.clock.advance(POLL_SECONDS)
    world.answer("s1", 1, "m")
    assert world.found() == Address("m", 6379)
    world.stop()


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        (b"*3\r\n$6\r\nmaster\r\n:0\r\n*0\r\n", ""),
        (b"-NOPERM no\r\n", ""),
        (b"*5\r\n$5\r\nslave\r\n$1\r\nm\r\n:6379\r\n$9\r\nconnected\r\n:0\r\n", "it is a replica"),
        (b"$-1\r\n", "it is a replica"),
        (b"-LOADING wait\r\n", "LOADING wait"),
    ],
)
def test_a_server_that_is_no_master_is_refused(world: World, answer: bytes, refused: str) -> None:
    connection = RedisConnection(world.clock, TIMEOUT)
    server = Server(world.clock)
    node = Node("m", server)
    opened = Deferred.fromCoroutine(connection.open(node, Sentinel(addresses=(), master="main")))
    opened.addCallback(lambda _: Deferred.fromCoroutine(world.route.check(connection, node)))
    outcome: list[str] = []
    opened.addCallbacks(lambda _: outcome.append(""), lambda failure: outcome.append(str(failure.value)))
    assert server.asked() == command(b"ROLE")
    server.answer(answer)
    assert outcome[0].startswith(refused)
    assert bool(outcome[0]) == bool(refused)
    world.stop()


def test_looking_for_a_master_can_be_given_up(world: World) -> None:
    failures: list[object] = []
    finding = world.find()
    finding.addErrback(failures.append)
    finding.cancel()
    assert len(failures) == 1
    world.answer("s1", 1, "m")
    world.stop()


def test_a_route_that_was_never_started_can_be_stopped() -> None:
    world = World()
    world.stop()
    settings = Sentinel(addresses=(Address("s1", 1),), master="m")
    SentinelRoute(settings, world.connect, world.connect, world.clock, TIMEOUT).stop()
