"""Who subscribes to what at the embedded broker, and where a message goes."""

import hmac
from collections.abc import Callable
from typing import Protocol

from pushd import __version__
from pushd.message import Batch, Kind, Topic
from pushd.patterns import Pattern
from pushd.sources import resp


class Subscriber(Protocol):
    """Someone who is sent messages."""

    def push(self, message: list[bytes]) -> None:
        """Send a message: its parts as in RESP, each encoded."""


class Broker:
    """Takes each message to those who receive it: pushd's own topics, and clients that subscribed.

    A message has one receiver for each topic of pushd and each subscription that its channel matches.
    `deliver` gets what was published to pushd's topics since the last flush, as one batch for each topic.
    """

    def __init__(self, deliver: Callable[[Batch], None], password: bytes | None = None) -> None:
        self.password = password
        self._deliver = deliver
        self._own: set[Topic] = set()
        self._patterns: dict[Topic, Pattern] = {}
        # Dictionaries for their order: who subscribed first is sent to first.
        self._subscribers: dict[Topic, dict[Subscriber, None]] = {}
        self._published: dict[Topic, tuple[list[bytes], list[bytes]]] = {}
        self._names: dict[bytes, bytes] = {}  # of channels, so that equal ones are kept once in a batch

    def follow(self, topic: Topic) -> None:
        """Keep what is published to a topic, from now on, for `deliver`."""
        self._own.add(topic)
        self._match(topic)

    def leave(self, topic: Topic) -> None:
        """Keep no more of a topic; what was kept is still delivered."""
        self._own.remove(topic)
        self._unmatch(topic)

    def subscribe(self, topic: Topic, subscriber: Subscriber) -> None:
        """Send a subscriber what is published to a topic from now on."""
        self._subscribers.setdefault(topic, {})[subscriber] = None
        self._match(topic)

    def unsubscribe(self, topic: Topic, subscriber: Subscriber) -> None:
        """End a subscription that the subscriber has."""
        subscribers = self._subscribers[topic]
        del subscribers[subscriber]
        if not subscribers:
            del self._subscribers[topic]
            self._unmatch(topic)

    def _match(self, topic: Topic) -> None:
        if topic.kind is Kind.PATTERN and topic not in self._patterns:
            self._patterns[topic] = Pattern(topic.name)

    def _unmatch(self, topic: Topic) -> None:
        if topic not in self._own and topic not in self._subscribers:
            self._patterns.pop(topic, None)

    def publish(self, channel: bytes, payload: bytes) -> int:
        """Send a message to its subscribers, keep it for `deliver`, and return the number of receivers."""
        receivers = 0
        patterns = [topic for topic, pattern in self._patterns.items() if pattern.matches(channel)]
        for topic in (Topic(channel), *patterns):
            if topic in self._own:
                self._keep(topic, channel, payload)
                receivers += 1
            if subscribers := self._subscribers.get(topic):
                receivers += len(subscribers)
                message = _message(topic, channel, payload)
                # A snapshot: a client that does not read is dropped on the way.
                for subscriber in tuple(subscribers):
                    subscriber.push(message)
        return receivers

    def _keep(self, topic: Topic, channel: bytes, payload: bytes) -> None:
        payloads, channels = self._published.setdefault(topic, ([], []))
        payloads.append(payload)
        if topic.kind is Kind.PATTERN:
            channels.append(self._names.setdefault(channel, channel))

    def flush(self) -> None:
        """Deliver what was published since the last time."""
        published, self._published = self._published, {}
        self._names.clear()
        for topic, (payloads, channels) in published.items():
            self._deliver(Batch(topic, payloads, channels or ()))

    def admits(self, user: bytes, password: bytes) -> bool:
        """Tell whether credentials are right; without a password of its own the broker takes any."""
        return user == b"default" and (self.password is None or hmac.compare_digest(password, self.password))

    def describe(self) -> bytes:
        """Return the text of INFO."""
        topics = self._own | self._subscribers.keys()
        lines = (
            "# Server",
            f"pushd_version:{__version__}",
            "",
            "# Stats",
            f"pubsub_channels:{len(topics) - len(self._patterns)}",
            f"pubsub_patterns:{len(self._patterns)}",
            "",
        )
        return "\r\n".join(lines).encode()


def _message(topic: Topic, channel: bytes, payload: bytes) -> list[bytes]:
    names = (b"pmessage", topic.name, channel) if topic.kind is Kind.PATTERN else (b"message", channel)
    return [resp.bulk(item) for item in (*names, payload)]
