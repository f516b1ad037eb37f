"""The bounded log: the newest messages of one topic, numbered without holes."""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

SEGMENT_BYTES = 64 * 1024
"""Messages are kept, and evicted, in segments of this size, or of a sixteenth of a small log."""

MESSAGE_OVERHEAD = 64
"""What a message costs beside its payload, about: so that even empty payloads fill a log."""

FRAMING_BYTES = 8
"""What a frame adds to a payload, at least: so that even a read of empty payloads ends."""


class _Segment:
    __slots__ = ("cost", "payloads", "start", "written")

    def __init__(self, start: int, written: int) -> None:
        self.start = start
        self.written = written
        self.payloads: list[bytes] = []
        self.cost = 0


class Log:
    """A sequence of messages that evicts the oldest when it grows above its limit.

    A message's offset is its number, from 1. A cursor is the offset of the last message that a reader has
    had: 0 before the first. Every message after a cursor can be read as long as ``tail <= cursor <= head``.

    The limit is in bytes; a message counts its payload and MESSAGE_OVERHEAD. What came last, one batch or up
    to one segment, is kept even where it alone is larger: a reader that keeps up never loses anything.
    """

    __slots__ = ("_cost", "_limit", "_segment_bytes", "_segments", "head", "tail", "written")

    def __init__(self, limit: int) -> None:
        self.head = 0  # the offset of the newest message
        self.tail = 0  # the oldest cursor from which nothing is missing
        self.written = 0  # bytes of payload of all messages up to the head, evicted ones too
        self._limit = limit
        self._segment_bytes = min(SEGMENT_BYTES, limit // 16)
        self._cost = 0
        self._segments = deque([_Segment(0, 0)])

    def append(self, payloads: Sequence[bytes]) -> None:
        """Add one batch, and evict what the limit no longer allows."""
        size = sum(map(len, payloads))
        cost = size + MESSAGE_OVERHEAD * len(payloads)
        newest = self._segments[-1]
        if newest.payloads and newest.cost + cost > self._segment_bytes:
            newest = _Segment(self.head, self.written)
            self._segments.append(newest)
        newest.payloads += payloads
        newest.cost += cost
        self.head += len(payloads)
        self.written += size
        self._cost += cost
        while self._cost > self._limit and len(self._segments) > 1:
            self._cost -= self._segments.popleft().cost
            self.tail = self._segments[0].start

    def read(self, cursor: int, limit: int) -> list[bytes]:
        """Return the messages after a cursor: as many as fit into limit bytes, at least one if there is one.

        The cursor must not be below the tail: what is missing there is for the caller to say.
        """
        taken: list[bytes] = []
        for payload in self._after(cursor):
            limit -= len(payload) + FRAMING_BYTES
            if limit < 0 and taken:
                break
            taken.append(payload)
        return taken

    def written_at(self, cursor: int) -> int:
        """Return the bytes of payload of all messages up to a cursor that is not below the tail."""
        if cursor == self.head:
            return self.written
        segment = self._segments[self._index(cursor)]
        return segment.written + sum(map(len, islice(segment.payloads, cursor - segment.start)))

    def _index(self, cursor: int) -> int:
        return bisect_right(self._segments, cursor, key=lambda segment: segment.start) - 1

    def _after(self, cursor: int) -> Iterator[bytes]:
        first = self._index(cursor)
        for index in range(first, len(self._segments)):
            segment = self._segments[index]
            yield from islice(segment.payloads, max(0, cursor - segment.start), None)
