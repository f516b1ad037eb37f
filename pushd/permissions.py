"""Permissions: what a client may subscribe to, and publish to."""

from collections.abc import Set
from dataclasses import dataclass

from pushd.message import PROBE_PREFIX, Kind, Topic
from pushd.patterns import Pattern


@dataclass(frozen=True, slots=True)
class Permissions:
    """Topics that may be subscribed to, and patterns: of channels to subscribe to, and to publish to."""

    topics: Set[Topic] = frozenset()
    subscribe: tuple[Pattern, ...] = ()
    publish: tuple[Pattern, ...] = ()

    def may_subscribe(self, topic: Topic) -> bool:
        """Tell whether a topic is allowed: of a pattern, all that it matches. Probes are pushd's own."""
        if topic in self.topics:
            return True
        if topic.name.startswith(PROBE_PREFIX):
            return False
        if topic.kind is Kind.PATTERN:
            wanted = Pattern(topic.name)
            return any(pattern.covers(wanted) for pattern in self.subscribe)
        return any(pattern.matches(topic.name) for pattern in self.subscribe)

    def may_publish(self, channel: bytes) -> bool:
        """Tell whether a channel may be published to."""
        allowed = any(pattern.matches(channel) for pattern in self.publish)
        return allowed and not channel.startswith(PROBE_PREFIX)
