"""Subscriptions: one client's place in one log, and which logs there are for that."""

from typing import Protocol

from pushd.chunks import Chunks
from pushd.encoders import WireFormat
from pushd.log import Log
from pushd.message import Gap, Position, Topic
from pushd.settings import SlowPolicy


class Outlet(Protocol):
    """What the hub needs of a client's way out."""

    lagging: bool
    """While true, the client takes no more, and is not sent to; ``Hub.wake`` says that it is over."""

    def send(self, data: bytes) -> None:
        """Send whole frames, all of them in time; may set ``lagging``. Only while it is not lagging."""

    def overrun(self, topic: Topic, messages: int, size: int) -> None:
        """End a client at once that is so many messages, and bytes of payload, behind a log's head."""

    def failed(self) -> None:
        """End a client at once that has just raised an exception."""


class Feed:
    """A log, who reads it, and its encoded chunks by wire format. The label tells it from all other logs."""

    __slots__ = ("chunks", "label", "log", "subscriptions", "topic")

    def __init__(self, topic: Topic, label: str, history: int) -> None:
        self.topic = topic
        self.label = label
        self.log = Log(history)
        self.subscriptions: dict[Subscription, None] = {}  # a set that keeps its order
        self.chunks: dict[WireFormat, Chunks] = {}

    def chunks_in(self, wire_format: WireFormat, warm: set[Chunks]) -> Chunks:
        """Return the chunks that all share who read in a wire format."""
        if wire_format not in self.chunks:
            self.chunks[wire_format] = Chunks(self.log, wire_format(self.topic, self.label), warm)
        return self.chunks[wire_format]


class Subscription:
    """One client's place in one log. Made by ``Hub.subscribe``."""

    __slots__ = (
        "_joined",
        "active",
        "chunks",
        "cursor",
        "feed",
        "gaps",
        "missed",
        "outlet",
        "policy",
        "untold",
        "written",
    )

    def __init__(self, feed: Feed, chunks: Chunks, outlet: Outlet, policy: SlowPolicy, cursor: int) -> None:
        self.feed = feed
        self.chunks = chunks
        self.outlet = outlet
        self.policy = policy
        self.active = True
        self.missed = 0  # messages in counted gaps so far
        self.cursor = cursor
        self.written = feed.log.written_at(cursor)  # bytes of payload up to the cursor
        self.gaps = self._joined = feed.log.gaps_at(cursor)  # source gaps of the log up to the cursor
        self.untold: Position | None = None  # where what was left out begins that it was not told of

    @property
    def source_gaps(self) -> int:
        """How many source gaps have come since this subscription began."""
        return self.gaps - self._joined

    @property
    def behind(self) -> int:
        """How many messages and source gaps the log has that this subscription has neither got nor missed."""
        return self.feed.log.head - self.cursor

    @property
    def position(self) -> Position:
        """The place up to which the client has been sent, or told that it missed, everything."""
        return self.untold or Position(self.cursor - self.gaps, self.gaps)

    def skip(self, cursor: int) -> int:
        """Move the cursor forward; return how many messages that leaves out."""
        self.untold = self.position
        gaps = self.feed.log.gaps_at(cursor)
        missed = cursor - self.cursor - (gaps - self.gaps)
        self.missed += missed
        self.cursor = cursor
        self.gaps = gaps
        self.written = self.feed.log.written_at(cursor)
        return missed

    def tell_gap(self) -> None:
        """Send what was left out since the client was last told, if its wire format can say that."""
        gap = Gap(self.position, Position(self.cursor - self.gaps, self.gaps))
        self.untold = None
        if frame := self.chunks.encoder.gap(gap):
            self.outlet.send(frame)
