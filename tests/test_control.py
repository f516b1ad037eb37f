"""The control protocol over a transport: lines, limits, closing, and connections that die at any time."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from pushd.channels import LEAVE_SECONDS, Channels
from pushd.clients.admission import Admission
from pushd.clients.connection import CLOSE_SECONDS
from pushd.clients.control import (
    RETURN_SECONDS,
    STRANGER_LINE_BYTES,
    ControlFactory,
    ControlProtocol,
    terms_of_control,
)
from pushd.errors import SettingsError
from pushd.hub import Hub
from pushd.message import Batch, Kind, Topic
from pushd.metrics import Metrics
from pushd.outlet import MOST_REPLIES_BYTES, REPLIES_BYTES
from pushd.settings import Control, Settings
from tests.clients import Kernel
from tests.test_channels import RecordingUpstream
from tests.test_session import (
    GRANTS,
    HEARTBEAT,
    LINGER,
    SCORES,
    TERMS,
    Event,
    RecordingPublisher,
    Verifier,
    permissions,
)

HOME = IPv4Address("TCP", "192.0.2.1", 4242)
FOR_EVER = {name: replace(grant, expires=1e12) for name, grant in GRANTS.items()}
"""Sessions of connections go by the time of day."""


class ClosingKernel(Kernel):
    """A transport that tells its protocol that it is closed: at once, as in memory, or a turn later."""

    def __init__(self, room: int, protocol: ControlProtocol, clock: Clock | None) -> None:
        super().__init__(room)
        self.protocol = protocol
        self._clock = clock
        self._told = False

    def loseConnection(self) -> None:
        super().loseConnection()
        self._end()

    def abortConnection(self) -> None:
        super().abortConnection()
        self.closed = True
        self._end()

    def _end(self) -> None:
        if self._told:
            return
        self._told = True
        if self._clock is None:
            self._tell()
        else:
            self._clock.callLater(0, self._tell)

    def _tell(self) -> None:
        self.connectionLost(Failure(ConnectionDone()))
        self.protocol.connectionLost(Failure(ConnectionDone()))


class World:
    """A factory, what is behind it, and clients in memory."""

    def __init__(
        self, *, later: bool = False, history: int = 1024**2, max_clients: int = 1000, **terms: Any
    ) -> None:
        self.clock = Clock()
        self.metrics = Metrics()
        self.hub = Hub(self.clock, history, self.metrics, "k3f9ab")
        self.upstream = RecordingUpstream()
        self.channels = Channels(
            self.hub, self.clock, self.clock.seconds, linger=LINGER, max_channels=1000, max_patterns=1000
        )
        self.channels.upstream = self.upstream
        self.upstream.at_once = self.channels.confirmed
        self.publisher = RecordingPublisher()
        self.admission = Admission(max_clients, None, self.metrics)
        self.factory = ControlFactory(
            replace(TERMS, command_rate=1e6, **terms),
            self.hub,
            self.channels,
            self.publisher,
            self.admission,
            self.clock,
            self.clock.seconds,
        )
        self._later = later

    def connect(self, room: int = 10**9, error: BaseException | None = None) -> "Client":
        protocol = self.factory.buildProtocol(HOME)
        assert isinstance(protocol, ControlProtocol)
        kernel = ClosingKernel(room, protocol, self.clock if self._later else None)
        kernel.error = error
        protocol.makeConnection(kernel)
        return Client(protocol, kernel)

    def publish(self, *payloads: bytes) -> None:
        self.hub.publish(Batch(SCORES, list(payloads)))
        self.clock.advance(0)

    def is_clean(self) -> bool:
        """Tell whether no client has left anything, a while after the last has gone."""
        self.clock.advance(0)
        gone = not self.factory.clients and not self.admission.clients
        self.clock.advance(LEAVE_SECONDS)
        followed = self.upstream.followed
        self.clock.advance(LINGER)
        return gone and not followed and not self.channels._channels and not self.clock.getDelayedCalls()


class Client:
    """One client in memory."""

    def __init__(self, protocol: ControlProtocol, kernel: ClosingKernel) -> None:
        self.protocol = protocol
        self.kernel = kernel

    def send(self, data: bytes) -> None:
        self.protocol.dataReceived(data)

    def heard(self) -> list[Event]:
        """Return the events that have come since the last look."""
        lines = self.kernel.received.split(b"\n")
        self.kernel.sends.clear()
        assert lines.pop() == b""
        return [json.loads(line) for line in lines]

    def types(self) -> list[str]:
        return [str(event.get("code", event["type"])) for event in self.heard()]


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def test_it_can_be_half_closed() -> None:
    assert verifyObject(IHalfCloseableProtocol, World().connect().protocol)


SCRIPT = [
    b"PING one",
    b"",
    b"SUBSCRIBE scores",
    b"subscribe scores",
    b"\xff",
    b"PSUBSCRIBE news.* LAST 3 SLOW skip",
    b"SUBSCRIBE secrets",
    b"STATUS",
    b"UNSUBSCRIBE scores",
    b'PING "two\\n"',
    b"nonsense",
    b"HELP",
    b"PUBLISH chat hello",
    b"QUIT",
    b"PING three",
]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_pipelined_commands_are_answered_as_they_are_byte_by_byte(end: bytes) -> None:
    said = b"".join(line + end for line in SCRIPT)
    whole = World().connect()
    whole.send(said)
    single = World().connect()
    for byte in said:
        single.send(bytes((byte,)))
    assert whole.kernel.received == single.kernel.received
    assert " ".join(whole.types()) == (
        "welcome pong subscribed already-subscribed bad-encoding subscribed forbidden"
        " status unsubscribed pong unknown-command help bye"
    )
    assert whole.kernel.closed
    assert single.kernel.closed


@given(lines=st.lists(st.sampled_from(SCRIPT[:13])), cuts=st.lists(st.integers(1, 30)))
def test_how_reads_cut_what_is_said_does_not_matter(lines: list[bytes], cuts: list[int]) -> None:
    said = b"".join(line + b"\n" for line in lines)
    whole, cut = World().connect(), World().connect()
    whole.send(said)
    for size in cuts:
        cut.send(said[:size])
        said = said[size:]
    cut.send(said)
    assert cut.kernel.received == whole.kernel.received


@pytest.mark.parametrize("later", [False, True])
def test_commands_behind_quit_are_not_answered(later: bool) -> None:
    world = World(later=later)
    client = world.connect()
    client.send(b"QUIT\r\nPUBLISH chat hello\r\nSUBSCRIBE scores\r\nPING\r\n" + b"x" * 100_000)
    client.send(b"PING\r\n")
    assert client.types() == ["welcome", "bye"]
    assert world.publisher.waiting == world.upstream.calls == []
    assert world.is_clean()


class TestLongLines:
    @pytest.mark.parametrize("step", [1, 2048, 100_000])
    @pytest.mark.parametrize("end", [b"\n", b"\r\n"])
    def test_as_long_as_the_limit_is_taken(self, step: int, end: bytes) -> None:
        client = World(max_line=3000).connect()
        for data in pieces(b"PING " + b"x" * 2995 + end + b"PING" + end, step):
            client.send(data)
        assert client.types() == ["welcome", "pong", "pong"]

    @pytest.mark.parametrize("step", [1, 2048, 100_000])
    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"x"])
    def test_above_the_limit_ends_the_connection(self, step: int, end: bytes) -> None:
        world = World(max_line=3000)
        client = world.connect()
        for data in pieces(b"PING\n" + b"x" * 3001 + end + b"PING\n", step):
            client.send(data)
            assert len(client.protocol._buffer) <= 3002
        assert client.types() == ["welcome", "pong", "line-too-long"]
        assert client.kernel.closed
        assert world.is_clean()

    def test_says_what_is_allowed(self) -> None:
        client = World(max_line=10).connect()
        client.send(b"PING aaaaaaaaaaaaa\n")
        assert client.heard()[1] == {
            "type": "error",
            "code": "line-too-long",
            "message": "allowed: 10 bytes",
            "command": None,
        }

    @pytest.mark.parametrize("step", [1, 2048, 100_000])
    @pytest.mark.parametrize(("excess", "code"), [(0, "token-invalid"), (1, "line-too-long")])
    def test_of_a_stranger_are_shorter(self, step: int, excess: int, code: str) -> None:
        world = World(tokens=Verifier(FOR_EVER), max_line=100_000)
        client = world.connect()
        token = b"x" * (STRANGER_LINE_BYTES - len(b"AUTH ") + excess)
        for data in pieces(b"AUTH " + token + b"\n", step):
            client.send(data)
        assert client.types() == ["welcome", code]
        assert client.kernel.closed == bool(excess)

    def test_of_a_stranger_are_not_longer_than_those_of_others(self) -> None:
        client = World(tokens=Verifier(FOR_EVER), max_line=100).connect()
        client.send(b"AUTH " + b"x" * 96 + b"\n")
        assert client.heard()[-1]["message"] == "allowed: 100 bytes"

    @pytest.mark.parametrize("step", [1, 2048, 100_000])
    def test_are_taken_from_auth_on_even_within_one_read(self, step: int) -> None:
        client = World(tokens=Verifier(FOR_EVER), max_line=20_000).connect()
        line = b"PING " + b"x" * 19_995 + b"\r\n"
        for data in pieces(b"AUTH alice\r\n" + line + line.replace(b"xx", b"xxx", 1), step):
            client.send(data)
        assert client.types() == ["welcome", "authenticated", "pong", "line-too-long"]
        assert client.kernel.closed


class TestUnread:
    """A client that sends and never reads."""

    LINE = b"PING " + b"x" * 1000 + b"\n"
    PONG = len(b'{"type":"pong","data":""}\n') + 1000

    def test_its_reading_is_paused_at_64_kib_of_replies_even_within_one_read(self) -> None:
        world = World()
        client = world.connect(room=0)
        client.send(self.LINE * 1000)
        assert client.protocol.paused
        waiting = len(client.protocol.outlet._replies)
        assert REPLIES_BYTES < waiting <= REPLIES_BYTES + self.PONG
        client.kernel.make_room(waiting // 2)
        assert client.protocol.paused
        while client.protocol.paused:
            client.kernel.make_room(10**6)
            world.clock.advance(0)
        assert client.types() == ["welcome"] + ["pong"] * 1000

    def test_it_is_closed_at_256_kib_by_heartbeats(self, logged: list[str]) -> None:
        world = World(bounds=permissions("*"), heartbeat=1.0)
        client = world.connect()
        for number in range(50):
            client.send(b"SUBSCRIBE %d.%s\n" % (number, b"x" * 1000))
        client.kernel.room = 0
        most = 0
        while not client.kernel.closed:
            world.clock.advance(1)
            most = max(most, len(client.protocol.outlet._replies))
        assert MOST_REPLIES_BYTES < most <= MOST_REPLIES_BYTES + 52_000
        assert client.kernel.aborted
        assert logged == ["Disconnected 192.0.2.1:4242: it does not read what it is told"]
        assert world.is_clean()

    def test_it_is_cut_off_when_it_should_say_goodbye(self) -> None:
        world = World()
        client = world.connect(room=10)
        client.send(b"QUIT\n")
        assert not client.kernel.closed
        world.clock.advance(CLOSE_SECONDS)
        assert client.kernel.aborted
        assert world.is_clean()

    def test_it_gets_what_it_was_told_if_it_reads_at_last(self) -> None:
        world = World()
        client = world.connect(room=10)
        client.send(b"PING\nQUIT\n")
        client.kernel.make_room(1000)
        assert client.types() == ["welcome", "pong", "bye"]
        assert client.kernel.closed
        assert world.is_clean()


def test_a_slow_consumer_is_cut_off_and_forgotten() -> None:
    world = World(history=10_000)
    client = world.connect()
    client.send(b"SUBSCRIBE scores\n")
    client.kernel.room = 0
    for _ in range(20):
        world.publish(b"." * 1000)
    assert client.kernel.aborted
    assert world.metrics.slow_disconnects == 1
    assert world.is_clean()


class TestHalfClosed:
    def test_what_was_said_is_answered_before_the_end(self) -> None:
        world = World()
        client = world.connect()
        client.send(b"PING\nSUBSCRIBE scores\nPING never")
        client.protocol.readConnectionLost()
        assert client.types() == ["welcome", "pong", "subscribed"]
        assert client.kernel.closed
        assert world.is_clean()

    def test_redis_is_waited_for(self) -> None:
        world = World()
        world.upstream.at_once = lambda _: None
        client = world.connect()
        client.send(b"PUBLISH chat hello\nSUBSCRIBE scores\n")
        client.protocol.readConnectionLost()
        client.protocol.writeConnectionLost()
        world.publisher.answer(2)
        assert not client.kernel.closed
        world.channels.confirmed(SCORES)
        assert client.types() == ["welcome", "published", "subscribed"]
        assert client.kernel.closed
        assert world.is_clean()

    def test_a_goodbye_does_not_wait_for_redis(self) -> None:
        world = World()
        client = world.connect()
        client.send(b"PUBLISH chat hello\n")
        client.protocol.readConnectionLost()
        client.protocol.stop()
        world.publisher.answer(2)
        assert client.types() == ["welcome", "bye"]
        assert world.is_clean()

    def test_one_that_does_not_read_is_cut_off(self) -> None:
        world = World()
        client = world.connect(room=3)
        client.protocol.readConnectionLost()
        assert not client.kernel.closed
        world.clock.advance(CLOSE_SECONDS)
        assert client.kernel.aborted
        assert world.is_clean()


class TestGoodbyes:
    @pytest.mark.parametrize("tokens", [None, Verifier(FOR_EVER)])
    def test_an_idle_client_is_told_so(self, tokens: Verifier | None) -> None:
        world = World(idle_timeout=60.0, tokens=tokens, auth_timeout=1000.0, heartbeat=1000.0)
        client, busy = world.connect(), world.connect()
        world.clock.advance(59)
        busy.send(b"PING\n")
        world.clock.advance(1)
        assert client.heard()[1:] == [{"type": "bye", "reason": "idle"}]
        assert client.kernel.closed
        assert not busy.kernel.closed
        world.clock.advance(59)
        assert busy.kernel.closed
        assert world.is_clean()

    def test_to_read_is_not_to_say_something(self) -> None:
        world = World(idle_timeout=60.0, heartbeat=1000.0)
        client = world.connect(room=0)
        client.send(TestUnread.LINE * 100)
        world.clock.advance(59)
        client.kernel.make_room(10**6)
        assert not client.protocol.paused
        world.clock.advance(1)
        assert client.types()[-1] == "bye"
        assert client.kernel.closed

    def test_heartbeats_do_not_keep_an_idle_client(self) -> None:
        world = World(idle_timeout=60.0)
        client = world.connect()
        world.clock.advance(HEARTBEAT)
        world.clock.advance(HEARTBEAT)
        assert client.kernel.closed

    def test_a_draining_pushd_says_when_to_come_back(self) -> None:
        world = World()
        clients = [world.connect() for _ in range(50)]
        for client in clients:
            client.protocol.stop()
        said = [client.heard()[1] for client in clients]
        times = {goodbye.pop("retry_ms") for goodbye in said}
        assert said == [{"type": "bye", "reason": "drain"}] * 50
        assert len(times) > 25
        assert 0 <= min(times) < max(times) <= 1000 * RETURN_SECONDS
        assert world.is_clean()

    def test_a_client_too_many_is_told_so_in_place_of_a_welcome(self) -> None:
        world = World(max_clients=1)
        client = world.connect()
        protocol = world.factory.buildProtocol(UNIXAddress(None))
        transport: Any = StringTransport()
        protocol.makeConnection(transport)
        said = json.loads(transport.value())
        assert 0 <= said.pop("retry_ms") <= 1000 * RETURN_SECONDS
        assert said == {
            "type": "error",
            "code": "too-many-clients",
            "message": "there is no room for more",
            "command": None,
        }
        assert transport.value().endswith(b"}\n")
        assert transport.disconnecting
        protocol.connectionLost(Failure(ConnectionDone()))
        client.protocol.close()
        assert world.is_clean()


def lose(client: Client) -> None:
    """Let the next send find out that the connection is dead."""
    client.kernel.error = ConnectionLost()


def _half_close(world: World, client: Client) -> None:
    client.protocol.readConnectionLost()
    world.publisher.answer(1)


DEATHS: dict[str, Callable[[World, Client], object]] = {
    "an answer": lambda _, client: client.send(b"PING\nPING\n"),
    "an error": lambda _, client: client.send(b"nonsense\nPING\n"),
    "subscribed at once": lambda _, client: client.send(b"SUBSCRIBE news.1\nPING\n"),
    "subscribed": lambda world, _: world.channels.confirmed(Topic(b"waiting")),
    "subscribed in an outage": lambda world, _: world.channels.lost(Topic(b"waiting")),
    "refused": lambda world, _: world.channels.refused(Topic(b"waiting"), "NOPERM"),
    "unsubscribed": lambda _, client: client.send(b"UNSUBSCRIBE scores\nUNSUBSCRIBE waiting\n"),
    "taken away": lambda _, client: client.send(b"AUTH nobody\nPING\n"),
    "a message": lambda world, _: world.publish(b"1:0"),
    "published": lambda world, _: world.publisher.answer(1),
    "a heartbeat": lambda world, _: world.clock.advance(HEARTBEAT),
    "bye": lambda _, client: client.send(b"QUIT\nPING\n"),
    "idle": lambda world, _: world.clock.advance(100),
    "drain": lambda _, client: client.protocol.stop(),
    "too long": lambda _, client: client.send(b"x" * 100_000),
    "an answer after its half-close": _half_close,
    "nothing": lambda _, client: client.kernel.abortConnection(),
}
"""What pushd would say when it finds the connection dead."""


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("death", DEATHS)
def test_a_connection_that_dies_leaves_nothing(death: str, later: bool) -> None:
    world = World(
        later=later,
        tokens=Verifier(FOR_EVER),
        bounds=permissions("*", publish=("*",)),
        idle_timeout=100.0,
        heartbeat=1000.0 if death == "idle" else HEARTBEAT,
    )
    client = world.connect()
    client.send(b"AUTH alice\nSUBSCRIBE scores\nPSUBSCRIBE news.*\nPUBLISH chat hello\nPUBLISH chat world\n")
    world.upstream.at_once = lambda _: None
    client.send(b"SUBSCRIBE waiting\n")
    world.upstream.at_once = world.channels.confirmed
    before = len(client.kernel.sends)
    lose(client)
    DEATHS[death](world, client)
    assert client.kernel.aborted
    for _, answer in world.publisher.waiting:
        answer(1)
    world.channels.confirmed(Topic(b"waiting"))
    world.publish(b"2:0")
    assert len(client.kernel.sends) == before
    assert client.protocol.outlet._replies == client.protocol.outlet._rest == b""
    assert world.is_clean()


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("tokens", [None, Verifier(FOR_EVER)])
def test_a_connection_that_is_dead_at_the_welcome_leaves_nothing(
    tokens: Verifier | None, later: bool
) -> None:
    world = World(later=later, tokens=tokens, idle_timeout=60.0)
    client = world.connect(error=ConnectionLost())
    assert client.kernel.aborted
    assert world.is_clean()


@pytest.mark.parametrize("later", [False, True])
def test_clients_that_leave_while_they_wait_leave_nothing(later: bool) -> None:
    world = World(later=later)
    world.upstream.at_once = lambda _: None
    clients = [world.connect() for _ in range(3)]
    for client in clients:
        client.send(b"SUBSCRIBE scores\nPSUBSCRIBE news.*\n")
    clients[0].kernel.abortConnection()
    world.clock.advance(0)
    clients[1].send(b"QUIT\n")
    world.channels.confirmed(SCORES)
    world.publish(b"1:0")
    assert [client.types() for client in clients] == [
        ["welcome"],
        ["welcome", "bye"],
        ["welcome", "subscribed", "message"],
    ]
    clients[2].kernel.abortConnection()
    assert world.is_clean()


class TestTerms:
    """What settings mean for clients."""

    @pytest.mark.parametrize(
        ("control", "subscribe", "publish"),
        [
            (Control(), "named", ""),
            (Control(allow=(b"x",)), "x", ""),
            (Control(allow_publish=(b"x",)), "named", "x"),
            (Control(jwt_key=b"k" * 32), "named x y", "named x y"),
            (Control(jwt_key=b"k" * 32, allow=(b"x",)), "x", "named x y"),
            (Control(jwt_key=b"k" * 32, allow_publish=(b"x", b"y")), "named x y", "x y"),
        ],
    )
    def test_bounds(self, control: Control, subscribe: str, publish: str) -> None:
        terms = terms_of_control(Settings(topics=(Topic(b"named"),), control=control))
        names = ("named", "x", "y")
        may = terms.bounds
        assert " ".join(name for name in names if may.may_subscribe(Topic(name.encode()))) == subscribe
        assert " ".join(name for name in names if may.may_publish(name.encode())) == publish
        assert (terms.tokens is None) == (control.jwt_key is None)

    def test_a_named_pattern_and_shard_channel_are_what_they_are(self) -> None:
        topics = (Topic(b"news.*", Kind.PATTERN), Topic(b"orders", Kind.SHARD))
        bounds = terms_of_control(Settings(topics=topics)).bounds
        assert all(map(bounds.may_subscribe, topics))
        assert not bounds.may_subscribe(Topic(b"news.sport"))

    def test_a_key_that_is_none_is_named_by_its_option(self) -> None:
        with pytest.raises(SettingsError, match=r"^--jwt-key: it is a secret of 5 bytes; allowed: "):
            terms_of_control(Settings(control=Control(jwt_key=b"short")))
