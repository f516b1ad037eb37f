"""Events: each one line of JSON, in which bytes and times are as the document says."""

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pushd.events import LAST_SECOND, event, named, quoted, show_time, told
from pushd.message import Kind, Topic

texts = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = texts | st.none() | st.booleans() | st.integers()
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(texts, scalars, max_size=3)


def test_an_event_is_one_line_with_its_members_in_order() -> None:
    line = event("gap", channel="snö", missed=None, offsets={"a": 1}, command=["x"])
    expected = '{"type":"gap","channel":"snö","missed":null,"offsets":{"a":1},"command":["x"]}\n'
    assert line == expected.encode()


@given(texts, st.dictionaries(texts.filter(lambda key: key != "type"), values, max_size=5))
@example("pong", {"data": '\n\r\x00\x7f\x85\u2028\u2029"\\'})
def test_any_members_come_back(kind: str, members: dict[str, object]) -> None:
    line = event(kind, **members)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    assert list(json.loads(line).items()) == [("type", kind), *members.items()]


@given(texts)
def test_a_text_is_quoted_as_in_an_event(text: str) -> None:
    assert f'{{"type":{quoted(text)}}}\n'.encode() == event(text)


@given(st.binary())
@example("snö".encode())
@example(b"\xff")
@example(b"\xed\xa0\x80")
@example(b"")
def test_bytes_are_told_as_text_or_in_base64(value: bytes) -> None:
    ((key, text),) = told("data", value).items()
    try:
        assert (key, text) == ("data", value.decode())
    except UnicodeDecodeError:
        assert key == "data_base64"
        assert base64.b64decode(text, validate=True) == value


@pytest.mark.parametrize(
    ("topic", "members"),
    [
        (Topic(b"scores"), {"channel": "scores"}),
        (Topic(b"scores", Kind.SHARD), {"channel": "scores"}),
        (Topic(b"news.*", Kind.PATTERN), {"pattern": "news.*"}),
        (Topic(b"\xff"), {"channel_base64": "/w=="}),
        (Topic(b"\xff*", Kind.PATTERN), {"pattern_base64": "/yo="}),
    ],
)
def test_a_topic_has_a_member_for_its_kind(topic: Topic, members: dict[str, str]) -> None:
    assert named(topic) == members


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1800000000, "2027-01-15T08:00:00.000Z"),
        (1800000000.9999, "2027-01-15T08:00:00.999Z"),
        (LAST_SECOND, "9999-12-31T23:59:59.000Z"),
        (1800000000000, "9999-12-31T23:59:59.000Z"),  # as some issuers write times: in milliseconds
        (1e300, "9999-12-31T23:59:59.000Z"),
    ],
)
def test_times_are_text(seconds: float, text: str) -> None:
    assert show_time(seconds) == text


@given(st.floats(0, LAST_SECOND))
def test_a_time_is_told_to_the_millisecond(seconds: float) -> None:
    text = show_time(seconds)
    assert len(text) == len("1970-01-01T00:00:00.000Z")
    assert 0 <= seconds - datetime.fromisoformat(text).astimezone(UTC).timestamp() + 1e-6 < 0.0011
