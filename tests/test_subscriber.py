"""A subscribed connection: batches for each read, exact bytes, and what is not handed on."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.message import Batch, Kind, Topic
from tests.upstream import BINARY, NEWS, UPDATES, command, published, stop_all, subscribed

PAYLOADS = [b"42", b"007", b"1.50", b"\xff\xfe", b"", b"a\r\nb", b"message", b"x" * 1024**2]


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    yield
    stop_all()


def by_pattern(pattern: bytes, channel: bytes, payload: bytes) -> bytes:
    return command(b"pmessage", pattern, channel, payload)


def test_one_read_is_one_batch_with_the_exact_bytes() -> None:
    world = subscribed()
    world.server.answer(published(PAYLOADS))
    assert world.batches == [Batch(UPDATES, PAYLOADS)]


def test_a_read_with_several_topics_is_one_batch_for_each() -> None:
    shard = Topic(b"updates", Kind.SHARD)
    world = subscribed(UPDATES, NEWS, shard)
    world.server.answer(
        published([b"u1"])
        + by_pattern(b"news.*", b"news.a", b"n1")
        + published([b"s1"], word=b"smessage")
        + published([b"u2"])
    )
    assert world.batches == [
        Batch(UPDATES, [b"u1", b"u2"]),
        Batch(NEWS, [b"n1"], [b"news.a"]),
        Batch(shard, [b"s1"]),
    ]


def test_probes_reach_no_pattern() -> None:
    everything = Topic(b"*", Kind.PATTERN)
    world = subscribed(everything)
    world.server.answer(
        by_pattern(b"*", b"pushd:probe:other", b"1")
        + by_pattern(b"*", b"pushd:probes", b"2")
        + by_pattern(b"*", b"pushd:probe:", b"3")
    )
    assert world.batches == [Batch(everything, [b"2"], [b"pushd:probes"])]


def test_messages_before_nonsense_are_delivered() -> None:
    world = subscribed()
    world.server.answer(
        published([b"one"]) + b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n*0\r\n" + published([b"two"])
    )
    assert world.batches == [Batch(UPDATES, [b"one"])]
    assert not world.server.connection.connected


def test_nothing_behind_a_message_that_was_not_asked_for_is_delivered() -> None:
    world = subscribed()
    world.server.answer(published([b"one"]) + published([b"two"], b"other") + published([b"three"]))
    assert world.batches == [Batch(UPDATES, [b"one"])]
    assert not world.server.connection.connected


@given(st.lists(st.binary(max_size=60), max_size=8), st.data())
def test_it_does_not_matter_where_reads_end(payloads: list[bytes], data: st.DataObject) -> None:
    world = subscribed(BINARY)
    stream = published(payloads, BINARY.name)
    while stream:
        end = data.draw(st.integers(1, len(stream)))
        world.server.answer(stream[:end])
        stream = stream[end:]
    assert [payload for batch in world.batches for payload in batch.payloads] == payloads
    assert all(batch.topic == BINARY and batch.payloads for batch in world.batches)


@pytest.mark.parametrize("name", [b"message", b"pmessage", b"smessage", b"subscribe", b"sunsubscribe"])
def test_channels_may_be_named_like_the_protocols_own_words(name: bytes) -> None:
    world = subscribed(Topic(name), Topic(name, Kind.PATTERN), Topic(name, Kind.SHARD))
    world.server.answer(published([b"one"], name))
    assert world.batches == [Batch(Topic(name), [b"one"])]


def test_a_slot_that_moves_away_ends_the_subscription(logged: list[str]) -> None:
    shard = Topic(b"part", Kind.SHARD)
    world = subscribed(shard)
    world.server.answer(
        published([b"last"], b"part", word=b"smessage") + b"*3\r\n$12\r\nsunsubscribe\r\n$4\r\npart\r\n:0\r\n"
    )
    assert world.batches == [Batch(shard, [b"last"])]
    world.settle()
    assert "its slot has moved to another node; trying again" in logged[-1]
