"""The values that travel from a source to the hub."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

PROBE_PREFIX = b"pushd:probe:"
"""How the channels begin that pushd publishes to, to prove delivery. Their messages reach no client."""


class Kind(Enum):
    """What a topic's name means to Redis."""

    CHANNEL = "channel"
    PATTERN = "pattern"
    SHARD = "shard channel"  # of sharded Pub/Sub, in a cluster


@dataclass(frozen=True, slots=True)
class Topic:
    """What a log is kept of: one channel, or all channels that match one pattern.

    The name is bytes, as in Redis; topics of one name and different kinds are different topics.
    """

    name: bytes
    kind: Kind = Kind.CHANNEL

    def __hash__(self) -> int:
        return hash(self.name)  # there are few kinds, and their own hash would take longer

    def __str__(self) -> str:
        text = self.name.decode("utf-8", "backslashreplace")
        quoted = f'"{text if text.isprintable() else repr(text)[1:-1]}"'
        return quoted if self.kind is Kind.CHANNEL else f"{self.kind.value} {quoted}"


class Batch(NamedTuple):
    """All messages of one topic that one read brought, oldest first: never empty, bytes as published.

    Of a pattern, the channel of each message, too.
    """

    topic: Topic
    payloads: list[bytes]
    channels: Sequence[bytes] = ()


@dataclass(frozen=True, slots=True)
class SourceGap:
    """A time in which messages of a topic may have been published that pushd was not given.

    In seconds since 1970; unknown how many. What was published before or after it has been handed over: it
    begins before the loss was noticed, when Redis was asked the last question that it answered.
    """

    since: float
    until: float


class Position(NamedTuple):
    """A place between two entries of a log: so many messages and source gaps are before it."""

    offset: int
    gaps: int

    @property
    def cursor(self) -> int:
        """How many entries are before it."""
        return self.offset + self.gaps


@dataclass(frozen=True, slots=True)
class Gap:
    """The entries of a log between two places, which a subscription will never get."""

    since: Position
    until: Position

    @property
    def messages(self) -> int:
        """How many messages are among them."""
        return self.until.offset - self.since.offset

    @property
    def source_gaps(self) -> int:
        """How many source gaps are among them, in each of which unknown messages are missing, too."""
        return self.until.gaps - self.since.gaps
