"""Chunks: encoded once for each cursor, again only when more has come, and few of them kept."""

from collections.abc import Sequence

import pytest

from pushd.chunks import SEND_BYTES, SHARED_CHUNKS, Chunks
from pushd.encoders import Encoder, Events, Lines
from pushd.log import MESSAGE_OVERHEAD, Log, cost_of
from pushd.message import Kind, Position, SourceGap, Topic


class World:
    """A log, and chunks of it that count how often they encode."""

    def __init__(self) -> None:
        self.log = Log(1024**2)
        self.encodings = 0
        self.warm: set[Chunks] = set()
        self.chunks = Chunks(self.log, Counting(self), self.warm)


class Counting(Lines):
    """The line protocol, with source gaps; it counts how often it encodes."""

    def __init__(self, world: World) -> None:
        self._world = world

    def messages(self, after: Position, payloads: Sequence[bytes], channels: Sequence[bytes]) -> bytes:
        self._world.encodings += 1
        return super().messages(after, payloads, channels)

    def source_gap(self, after: Position, gap: SourceGap) -> bytes:
        return b"gap %d\r\n" % gap.until


@pytest.fixture
def world() -> World:
    return World()


def test_readers_at_one_cursor_share_one_encoding(world: World) -> None:
    world.log.append([b"one", b"two"])
    first, second = world.chunks.read(0), world.chunks.read(0)
    assert first.data is second.data
    assert (first.data, first.end, first.written) == (b"one\r\ntwo\r\n", 2, 6)
    assert world.encodings == 1


def test_what_came_since_is_read_too(world: World) -> None:
    world.log.append([b"one"])
    world.chunks.read(0)
    world.log.append([b"two"])
    assert world.chunks.read(0).data == b"one\r\ntwo\r\n"
    assert world.chunks.read(1).data == b"two\r\n"
    assert world.encodings == 3


def test_a_full_chunk_stays_good_when_more_comes(world: World) -> None:
    world.log.append([b"." * 1000] * 100)
    full = world.chunks.read(0)
    world.log.append([b"more"])
    assert world.chunks.read(0) is full
    assert full.end == SEND_BYTES // (1000 + Lines.framing)
    assert len(full.data) <= SEND_BYTES
    assert world.chunks.read(full.end).data.endswith(b"more\r\n")


def test_few_are_kept_however_spread_out_the_readers_are(world: World) -> None:
    world.log.append([b"%d" % number for number in range(100)])
    for cursor in range(100):
        world.chunks.read(cursor)
    assert len(world.chunks) == SHARED_CHUNKS


def test_memory_can_be_given_back(world: World) -> None:
    world.log.append([b"one"])
    world.chunks.read(0)
    assert world.warm == {world.chunks}
    world.chunks.clear()
    assert len(world.chunks) == 0


def test_a_source_gap_is_a_chunk_of_its_own_in_order_with_messages(world: World) -> None:
    world.log.append([b"one"])
    world.log.append_gap(SourceGap(1, 2))
    world.log.append([b"two"])
    chunks = [world.chunks.read(cursor) for cursor in range(3)]
    assert [(chunk.data, chunk.end, chunk.gaps, chunk.cut) for chunk in chunks] == [
        (b"one\r\n", 1, 0, True),
        (b"gap 2\r\n", 2, 1, True),
        (b"two\r\n", 3, 1, False),
    ]
    assert [chunk.written for chunk in chunks] == [3, 3, 6]


def test_a_chunk_counts_as_in_the_log() -> None:
    log = Log(1024**2)
    chunks = Chunks(log, Lines(Topic(b"news.*", Kind.PATTERN), "k3f9ab.1"), set())
    cost = log.append([b"one", b"two"], [b"news.a", b"news.b"])
    log.append_gap(SourceGap(1, 2))
    log.append([b"."], [b"news.c"])
    assert [chunks.read(cursor).cost for cursor in range(3)] == [
        cost,
        cost_of([b"two"], [b"news.b"]),
        MESSAGE_OVERHEAD,
    ]


def test_a_source_gap_that_cannot_be_said_is_passed_over() -> None:
    log = Log(1024**2)
    chunks = Chunks(log, Lines(Topic(b"updates"), "k3f9ab.1"), set())
    log.append_gap(SourceGap(1, 2))
    chunk = chunks.read(0)
    assert (chunk.data, chunk.end, chunk.gaps, chunk.cut) == (b"", 1, 1, False)


def test_messages_of_a_pattern_say_their_channels() -> None:
    log = Log(1024**2)
    chunks = Chunks(log, Events(Topic(b"news.*", Kind.PATTERN), "k3f9ab.1"), set())
    log.append([b"one", b"two", b"three"], [b"news.a", b"news.b", b"news.a"])
    assert chunks.read(1).data == (
        b'{"type":"message","pattern":"news.*","channel":"news.b","offset":2,"id":"k3f9ab.1-2","data":"two"}\n'
        b'{"type":"message","pattern":"news.*","channel":"news.a","offset":3,"id":"k3f9ab.1-3","data":"three"}\n'
    )


SCORES = Topic(b"scores")
NEWS = Topic(b"news.*", Kind.PATTERN)
LONG = Topic("\u20ac".encode() * 300)


@pytest.mark.parametrize(
    ("topic", "encoder", "channel"),
    [
        (SCORES, Lines(SCORES, "k3f9ab.1"), b""),
        (SCORES, Events(SCORES, "k3f9ab.1"), b""),
        (LONG, Events(LONG, "k3f9ab.123456"), b""),
        (NEWS, Events(NEWS, "k3f9ab.1"), b"news.sport"),
        (NEWS, Events(NEWS, "k3f9ab.1"), b"news." + b"x" * 1000),
    ],
    ids=["lines", "events", "long name", "pattern", "long channels"],
)
@pytest.mark.parametrize("size", [1, 100, 4000])
def test_a_full_chunk_is_about_what_one_send_holds(
    topic: Topic, encoder: Encoder, channel: bytes, size: int
) -> None:
    """What frames add is a guess, that of lines more than they do."""
    log = Log(100 * 1024**2)
    log.append([b"x" * size] * 20_000, [channel] * 20_000 if channel else ())
    chunk = Chunks(log, encoder, set()).read(0)
    assert chunk.cut
    least = 0.25 if isinstance(encoder, Lines) and size == 1 else 0.75
    assert least * SEND_BYTES < len(chunk.data) < 1.1 * SEND_BYTES
