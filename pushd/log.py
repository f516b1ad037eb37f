"""The bounded log: the newest messages of one topic, and the places where some may be missing."""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import accumulate, islice, zip_longest

from pushd.message import Position, SourceGap

SEGMENT_BYTES = 64 * 1024
"""Messages are kept, and evicted, in segments of this size, or of a sixteenth of a small log."""

MESSAGE_OVERHEAD = 64
"""What a message costs beside its payload, about: so that even empty payloads fill a log."""

CHANNEL_OVERHEAD = 48
"""What a channel's name costs beside its bytes, with a message of a pattern."""


def cost_of(payloads: Sequence[bytes], channels: Sequence[bytes] = ()) -> int:
    """Return what messages count against a log's limit."""
    return sum(map(len, payloads)) + _beside(payloads, channels)


def _beside(payloads: Sequence[bytes], channels: Sequence[bytes]) -> int:
    named = sum(map(len, channels)) + CHANNEL_OVERHEAD * len(channels) if channels else 0
    return MESSAGE_OVERHEAD * len(payloads) + named


class _Segment:
    """Some messages in a row; or one source gap, which is never with messages."""

    __slots__ = ("channels", "cost", "gap", "gaps", "payloads", "start", "written")

    def __init__(self, start: int, written: int, gaps: int, gap: SourceGap | None = None) -> None:
        self.start = start
        self.written = written
        self.gaps = gaps  # before this segment
        self.gap = gap
        self.payloads: list[bytes] = []
        self.channels: list[bytes] = []  # of the payloads, in the log of a pattern
        self.cost = 0 if gap is None else MESSAGE_OVERHEAD


class Run:
    """Messages in a row, or one source gap, and what is before them. In a pattern's log, with channels."""

    __slots__ = ("channels", "gap", "gaps", "offset", "payloads")

    def __init__(self, offset: int, gaps: int, gap: SourceGap | None) -> None:
        self.offset = offset
        self.gaps = gaps
        self.gap = gap
        self.payloads: list[bytes] = []
        self.channels: list[bytes] = []


class Log:
    """A sequence of entries, messages and source gaps, that evicts the oldest when it grows above its limit.

    A cursor says how many entries, from the very first, a reader has had: 0 before the first. Every entry
    after a cursor can be read as long as ``tail <= cursor <= head``.

    The limit is in bytes; a message counts its payload and MESSAGE_OVERHEAD, and in the log of a pattern its
    channel. What came last, one batch or up to one segment, is kept even where it alone is larger: a reader
    that keeps up never loses anything.
    """

    __slots__ = (
        "_cost",
        "_limit",
        "_newest",
        "_segment_bytes",
        "_segments",
        "gaps",
        "head",
        "tail",
        "written",
    )

    def __init__(self, limit: int) -> None:
        self.head = 0  # the cursor after the newest entry
        self.tail = 0  # the oldest cursor from which nothing is missing
        self.written = 0  # bytes of payload of all messages up to the head, evicted ones too
        self.gaps = 0  # source gaps up to the head, evicted ones too
        self._newest = 0
        self._limit = limit
        self._segment_bytes = min(SEGMENT_BYTES, limit // 16)
        self._cost = 0
        self._segments = deque([_Segment(0, 0, 0)])

    @property
    def newest(self) -> int:
        """The cursor before the newest message, or where that is not kept, before all that is."""
        return max(self._newest, self.tail)

    def append(self, payloads: Sequence[bytes], channels: Sequence[bytes] = ()) -> int:
        """Add one batch, evict what the limit no longer allows, and return what it counts against that.

        Channels are those of the payloads, for the log of a pattern.
        """
        size = sum(map(len, payloads))
        cost = size + _beside(payloads, channels)
        newest = self._segments[-1]
        if newest.gap or (newest.payloads and newest.cost + cost > self._segment_bytes):
            newest = _Segment(self.head, self.written, self.gaps)
            self._segments.append(newest)
        newest.payloads += payloads
        if channels:
            newest.channels += channels
        newest.cost += cost
        self.head += len(payloads)
        self.written += size
        self._newest = self.head - 1
        self._cost += cost
        if self._cost > self._limit:
            self._evict()
        return cost

    def append_gap(self, gap: SourceGap) -> None:
        """Add a source gap at this place."""
        self._segments.append(_Segment(self.head, self.written, self.gaps, gap))
        self.head += 1
        self.gaps += 1
        self._cost += MESSAGE_OVERHEAD
        self._evict()

    def _evict(self) -> None:
        while self._cost > self._limit and len(self._segments) > 1:
            self._cost -= self._segments.popleft().cost
            self.tail = self._segments[0].start

    def read(self, cursor: int, limit: int, framing: int) -> Run:
        """Return what comes after a cursor: a source gap, or the messages up to the next one.

        Of messages as many as fit into limit bytes, where each needs framing bytes beside its payload and
        channel; at least one. The cursor must be below the head, and not below the tail: what is missing
        there is for the caller to say.
        """
        index = self._index(cursor)
        segment = self._segments[index]
        run = Run(cursor - segment.gaps, segment.gaps, segment.gap)
        start = cursor - segment.start
        while segment.gap is None:
            payloads, channels = segment.payloads[start:], segment.channels[start:]
            size = sum(map(len, payloads)) + sum(map(len, channels)) + framing * len(payloads)
            if size > limit:
                count = _fitting(payloads, channels, limit, framing) or (not run.payloads)
                payloads, channels = payloads[:count], channels[:count]
            run.payloads += payloads
            run.channels += channels
            limit -= size
            index += 1
            if limit < 0 or index == len(self._segments):
                break
            segment, start = self._segments[index], 0
        return run

    def position(self, cursor: int) -> Position:
        """Return the place of a cursor that is not below the tail."""
        gaps = self.gaps_at(cursor)
        return Position(cursor - gaps, gaps)

    def back(self, messages: int) -> int:
        """Return the cursor that so many messages come after, or as many as are kept."""
        if not messages:
            return self.head
        for segment in reversed(self._segments):
            if messages <= len(segment.payloads):
                return segment.start + len(segment.payloads) - messages
            messages -= len(segment.payloads)
        return self.tail

    def gaps_at(self, cursor: int) -> int:
        """Return the number of source gaps up to a cursor that is not below the tail."""
        return self.gaps if cursor == self.head else self._segments[self._index(cursor)].gaps

    def written_at(self, cursor: int) -> int:
        """Return the bytes of payload of all messages up to a cursor that is not below the tail."""
        if cursor == self.head:
            return self.written
        segment = self._segments[self._index(cursor)]
        return segment.written + sum(map(len, islice(segment.payloads, cursor - segment.start)))

    def _index(self, cursor: int) -> int:
        if cursor >= self._segments[-1].start:  # as it nearly always is
            return len(self._segments) - 1
        return bisect_right(self._segments, cursor, key=lambda segment: segment.start) - 1


def _fitting(payloads: Sequence[bytes], channels: Sequence[bytes], limit: int, framing: int) -> int:
    """Return how many of the first messages, of more than fit, fit into limit bytes."""
    sizes = (
        len(payload) + len(channel) for payload, channel in zip_longest(payloads, channels, fillvalue=b"")
    )
    return next(
        count for count, total in enumerate(accumulate(sizes)) if total + framing * (count + 1) > limit
    )
