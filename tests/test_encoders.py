"""The wire formats: every message, exactly, in whole frames; and where it is, and what is missing."""

import base64
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pushd.chunks import Chunks
from pushd.encoders import Events, Lines, encode_gap
from pushd.events import show_time
from pushd.log import Log
from pushd.message import Gap, Kind, Position, SourceGap, Topic
from pushd.positions import read_id

LABEL = "k3f9ab.1"
SCORES = Topic(b"scores")
NEWS = Topic(b"news.*", Kind.PATTERN)
START = Position(0, 0)


def events_in(data: bytes) -> list[dict[str, Any]]:
    """Return what lines say; they end with LF, and at nothing else."""
    *lines, rest = data.split(b"\n")
    assert rest == b""
    return [json.loads(line) for line in lines]


def told(event: dict[str, Any], key: str) -> bytes:
    """Return the bytes that a member says, which has one of two names."""
    if f"{key}_base64" not in event:
        text: str = event[key]
        return text.encode()
    assert key not in event
    value = base64.b64decode(event[f"{key}_base64"], validate=True)
    with pytest.raises(UnicodeDecodeError):
        value.decode()
    return value


def test_lines_are_payloads_as_they_are() -> None:
    lines = Lines(SCORES, LABEL)
    assert lines.messages(START, [b"1:0", b"", b"a\r\nb", b"\xff"], ()) == b"1:0\r\n\r\na\r\nb\r\n\xff\r\n"
    assert lines.messages(Position(7, 2), [b"1:0"], [b"scores.a"]) == b"1:0\r\n"


def test_lines_cannot_say_that_something_is_missing() -> None:
    lines = Lines(SCORES, LABEL)
    assert lines.source_gap(START, SourceGap(1, 2)) == b""
    assert lines.gap(Gap(START, Position(3, 1))) == b""


@given(st.lists(st.binary(), min_size=1))
def test_lines_hold_nothing_but_payloads(payloads: list[bytes]) -> None:
    data = Lines(SCORES, LABEL).messages(START, payloads, ())
    assert data == b"".join(payload + b"\r\n" for payload in payloads)


def test_events_say_what_the_document_does() -> None:
    assert Events(SCORES, LABEL).messages(Position(41, 0), [b"3:1", b'say "hi"\n'], ()) == (
        b'{"type":"message","channel":"scores","offset":42,"id":"k3f9ab.1-42","data":"3:1"}\n'
        b'{"type":"message","channel":"scores","offset":43,"id":"k3f9ab.1-43","data":"say \\"hi\\"\\n"}\n'
    )


def test_a_source_gap_is_part_of_all_ids_behind_it() -> None:
    assert Events(SCORES, LABEL).messages(Position(41, 2), [b"3:1"], ()) == (
        b'{"type":"message","channel":"scores","offset":42,"id":"k3f9ab.1-42+2","data":"3:1"}\n'
    )


def test_messages_of_a_pattern_say_their_channels() -> None:
    assert Events(NEWS, LABEL).messages(START, [b"a", b"\xff"], [b"news.a", b"news.\xfe"]) == (
        b'{"type":"message","pattern":"news.*","channel":"news.a","offset":1,"id":"k3f9ab.1-1","data":"a"}\n'
        b'{"type":"message","pattern":"news.*","channel_base64":"bmV3cy7+","offset":2,"id":"k3f9ab.1-2",'
        b'"data_base64":"/w=="}\n'
    )


def test_a_source_gap_is_a_gap_of_unknown_size() -> None:
    assert Events(SCORES, LABEL).source_gap(Position(41, 0), SourceGap(1800000000, 1800000002.5)) == (
        b'{"type":"gap","channel":"scores","missed":null,"reason":"source",'
        b'"since":"2027-01-15T08:00:00.000Z","until":"2027-01-15T08:00:02.500Z","id":"k3f9ab.1-41+1"}\n'
    )


def test_a_slow_client_is_told_what_it_missed() -> None:
    events = Events(NEWS, LABEL)
    assert events.gap(Gap(Position(42, 1), Position(57, 1))) == (
        b'{"type":"gap","pattern":"news.*","from":43,"to":57,"missed":15,"reason":"slow","id":"k3f9ab.1-57+1"}\n'
    )
    assert events.gap(Gap(Position(42, 0), Position(43, 2))) == (
        b'{"type":"gap","pattern":"news.*","from":43,"to":43,"missed":1,"source_gaps":2,"reason":"slow",'
        b'"id":"k3f9ab.1-43+2"}\n'
    )


def test_a_gap_of_source_gaps_alone_has_no_offsets() -> None:
    gap = Gap(Position(42, 0), Position(42, 1))
    assert encode_gap({"channel": "scores"}, LABEL, gap, "evicted") == (
        b'{"type":"gap","channel":"scores","missed":0,"source_gaps":1,"reason":"evicted","id":"k3f9ab.1-42+1"}\n'
    )


payloads = st.binary(max_size=100) | st.text(st.characters(codec="utf-8"), max_size=30).map(str.encode)
names = st.binary(min_size=1, max_size=20) | st.sampled_from([b"news.sport", "snö\u2028".encode(), b'"\\'])
places = st.builds(Position, st.integers(0, 10**12), st.integers(0, 10**6))


@given(names, places, st.lists(payloads, min_size=1))
@example(
    b"scores", START, [b"", b"007", b"null", b"\xff\xfe", b"\r\n", b'"}\n{', b"\x00\x7f", b"\xe2\x80\xa8"]
)
@example(
    b"scores", START, [b"\xed\xa0\x80", b"\xf0\x9f\x98\x80", b"\xef\xbb\xbf", b"\\u0041", b"x" * 1024**2]
)
def test_events_bring_any_payload(name: bytes, after: Position, payloads: list[bytes]) -> None:
    events = events_in(Events(Topic(name), LABEL).messages(after, payloads, ()))
    assert [told(event, "data") for event in events] == payloads
    assert [told(event, "channel") for event in events] == [name] * len(payloads)
    offsets = [after.offset + number for number in range(1, len(payloads) + 1)]
    assert [event["offset"] for event in events] == offsets
    assert [read_id(LABEL, event["id"]) for event in events] == [
        Position(offset, after.gaps) for offset in offsets
    ]
    assert {event["type"] for event in events} == {"message"}
    assert all(len(event) == 5 for event in events)


@given(names, st.lists(st.tuples(names, payloads), min_size=1))
def test_events_of_a_pattern_bring_any_channel(pattern: bytes, messages: list[tuple[bytes, bytes]]) -> None:
    topic = Topic(pattern, Kind.PATTERN)
    channels, payloads = map(list, zip(*messages, strict=True))
    events = events_in(Events(topic, LABEL).messages(START, payloads, channels))
    assert [(told(event, "channel"), told(event, "data")) for event in events] == messages
    assert {told(event, "pattern") for event in events} == {pattern}
    assert all(len(event) == 6 for event in events)


parts = st.lists(payloads, min_size=1, max_size=4) | st.builds(
    SourceGap, st.integers(0, 9), st.integers(10, 19)
)


@given(st.sampled_from([SCORES, NEWS]), st.lists(parts, max_size=20))
def test_a_whole_log_can_be_followed_by_offsets_and_ids(
    topic: Topic, history: list[list[bytes] | SourceGap]
) -> None:
    log = Log(1024**2)
    expected: list[bytes | SourceGap] = []
    for part in history:
        if isinstance(part, SourceGap):
            log.append_gap(part)
            expected.append(part)
        else:
            log.append(part, [b"news.sport"] * len(part) if topic is NEWS else ())
            expected += part
    chunks = Chunks(log, Events(topic, LABEL), set())
    cursor, events = 0, []
    while cursor < log.head:
        chunk = chunks.read(cursor)
        events += events_in(chunk.data)
        cursor = chunk.end
    assert len(events) == len(expected)
    offset = 0
    for number, (event, entry) in enumerate(zip(events, expected, strict=True), 1):
        if isinstance(entry, SourceGap):
            assert (event["type"], event["reason"], event["missed"]) == ("gap", "source", None)
            assert (event["since"], event["until"]) == (show_time(entry.since), show_time(entry.until))
        else:
            offset += 1
            assert (event["type"], event["offset"], told(event, "data")) == ("message", offset, entry)
        assert read_id(LABEL, event["id"]) == log.position(number)


@given(places, st.integers(0, 1000), st.integers(0, 10))
def test_a_gap_covers_what_is_missing(since: Position, messages: int, source_gaps: int) -> None:
    until = Position(since.offset + messages, since.gaps + source_gaps)
    (event,) = events_in(Events(SCORES, LABEL).gap(Gap(since, until)))
    assert event["missed"] == messages
    assert event.get("source_gaps", 0) == source_gaps
    assert read_id(LABEL, event["id"]) == until
    if messages:
        assert event["to"] - event["from"] + 1 == messages
        assert event["from"] == since.offset + 1
    else:
        assert not {"from", "to"} & event.keys()
