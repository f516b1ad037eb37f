"""Permissions: topics that are named, and what patterns allow; of a wanted pattern, all or nothing."""

import pytest

from pushd.message import Kind, Topic
from pushd.patterns import Pattern
from pushd.permissions import Permissions

NAMED = frozenset({Topic(b"scores"), Topic(b"news.*", Kind.PATTERN), Topic(b"orders", Kind.SHARD)})


def patterns(*sources: bytes) -> tuple[Pattern, ...]:
    return tuple(map(Pattern, sources))


def test_by_default_nothing_is_allowed() -> None:
    nothing = Permissions()
    assert not nothing.may_subscribe(Topic(b"scores"))
    assert not nothing.may_subscribe(Topic(b"*", Kind.PATTERN))
    assert not nothing.may_publish(b"scores")


@pytest.mark.parametrize(
    ("topic", "is_allowed"),
    [
        (Topic(b"scores"), True),
        (Topic(b"news.*", Kind.PATTERN), True),
        (Topic(b"orders", Kind.SHARD), True),
        (Topic(b"scores", Kind.PATTERN), False),
        (Topic(b"scores", Kind.SHARD), False),
        (Topic(b"news.sport"), False),
        (Topic(b"news.sport.*", Kind.PATTERN), False),
        (Topic(b"orders"), False),
        (Topic(b"other"), False),
    ],
)
def test_named_topics_are_allowed_as_they_are(topic: Topic, *, is_allowed: bool) -> None:
    assert Permissions(topics=NAMED).may_subscribe(topic) == is_allowed


@pytest.mark.parametrize(
    ("topic", "is_allowed"),
    [
        (Topic(b"scores"), True),
        (Topic(b"scores", Kind.SHARD), True),
        (Topic(b"scores", Kind.PATTERN), True),
        (Topic(b"news.sport"), True),
        (Topic(b"news.*"), True),
        (Topic(b"news.*", Kind.PATTERN), True),
        (Topic(b"news.sport.*", Kind.PATTERN), True),
        (Topic(b"news.?", Kind.PATTERN), True),
        (Topic(b"new?.*", Kind.PATTERN), False),
        (Topic(b"*", Kind.PATTERN), False),
        (Topic(b"score?", Kind.PATTERN), False),
        (Topic(b"News.sport"), False),
        (Topic(b"secrets"), False),
    ],
)
def test_patterns_allow_what_they_match(topic: Topic, *, is_allowed: bool) -> None:
    assert Permissions(subscribe=patterns(b"scores", b"news.*")).may_subscribe(topic) == is_allowed


def test_one_pattern_must_allow_the_whole() -> None:
    """Both together would, but that is not found out."""
    halves = Permissions(subscribe=patterns(b"[a-m]*", b"[n-z]*"))
    assert halves.may_subscribe(Topic(b"[b-c]*", Kind.PATTERN))
    assert not halves.may_subscribe(Topic(b"[a-z]*", Kind.PATTERN))


def test_publishing_is_allowed_by_itself() -> None:
    permissions = Permissions(topics=NAMED, subscribe=patterns(b"*"), publish=patterns(b"chat.*", b"log"))
    assert permissions.may_publish(b"chat.1")
    assert permissions.may_publish(b"log")
    assert not permissions.may_publish(b"scores")
    assert not Permissions(publish=patterns(b"*")).may_subscribe(Topic(b"scores"))


def test_probes_are_nobodys() -> None:
    everything = Permissions(subscribe=(Pattern(b"*"),), publish=(Pattern(b"*"),))
    probe = b"pushd:probe:0123"
    assert not everything.may_subscribe(Topic(probe))
    assert not everything.may_subscribe(Topic(b"pushd:probe:*", Kind.PATTERN))
    assert not everything.may_publish(probe)
    assert Permissions(topics=frozenset([Topic(probe)])).may_subscribe(Topic(probe))
