"""The values that travel from a source to the hub."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Topic:
    """What a log is kept of: one channel, or all channels that match one pattern.

    The name is bytes, as in Redis; a channel and a pattern of one name are different topics.
    """

    name: bytes
    is_pattern: bool = False

    def __str__(self) -> str:
        quoted = f'"{self.name.decode("utf-8", "backslashreplace")}"'
        return f"pattern {quoted}" if self.is_pattern else quoted


@dataclass(frozen=True, slots=True)
class Batch:
    """All messages of one topic that one read brought, oldest first: never empty, bytes as published."""

    topic: Topic
    payloads: list[bytes]
