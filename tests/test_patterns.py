"""Patterns match as in Redis, and cover others only if they match all that those do, in bounded time."""

import sys
from collections.abc import Callable
from functools import cache
from itertools import product

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pushd.patterns import Pattern


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (b"", b""),
        (b"updates", b"updates"),
        (b"\xff\x00", b"\xff\x00"),
        (b"*", b"updates"),
        (b"news.*", b"news."),
        (b"news.*", b"news.tech"),
        (b"*.*", b"news.tech"),
        (b"**a**", b"banana"),
        (b"a*b*c", b"abbbcc"),
        (b"h?llo", b"hello"),
        (b"h[ae]llo", b"hallo"),
        (b"h[^e]llo", b"hallo"),
        (b"h[a-b]llo", b"hbllo"),
        (b"h[b-a]llo", b"hallo"),
        (b"[^]", b"x"),
        (b"[a-]", b"^"),
        (b"[ab", b"b"),
        (b"[^", b"x"),
        (b"[a\\", b"\\"),
        (b"[\\]]", b"]"),
        (b"[\\^]", b"^"),
        (b"[a-\\]b", b"\\b"),
        (b"[\\a-z]", b"-"),
        (b"\\*", b"*"),
        (b"\\a", b"a"),
        (b"a\\", b"a\\"),
        (b"]", b"]"),
    ],
)
def test_matches(pattern: bytes, name: bytes) -> None:
    assert Pattern(pattern).matches(name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (b"", b"a"),
        (b"a", b""),
        (b"*", b""),
        (b"updates", b"update"),
        (b"updates", b"updates2"),
        (b"news.*", b"news"),
        (b"a*b", b"abc"),
        (b"a*b?", b"ab"),
        (b"?", b"ab"),
        (b"h[^e]llo", b"hello"),
        (b"[]", b"a"),
        (b"[]a]", b"a"),
        (b"[", b"["),
        (b"[\\a-z]", b"b"),
        (b"\\*", b"a"),
        (b"\\?", b"a"),
        (b"A", b"a"),
    ],
)
def test_does_not_match(pattern: bytes, name: bytes) -> None:
    assert not Pattern(pattern).matches(name)


def model(pattern: bytes, name: bytes) -> bool:
    """Match by the definition: naive, recursive, one element of the pattern at a time."""

    @cache
    def rest(at: int, position: int) -> bool:
        if at >= len(pattern):
            return position == len(name)
        left = pattern[at:]
        if left.startswith(b"*"):
            return any(rest(at + 1, later) for later in range(position, len(name) + 1))
        if position == len(name):
            return False
        accepted, length = element(left, name[position : position + 1])
        return accepted and rest(at + length, position + 1)

    return rest(0, 0) if name else not pattern


def element(pattern: bytes, byte: bytes) -> tuple[bool, int]:
    """Tell whether the first element of a pattern accepts a byte, and how long that element is."""
    if pattern.startswith(b"?"):
        return True, 1
    if pattern.startswith(b"["):
        return bracket(pattern, byte)
    if pattern.startswith(b"\\") and len(pattern) > 1:
        return pattern[1:2] == byte, 2
    return pattern[:1] == byte, 1


def bracket(pattern: bytes, byte: bytes) -> tuple[bool, int]:
    negated = pattern.startswith(b"[^")
    at = 2 if negated else 1
    found = False
    while at < len(pattern) and pattern[at : at + 1] != b"]":
        if pattern[at : at + 1] == b"\\" and at + 1 < len(pattern):
            low = high = pattern[at + 1 : at + 2]
            at += 2
        elif pattern[at + 1 : at + 2] == b"-" and at + 2 < len(pattern):
            low, high = pattern[at : at + 1], pattern[at + 2 : at + 3]
            at += 3
        else:
            low = high = pattern[at : at + 1]
            at += 1
        found |= min(low, high) <= byte <= max(low, high)
    return found is not negated, at + 1


@given(
    st.lists(st.sampled_from([bytes((byte,)) for byte in b"ab*?[]^-\\"]), max_size=10).map(b"".join),
    st.lists(st.sampled_from([b"a", b"b", b"]", b"-", b"\\", b"^"]), max_size=8).map(b"".join),
)
@example(b"[a", b"a")
def test_agrees_with_the_definition(pattern: bytes, name: bytes) -> None:
    assert Pattern(pattern).matches(name) == model(pattern, name)


@given(st.binary(max_size=20), st.binary(max_size=20))
def test_any_bytes_are_a_pattern(pattern: bytes, name: bytes) -> None:
    assert Pattern(pattern).matches(name) == model(pattern, name)


def test_time_is_bounded() -> None:
    """With backtracking over every star this would not end within the age of the universe."""
    assert not Pattern(b"*a" * 500 + b"*b").matches(b"a" * 2000)
    assert not Pattern(b"*" + b"a" * 500 + b"b").matches(b"a" * 2000)


@pytest.mark.parametrize(
    ("pattern", "other"),
    [
        (b"news.*", b"news.*"),
        (b"news.*", b"news.sport.*"),
        (b"news.*", b"news.?"),
        (b"news.*", b"news.[ab]*"),
        (b"news.*", b"news."),
        (b"news.*", b"news.**"),
        (b"news.*", b"news.*.*"),
        (b"*", b"*"),
        (b"*", b"**"),
        (b"*", b"?*"),
        (b"*", b"updates"),
        (b"*", b"[]"),
        (b"*.*", b"*.sport.*"),
        (b"*a*", b"*banana*"),
        (b"?", b"[a-z]"),
        (b"?*", b"??"),
        (b"?*", b"?*"),
        (b"[a-z]", b"[b-y]"),
        (b"[a-z]", b"q"),
        (b"[^a]", b"[b-y]"),
        (b"[abc]", b"[a-c]"),
        (b"h[ae]llo", b"hallo"),
        (b"\\*", b"\\*"),
        (b"", b""),
    ],
)
def test_covers(pattern: bytes, other: bytes) -> None:
    assert Pattern(pattern).covers(Pattern(other))


@pytest.mark.parametrize(
    ("pattern", "other"),
    [
        (b"news.*", b"*"),
        (b"news.*", b"news*"),
        (b"news.*", b"n*.*"),
        (b"news.*", b"news"),
        (b"news.*", b"?ews.*"),
        (b"news.?", b"news.*"),
        (b"news", b"news.*"),
        (b"*.sport", b"*"),
        (b"*.sport", b"*.sports"),
        (b"*ab", b"*a"),
        (b"*a*b", b"*b*a"),
        (b"?", b"*"),
        (b"?", b"??"),
        (b"??", b"?"),
        (b"[a-y]", b"[b-z]"),
        (b"[^a]", b"?"),
        (b"a", b"[ab]"),
        (b"a", b"?"),
        (b"\\*", b"*"),
        (b"\\*", b"a"),
        (b"*", b""),
        (b"", b"*"),
        (b"", b"a"),
    ],
)
def test_does_not_cover(pattern: bytes, other: bytes) -> None:
    assert not Pattern(pattern).covers(Pattern(other))


NAMES = [bytes(name) for length in range(6) for name in product(b"abc", repeat=length)]
items = st.sampled_from(
    [b"a", b"b", b"?", b"*", b"*", b"[ab]", b"[^a]", b"[^ab]", b"[a-c]", b"[]", b"[^]", b"\\a"]
)
patterns = st.lists(items, max_size=5).map(b"".join)


@given(patterns, patterns)
@example(b"*", b"")
@example(b"*", b"[]")
@example(b"a*", b"a[]")
@example(b"*a*b", b"*[ab]*b")
def test_what_is_covered_is_matched(pattern: bytes, other: bytes) -> None:
    """Every name that the other matches, of all that are short."""
    one, two = Pattern(pattern), Pattern(other)
    if one.covers(two):
        assert [name for name in NAMES if two.matches(name) and not one.matches(name)] == []


@given(patterns, st.lists(items.filter(lambda item: item != b"[]"), max_size=3).map(b"".join))
def test_what_is_more_special_is_covered(pattern: bytes, part: bytes) -> None:
    """A pattern covers itself; and what is made of it by putting anything for one of its stars."""
    assert Pattern(pattern).covers(Pattern(pattern))
    special = pattern.replace(b"*", part, 1)
    assert Pattern(pattern).covers(Pattern(special)) or not special


@given(st.lists(st.sampled_from([b"a", b"b", b"*"]), max_size=8).map(b"".join), st.sampled_from(NAMES))
def test_a_name_is_covered_if_it_is_matched(pattern: bytes, name: bytes) -> None:
    """A pattern without anything special matches just one name."""
    assert Pattern(pattern).covers(Pattern(name)) == Pattern(pattern).matches(name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (b"*a*a*a*b", b"a" * 1000),
        (b"*a" * 100 + b"*b", b"a" * 1000),
        (b"*" + b"a" * 100 + b"b", b"a" * 1000),
        (b"*" + b"?" * 100 + b"b", b"?" * 500 + b"*"),
        (b"*[ab]" * 100 + b"c", b"[ab]" * 250),
    ],
)
def test_steps_are_bounded(pattern: bytes, name: bytes) -> None:
    one, other = Pattern(pattern), Pattern(name)
    bound = 6 * len(pattern) * len(name)
    assert calls(lambda: one.covers(other)) < bound
    assert calls(lambda: one.matches(name)) < bound


def calls(call: Callable[[], bool]) -> int:
    """Return how many functions are called, those in C too, by what does not match in the end."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        assert not call()
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize(
    ("allowed", "wanted"),
    [("[^_]*", "[a-é]*"), ("[^s]*", "[t-é]*"), ("[a-é]*", "[a-b]*"), ("*", "[!-é]")],
)
def test_nothing_is_certain_of_a_range_that_redis_may_read_in_another_way(allowed: str, wanted: str) -> None:
    assert not Pattern(allowed.encode()).covers(Pattern(wanted.encode()))


def test_a_range_on_one_side_is_certain() -> None:
    assert Pattern(b"*").covers(Pattern(b"[a-z][\x80-\xff]"))
