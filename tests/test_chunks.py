"""Chunks: encoded once for each cursor, again only when more has come, and few of them kept."""

from collections.abc import Sequence

import pytest

from pushd.chunks import SEND_BYTES, SHARED_CHUNKS, Chunks
from pushd.encoders import Lines
from pushd.log import Log
from pushd.message import Position, SourceGap


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

    def source_gap(self, after: Position, gap: SourceGap) -> bytes:  # noqa: ARG002
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
