"""The outlet: the straight way to the kernel, lag, order of frames and replies, and closing."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IPullProducer
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from zope.interface.verify import verifyObject

from pushd.encoders import Lines
from pushd.hub import Hub
from pushd.message import Batch, Topic
from pushd.metrics import Metrics
from pushd.outlet import MOST_REPLIES_BYTES, PIECE_BYTES, REPLIES_BYTES, Outlet
from pushd.settings import SlowPolicy
from tests.clients import Kernel, TlsClient
from tests.integration.certificates import write_certificate

UPDATES = Topic(b"updates")


class RecordingReader:
    """The reading half of a client."""

    def __init__(self) -> None:
        self.paused = False

    def pauseProducing(self) -> None:
        assert not self.paused
        self.paused = True

    def resumeProducing(self) -> None:
        assert self.paused
        self.paused = False


class World:
    """A hub, and one client whose kernel buffer has room for so many bytes."""

    def __init__(self, room: int = 10**9) -> None:
        self.clock = Clock()
        self.hub = Hub(self.clock, 1024**2, Metrics(), "epoch")
        self.hub.open(UPDATES)
        self.kernel = Kernel(room)
        self.reader = RecordingReader()
        self.outlet = Outlet(self.kernel, self.reader, self.hub, "192.0.2.1:4242")

    def subscribe(self, policy: SlowPolicy = SlowPolicy.DISCONNECT) -> None:
        self.outlet.subscriptions.append(self.hub.subscribe(UPDATES, self.outlet, Lines, policy, 0))

    def publish(self, *payloads: bytes) -> None:
        self.hub.publish(Batch(UPDATES, list(payloads)))
        self.settle()

    def settle(self) -> None:
        while self.clock.getDelayedCalls():
            self.clock.advance(0)


class TlsWorld(World):
    """A hub, and one client by TLS that has stopped reading."""

    def __init__(self, directory: Path, *, wrapped: bool = False) -> None:
        super().__init__()
        certificate = write_certificate(directory / "server.pem", "127.0.0.1")
        self.client = TlsClient(self.kernel, certificate, self.clock, wrapped=wrapped)
        self.settle()
        self.kernel.room = 0
        self.outlet = Outlet(self.client.transport, self.reader, self.hub, "192.0.2.1:4242")

    def settle(self) -> None:
        super().settle()
        while self.kernel.room and self.kernel.buffered():
            self.kernel.make_room(0)
            super().settle()

    def read(self, room: int) -> bytes:
        """Let the client read, and return what it gets."""
        self.kernel.make_room(room)
        self.settle()
        return self.client.read()


def test_it_is_a_pull_producer() -> None:
    assert verifyObject(IPullProducer, World().outlet)


def test_a_send_that_the_kernel_takes_is_one_call_and_no_registration() -> None:
    world = World()
    data = b"follow the white rabbit\r\n"
    world.outlet.send(data)
    assert world.kernel.sends == [data]
    assert world.kernel.sends[0] is data
    assert world.kernel.counting.registrations == 0
    assert not world.outlet.lagging


def test_what_the_kernel_does_not_take_follows_when_it_has_room() -> None:
    world = World(room=4)
    world.outlet.send(b"follow the white rabbit\r\n")
    assert world.outlet.lagging
    assert world.kernel.received == b"foll"
    world.kernel.make_room(100)
    assert world.kernel.received == b"follow the white rabbit\r\n"
    assert not world.outlet.lagging
    assert world.kernel.producer is None


def test_a_lagging_client_holds_one_piece_of_a_large_frame() -> None:
    world = World(room=1000)
    world.outlet.send(b"x" * 1024**2)
    assert world.kernel.buffered() == PIECE_BYTES
    while world.outlet.lagging:
        world.kernel.make_room(10_000)
        assert world.kernel.buffered() <= PIECE_BYTES
    assert world.kernel.received == b"x" * 1024**2


def test_what_was_published_while_it_lagged_follows_the_remainder() -> None:
    world = World(room=2)
    world.subscribe()
    world.publish(b"one")
    world.publish(b"two")
    world.publish(b"three", b"four")
    assert world.kernel.received == b"on"
    world.kernel.make_room(10**6)
    world.settle()
    assert world.kernel.received == b"one\r\ntwo\r\nthree\r\nfour\r\n"


def test_replies_wait_for_the_end_of_the_frame() -> None:
    world = World(room=4)
    world.outlet.send(b"x" * 3 * PIECE_BYTES + b"\r\n")
    world.outlet.reply(b"echo\r\n")
    world.outlet.reply(b"again\r\n")
    world.kernel.make_room(10**6)
    assert world.kernel.received == b"x" * 3 * PIECE_BYTES + b"\r\necho\r\nagain\r\n"


def test_reading_pauses_while_replies_pile_up_and_goes_on_once_they_are_gone() -> None:
    world = World(room=0)
    replies = 0
    while not world.reader.paused:
        world.outlet.reply(b"echo\r\n")
        replies += 1
    assert REPLIES_BYTES < 6 * replies < REPLIES_BYTES + 20
    world.outlet.reply(b"from a read that was under way\r\n")
    world.kernel.make_room(100)
    assert world.reader.paused
    world.kernel.make_room(10**6)
    assert not world.reader.paused
    assert world.kernel.received == b"echo\r\n" * replies + b"from a read that was under way\r\n"


def replies_that_wait(world: World) -> int:
    return len(world.outlet._replies)


def test_a_client_is_ended_by_one_reply_more_than_may_wait(logged: list[str]) -> None:
    world = World(room=0)
    world.subscribe()
    world.outlet.send(b"x" * 1000)
    reply = b"." * 999 + b"\n"
    while replies_that_wait(world) <= MOST_REPLIES_BYTES:
        world.outlet.reply(reply)
    assert not world.kernel.aborted
    assert replies_that_wait(world) <= MOST_REPLIES_BYTES + len(reply)
    world.outlet.reply(reply)
    assert world.kernel.aborted
    assert logged == ["Disconnected 192.0.2.1:4242: it does not read what it is told"]
    assert replies_that_wait(world) == 0
    world.outlet.reply(reply)
    world.publish(b"one")
    assert world.outlet.closing
    assert replies_that_wait(world) == 0
    assert len(logged) == 1


def test_a_client_that_reads_in_time_gets_all_replies_that_may_wait() -> None:
    world = World(room=1)
    replies = [b"%06d" % number + b"." * 1000 for number in range(MOST_REPLIES_BYTES // 1006 + 1)]
    for _ in range(3):
        for reply in replies:
            world.outlet.reply(reply)
        assert world.reader.paused
        world.kernel.make_room(10**9)
        assert not world.reader.paused
        assert world.kernel.received == b"".join(replies)
        world.kernel.sends.clear()
        world.kernel.room = 1


def test_frames_do_not_count_as_replies() -> None:
    world = World(room=0)
    world.subscribe()
    world.publish(b"x" * 2 * MOST_REPLIES_BYTES)
    world.outlet.reply(b"echo\r\n")
    assert not world.reader.paused
    world.kernel.make_room(10**9)
    assert world.kernel.received.endswith(b"x\r\necho\r\n")


def test_one_large_reply_waits_like_a_frame_and_the_next_behind_it() -> None:
    world = World(room=10)
    large = b"." * 3 * MOST_REPLIES_BYTES
    world.outlet.reply(large)
    world.outlet.reply(large)
    assert not world.kernel.aborted
    assert world.reader.paused
    world.outlet.reply(b"one too many")
    assert world.kernel.aborted


def test_closing_waits_for_what_is_left_and_takes_no_more() -> None:
    world = World(room=2)
    world.subscribe()
    world.outlet.reply(b"echo\r\n")
    world.outlet.close()
    world.outlet.close()
    world.outlet.reply(b"too late\r\n")
    world.publish(b"too late")
    assert not world.kernel.closed
    world.kernel.make_room(100)
    assert world.kernel.closed
    assert world.kernel.received == b"echo\r\n"


def test_closing_is_immediate_when_nothing_is_left() -> None:
    world = World()
    world.outlet.close()
    assert world.kernel.closed


def test_a_connection_that_turns_out_to_be_dead_is_aborted() -> None:
    world = World()
    world.subscribe()
    world.kernel.error = ConnectionLost()
    world.publish(b"one")
    assert world.kernel.aborted
    world.publish(b"two")
    assert world.kernel.sends == []


def test_a_client_whose_transport_fails_is_logged_and_ended(logged_errors: list[str]) -> None:
    world = World()
    world.subscribe()
    del world.kernel.sends
    world.publish(b"one")
    assert world.kernel.aborted
    assert "has no attribute 'sends'" in logged_errors.pop()


def test_what_an_aborted_client_was_not_sent_is_counted_as_missed() -> None:
    world = World(room=2)
    world.subscribe()
    world.publish(b"one")
    world.publish(b"two", b"three")
    world.outlet.abort()
    world.outlet.abort()
    assert world.kernel.aborted
    (subscription,) = world.outlet.subscriptions
    assert subscription.missed == 2


def test_after_the_connection_is_lost_nothing_is_sent() -> None:
    world = World()
    world.subscribe()
    world.outlet.lost()
    world.publish(b"one")
    world.outlet.reply(b"echo\r\n")
    assert world.kernel.sends == []


def test_losing_the_connection_while_lagging_is_survived() -> None:
    world = World(room=1)
    world.subscribe()
    world.publish(b"one")
    world.publish(b"two")
    world.kernel.connectionLost(None)
    world.outlet.lost()
    world.publish(b"three")
    assert world.kernel.received == b"o"
    (subscription,) = world.outlet.subscriptions
    assert subscription.missed == 1


def test_flushed_tells_whether_everything_has_been_handed_to_the_kernel() -> None:
    world = World(room=5)
    world.subscribe()
    assert world.outlet.flushed
    world.hub.publish(Batch(UPDATES, [b"one", b"two"]))
    assert not world.outlet.flushed  # behind
    world.settle()
    assert not world.outlet.flushed  # lagging
    world.kernel.make_room(5)
    assert world.outlet.flushed


def test_a_transport_that_hides_its_socket_is_asked_to_ask() -> None:
    world = World()
    transport = StringTransport()
    outlet = Outlet(transport, world.reader, world.hub, "somebody")
    outlet.send(b"frame\r\n")
    outlet.reply(b"echo\r\n")
    assert transport.producer is outlet
    assert not transport.streaming
    while transport.producer:
        transport.producer.resumeProducing()
    assert transport.value() == b"frame\r\necho\r\n"
    assert not outlet.lagging


TLS_PIECE_BYTES = PIECE_BYTES + 1024
"""One piece, with what TLS adds to it."""


@pytest.mark.parametrize("wrapped", [False, True])
def test_many_frames_leave_one_piece_in_the_buffers_of_tls(tmp_path: Path, *, wrapped: bool) -> None:
    world = TlsWorld(tmp_path, wrapped=wrapped)
    world.subscribe()
    frames = [b"%06d" % number + b"x" * 50_000 for number in range(15)]
    for frame in frames:
        world.publish(frame)
    assert world.kernel.buffered() <= TLS_PIECE_BYTES
    assert world.outlet.lagging
    assert world.read(10**9) == b"".join(frame + b"\r\n" for frame in frames)
    assert not world.outlet.lagging
    assert world.kernel.producer is None


def test_a_large_frame_leaves_one_piece_in_the_buffers_of_tls(tmp_path: Path) -> None:
    world = TlsWorld(tmp_path)
    world.outlet.send(b"x" * 1024**2)
    world.settle()
    received = b""
    while world.outlet.lagging:
        assert world.kernel.buffered() <= TLS_PIECE_BYTES
        received += world.read(10_000)
    assert received == b"x" * 1024**2


def test_by_tls_it_is_flushed_and_closed_once_the_kernel_has_everything(tmp_path: Path) -> None:
    world = TlsWorld(tmp_path)
    world.outlet.reply(b"echo\r\n")
    world.settle()
    assert not world.outlet.flushed
    world.outlet.close()
    world.settle()
    assert world.read(10) == b""
    assert not world.outlet.flushed
    assert world.read(10**9) == b"echo\r\n"
    assert world.outlet.flushed


def test_a_client_that_ends_tls_while_it_lags_is_let_go(tmp_path: Path) -> None:
    world = TlsWorld(tmp_path)
    world.subscribe()
    world.publish(b"x" * 1024**2)
    world.publish(b"too late")
    world.client.say_goodbye()
    assert world.kernel.closed
    world.read(10**9)
    assert world.kernel.producer is None  # which would have kept Twisted from closing
    world.outlet.lost()
    (subscription,) = world.outlet.subscriptions
    assert subscription.missed == 1


@given(
    policy=st.sampled_from(SlowPolicy),
    steps=st.lists(
        st.one_of(
            st.lists(st.binary(max_size=200), min_size=1, max_size=5),  # publish these
            st.binary(max_size=50),  # reply this
            st.integers(0, 300),  # let the client read so much
        ),
        max_size=60,
    ),
)
def test_frames_and_replies_stay_whole_and_in_order_whatever_the_kernel_takes(
    policy: SlowPolicy, steps: list[list[bytes] | bytes | int]
) -> None:
    world = World(room=0)
    world.subscribe(policy)
    frames: list[bytes] = []
    replies: list[bytes] = []
    for step in steps:
        match step:
            case list():
                batch = [b"M%06d:" % (len(frames) + n) + p.hex().encode() for n, p in enumerate(step)]
                frames += batch
                world.publish(*batch)
            case bytes():
                replies.append(b"R%06d:" % len(replies) + step.hex().encode())
                world.outlet.reply(replies[-1] + b"\r\n")
            case int():
                world.kernel.make_room(step)
                world.settle()
    world.kernel.make_room(10**9)
    world.settle()
    lines = world.kernel.received.split(b"\r\n")[:-1]
    assert [line for line in lines if line.startswith(b"R")] == replies
    received = [line for line in lines if line.startswith(b"M")]
    (subscription,) = world.outlet.subscriptions
    if policy is not SlowPolicy.LATEST:
        assert received == frames
    assert received == sorted(set(received) & set(frames))
    assert len(received) + subscription.missed == len(frames)
    assert len(lines) == len(replies) + len(received)


def test_what_was_sent_is_not_kept_when_the_client_has_it() -> None:
    world = World(room=10)
    data = b"." * 1000
    world.outlet.send(data)
    world.kernel.make_room(10**6)
    assert not world.outlet.lagging
    # Even an empty view would keep the whole of it.
    assert type(world.outlet._rest) is bytes
