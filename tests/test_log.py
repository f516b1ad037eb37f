"""The log: numbering, eviction, and reading from any cursor."""

from collections.abc import Iterator
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pushd.log import CHANNEL_OVERHEAD, MESSAGE_OVERHEAD, SEGMENT_BYTES, Log, cost_of
from pushd.message import Position, SourceGap

GENEROUS = 10**9
FRAMING = 8
GAP = SourceGap(since=1.0, until=2.5)


def numbered(first: int, count: int, size: int = 100) -> list[bytes]:
    """Return payloads that say which one they are."""
    return [b"%d" % number + b"." * (size - 10) for number in range(first, first + count)]


def test_is_empty_at_first() -> None:
    log = Log(1024)
    assert (log.tail, log.head, log.written) == (0, 0, 0)
    assert log.read(0, GENEROUS, FRAMING).payloads == []
    assert log.written_at(0) == 0


def test_numbers_messages_from_1_across_batches() -> None:
    log = Log(GENEROUS)
    log.append([b"one", b"two"])
    log.append([b"three"])
    assert log.head == 3
    assert [log.read(cursor, GENEROUS, FRAMING).payloads for cursor in range(4)] == [
        [b"one", b"two", b"three"],
        [b"two", b"three"],
        [b"three"],
        [],
    ]


def test_reads_as_many_as_fit_and_at_least_one() -> None:
    log = Log(GENEROUS)
    log.append([b"12345678", b"12345678", b"12345678"])
    two = 2 * (8 + FRAMING)
    assert len(log.read(0, two, FRAMING).payloads) == 2
    assert len(log.read(0, two - 1, FRAMING).payloads) == 1
    assert len(log.read(0, 0, FRAMING).payloads) == 1


def test_a_read_of_empty_payloads_ends() -> None:
    log = Log(GENEROUS)
    log.append([b""] * 1000)
    assert len(log.read(0, 100 * FRAMING, FRAMING).payloads) == 100


def test_reads_across_segments() -> None:
    log = Log(GENEROUS)
    payloads = numbered(1, 3000)
    for payload in payloads:
        log.append([payload])
    assert log.read(0, GENEROUS, FRAMING).payloads == payloads
    assert log.read(1234, GENEROUS, FRAMING).payloads == payloads[1234:]


def test_evicts_the_oldest_segments_above_the_limit() -> None:
    limit = 4 * SEGMENT_BYTES
    log = Log(limit)
    payloads = numbered(1, 5000)
    for payload in payloads:
        log.append([payload])
    kept = log.read(log.tail, GENEROUS, FRAMING).payloads
    assert kept == payloads[log.tail :]
    assert log.head == 5000
    assert limit - SEGMENT_BYTES < sum(len(payload) + MESSAGE_OVERHEAD for payload in kept) <= limit


def test_empty_payloads_fill_the_log_too() -> None:
    log = Log(2 * SEGMENT_BYTES)
    for _ in range(10_000):
        log.append([b""])
    assert log.head - log.tail <= 2 * SEGMENT_BYTES // MESSAGE_OVERHEAD


def test_keeps_the_newest_batch_whole_even_above_the_limit() -> None:
    log = Log(1024)
    log.append([b"old"])
    big = [b"x" * SEGMENT_BYTES, b"y" * SEGMENT_BYTES]
    log.append(big)
    assert log.tail == 1
    assert log.read(1, GENEROUS, FRAMING).payloads == big


def test_counts_what_was_written_up_to_a_cursor() -> None:
    log = Log(2 * SEGMENT_BYTES)
    payloads = numbered(1, 3000)
    for payload in payloads:
        log.append([payload])
    assert log.written == sum(map(len, payloads))
    for cursor in (log.tail, log.tail + 1, 2500, 3000):
        assert log.written_at(cursor) == sum(map(len, payloads[:cursor]))


batches = st.lists(st.lists(st.binary(max_size=300), min_size=1, max_size=9), max_size=60)


@given(batches, st.integers(0, 20_000), st.integers(0, 2000), st.integers(0, 10**6))
def test_behaves_like_a_list_that_forgets_its_beginning(
    batches: list[list[bytes]], limit: int, room: int, seed: int
) -> None:
    log = Log(limit)
    everything: list[bytes] = []
    for batch in batches:
        log.append(batch)
        everything += batch
    assert log.head == len(everything)
    assert 0 <= log.tail <= log.head
    cursor = log.tail + seed % (log.head - log.tail + 1)
    read = log.read(cursor, room, FRAMING).payloads
    assert read == everything[cursor : cursor + len(read)]
    assert bool(read) == (cursor < log.head)
    assert len(read) == max(fits(everything[cursor:], room), min(1, log.head - cursor))
    assert log.written_at(cursor) == sum(map(len, everything[:cursor]))
    assert everything[log.tail :][-len(batches[-1]) :] == batches[-1] if batches else not everything


def fits(payloads: list[bytes], room: int) -> int:
    """Return how many payloads, with what frames them, go into room bytes."""
    sizes: Iterator[int] = accumulate(len(payload) + FRAMING for payload in payloads)
    return sum(size <= room for size in sizes)


@pytest.mark.parametrize("count", [1, 2, 1000])
def test_the_bound_holds_whatever_the_size_of_batches(count: int) -> None:
    limit = 3 * SEGMENT_BYTES
    log = Log(limit)
    for first in range(0, 10_000, count):
        log.append(numbered(first, count))
        cost = sum(
            len(payload) + MESSAGE_OVERHEAD for payload in log.read(log.tail, GENEROUS, FRAMING).payloads
        )
        assert cost <= limit or log.head - log.tail == count


def test_a_source_gap_is_an_entry_between_messages() -> None:
    log = Log(GENEROUS)
    log.append([b"one", b"two"])
    log.append_gap(GAP)
    log.append([b"three"])
    assert (log.head, log.gaps, log.written) == (4, 1, 11)
    assert [log.read(cursor, GENEROUS, FRAMING).payloads for cursor in range(5)] == [
        [b"one", b"two"],
        [b"two"],
        [],
        [b"three"],
        [],
    ]
    assert [log.read(cursor, GENEROUS, FRAMING).gap for cursor in range(5)] == [None, None, GAP, None, None]
    assert [log.gaps_at(cursor) for cursor in range(5)] == [0, 0, 0, 1, 1]
    assert [log.written_at(cursor) for cursor in range(5)] == [0, 3, 6, 6, 11]


def test_goes_back_by_messages_and_not_by_gaps() -> None:
    log = Log(GENEROUS)
    log.append([b"one", b"two"])
    log.append_gap(GAP)
    log.append([b"three"])
    log.append_gap(GAP)
    assert [log.back(messages) for messages in range(5)] == [5, 3, 1, 0, 0]
    assert log.newest == 3


def test_gaps_are_evicted_as_messages_are() -> None:
    log = Log(16 * MESSAGE_OVERHEAD)
    log.append([b""])
    for _ in range(100):
        log.append_gap(GAP)
    assert (log.head, log.gaps, log.tail) == (101, 100, 85)
    assert log.newest == log.back(1) == log.tail
    assert log.gaps_at(log.tail) == 84


def test_messages_of_a_pattern_have_channels() -> None:
    log = Log(GENEROUS)
    log.append([b"one", b"two"], [b"a", b"b"])
    log.append_gap(GAP)
    log.append([b"three"], [b"a"])
    runs = [log.read(cursor, GENEROUS, FRAMING) for cursor in range(4)]
    assert [(run.payloads, run.channels, run.gap) for run in runs] == [
        ([b"one", b"two"], [b"a", b"b"], None),
        ([b"two"], [b"b"], None),
        ([], [], GAP),
        ([b"three"], [b"a"], None),
    ]


def test_channels_take_room_as_payloads_do() -> None:
    log = Log(GENEROUS)
    log.append([b"1234"] * 3, [b"1234", b"", b"12345678"])
    sizes = [8 + FRAMING, 4 + FRAMING, 12 + FRAMING]
    assert len(log.read(0, sum(sizes), FRAMING).payloads) == 3
    assert len(log.read(0, sum(sizes) - 1, FRAMING).payloads) == 2
    assert len(log.read(0, sum(sizes[:2]) - 1, FRAMING).channels) == 1


def test_channels_count_against_the_limit() -> None:
    payloads, channels = [b"12345", b""], [b"news.sport", b"news.tech"]
    assert cost_of(payloads) == 5 + 2 * MESSAGE_OVERHEAD
    assert cost_of(payloads, channels) == 24 + 2 * (MESSAGE_OVERHEAD + CHANNEL_OVERHEAD)
    assert Log(GENEROUS).append(payloads) == cost_of(payloads)
    assert Log(GENEROUS).append(payloads, channels) == cost_of(payloads, channels)


def test_long_channels_of_empty_payloads_fill_a_log() -> None:
    limit = 2 * SEGMENT_BYTES
    log = Log(limit)
    for _ in range(1000):
        log.append([b""], [b"c" * 1000])
    kept = log.read(log.tail, GENEROUS, FRAMING)
    assert limit - SEGMENT_BYTES < cost_of(kept.payloads, kept.channels) <= limit


Entry = tuple[bytes, bytes] | SourceGap
messages = st.lists(st.tuples(st.binary(max_size=200), st.binary(max_size=50)), min_size=1, max_size=5)
histories = st.lists(messages | st.builds(SourceGap, st.integers(0, 9), st.integers(10, 19)), max_size=25)


def log_of(history: list[list[tuple[bytes, bytes]] | SourceGap], limit: int) -> tuple[Log, list[Entry]]:
    """Return the log of a pattern, and a list of all its entries, those too that are not kept."""
    log = Log(limit)
    entries: list[Entry] = []
    for part in history:
        if isinstance(part, SourceGap):
            log.append_gap(part)
            entries.append(part)
        else:
            log.append([payload for payload, _ in part], [channel for _, channel in part])
            entries += part
    return log, entries


@given(histories, st.integers(0, 6000), st.integers(0, 600))
def test_behaves_like_a_list_with_gaps(
    history: list[list[tuple[bytes, bytes]] | SourceGap], limit: int, room: int
) -> None:
    log, entries = log_of(history, limit)
    assert log.head == len(entries)
    assert log.gaps == gaps_in(entries)
    kept = [cursor for cursor in range(log.tail, log.head) if not isinstance(entries[cursor], SourceGap)]
    assert log.newest == (max(kept) if kept else log.tail)
    for count in range(len(kept) + 2):
        assert log.back(count) == (
            log.head if not count else kept[-count] if count <= len(kept) else log.tail
        )
    for cursor in range(log.tail, log.head + 1):
        gaps = gaps_in(entries[:cursor])
        assert log.gaps_at(cursor) == gaps
        assert log.position(cursor) == Position(cursor - gaps, gaps)
        assert log.position(cursor).cursor == cursor
        assert log.written_at(cursor) == sum(
            len(entry[0]) for entry in entries[:cursor] if not isinstance(entry, SourceGap)
        )
    for cursor in range(log.tail, log.head):
        run = log.read(cursor, room, FRAMING)
        assert (run.offset, run.gaps) == log.position(cursor)
        assert (list(zip(run.payloads, run.channels, strict=True)), run.gap) == what_comes(
            entries[cursor:], room
        )


def gaps_in(entries: list[Entry]) -> int:
    return sum(isinstance(entry, SourceGap) for entry in entries)


def what_comes(entries: list[Entry], room: int) -> tuple[list[tuple[bytes, bytes]], SourceGap | None]:
    """Return the messages at the beginning that fit, one of them in any case, or the gap there."""
    if isinstance(entries[0], SourceGap):
        return [], entries[0]
    run: list[tuple[bytes, bytes]] = []
    for entry in entries:
        if isinstance(entry, SourceGap):
            break
        room -= len(entry[0]) + len(entry[1]) + FRAMING
        if room < 0 and run:
            break
        run.append(entry)
    return run, None
