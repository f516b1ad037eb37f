"""Events: what a client of the control protocol is told, as one JSON object a line."""

import base64
import json
from datetime import UTC, datetime
from typing import Final

from pushd.message import Kind, Topic

LAST_SECOND: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()
"""The last time that RFC 3339 can write: tokens may be good for longer."""

quoted = json.encoder.encode_basestring
"""A text as JSON: what json.dumps comes to in the end, without its looking at options each time."""


def event(kind: str, /, **members: object) -> bytes:
    """Return one event as a line, its members in the order in which they are given."""
    return f"{json.dumps({'type': kind, **members}, ensure_ascii=False, separators=(',', ':'))}\n".encode()


def told(key: str, value: bytes) -> dict[str, str]:
    """Return bytes as a member: under their key as text, or where they are not UTF-8, in base64."""
    try:
        return {key: value.decode()}
    except UnicodeDecodeError:
        return {f"{key}_base64": base64.b64encode(value).decode()}


def named(topic: Topic) -> dict[str, str]:
    """Return which topic it is, as members."""
    return told("pattern" if topic.kind is Kind.PATTERN else "channel", topic.name)


def show_time(seconds: float) -> str:
    """Return a time in seconds since 1970 as text (RFC 3339), which ends with the year 9999."""
    return (
        datetime.fromtimestamp(min(seconds, LAST_SECOND), UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )
