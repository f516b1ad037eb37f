"""Channel patterns, as PSUBSCRIBE of Redis understands them."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")

_ANY = bytes(range(256))
_STAR, _QUESTION, _OPEN, _CLOSE, _DASH, _ESCAPE = b"*?[]-\\"


class Pattern:
    r"""A glob over the bytes of a channel: ``*``, ``?``, ``[abc]``, ``[^a]``, ``[a-z]``, and ``\`` escapes.

    Every byte string is a pattern. What is odd follows stringmatchlen of Redis 7.0: an unclosed class ends
    with the pattern, a reversed range is swapped, and the empty name matches only the empty pattern.
    Bytes have no sign, as on ARM; on x86 Redis sorts those from 0x80 before all others: a pattern with a
    range that mixes both is ambiguous. Matching takes at most len(pattern) * len(name) steps.
    """

    __slots__ = ("_is_ambiguous", "_items")

    def __init__(self, source: bytes) -> None:
        # An item is what one byte of the name may be; None stands for a run of stars.
        self._is_ambiguous = False
        self._items = tuple(self._read(source))

    def matches(self, name: bytes) -> bool:
        """Tell whether the pattern matches the whole name."""
        return self._match(name, bytes.__contains__) if name else not self._items

    def covers(self, other: "Pattern") -> bool:
        """Tell whether this one matches all that the other matches, as far as their parts show it.

        A star of the other can only be part of what a star of this one takes: ``?*`` does not cover ``*?``,
        although both match the same names. Nothing ambiguous covers, or is covered.
        """
        if self._is_ambiguous or other._is_ambiguous:
            return False
        return self._match(other._items, _takes_all) if other._items else not self._items

    def _match(self, subject: Sequence[T], takes: Callable[[bytes, T], bool]) -> bool:
        """Match a sequence, where takes tells whether an item that is not a star takes an element of it."""
        items, count = self._items, len(self._items)
        at = position = 0
        after_star = resume = -1
        while position < len(subject):
            item = items[at] if at < count else b""
            if item is None:
                at += 1
                after_star, resume = at, position
            elif at < count and takes(item, subject[position]):
                at += 1
                position += 1
            elif after_star >= 0:
                # Only the last star need take one more: what is before it has matched at its earliest.
                resume += 1
                at, position = after_star, resume
            else:
                return False
        return at == count or items[at:] == (None,)

    def _read(self, source: bytes) -> Iterator[bytes | None]:
        position = 0
        while position < len(source):
            byte = source[position]
            position += 1
            if byte == _STAR:
                while source[position : position + 1] == b"*":
                    position += 1
                yield None
            elif byte == _QUESTION:
                yield _ANY
            elif byte == _OPEN:
                accepted, position, is_ambiguous = _class(source, position)
                self._is_ambiguous |= is_ambiguous
                yield accepted
            else:
                if byte == _ESCAPE and position < len(source):
                    byte = source[position]
                    position += 1
                yield bytes((byte,))


def _takes_all(item: bytes, other: bytes | None) -> bool:
    return other is not None and not other.translate(None, item)


def _class(source: bytes, position: int) -> tuple[bytes, int, bool]:
    """Return what a class accepts, where it ends, and if it is ambiguous; it begins behind its bracket."""
    is_ambiguous = False
    negated = source[position : position + 1] == b"^"
    position += negated
    accepted: set[int] = set()
    while position < len(source) and source[position] != _CLOSE:
        first, *more = source[position : position + 3]
        if first == _ESCAPE and more:
            accepted.add(more[0])
            position += 2
        elif len(more) == 2 and more[0] == _DASH:
            # The end of a range is any byte, even "]" or a backslash.
            low, high = sorted((first, more[1]))
            accepted.update(range(low, high + 1))
            is_ambiguous |= low < 0x80 <= high
            position += 3
        else:
            accepted.add(first)
            position += 1
    if negated:
        accepted.symmetric_difference_update(_ANY)
    return bytes(sorted(accepted)), position + 1, is_ambiguous
