"""A subscribed connection to Redis: confirms topic by topic, hands on messages, and notices a dead peer."""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import hiredis
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure

from pushd.message import Batch, Kind, Topic
from pushd.metrics import Reason
from pushd.sources.connection import RedisConnection, SourceError

PROBE_PREFIX = b"pushd:probe:"
"""How the channels begin that pushd publishes to, to prove delivery. Their messages reach no client."""

SUBSCRIBE: Final = {Kind.CHANNEL: b"SUBSCRIBE", Kind.PATTERN: b"PSUBSCRIBE", Kind.SHARD: b"SSUBSCRIBE"}

Deliver = Callable[[Batch], None]
"""Takes over what one read brought for one topic; raises nothing."""


class ProbeListener(Protocol):
    """What a subscriber needs of a probe."""

    topic: Topic

    def heard(self, payload: bytes) -> None:
        """Take note of what came back."""


class _Payloads(dict[bytes, list[bytes]]):
    """What one read brings, by name; a name that was not asked for is a protocol error at that very place."""

    def __init__(self, topics: Mapping[bytes, Topic]) -> None:
        super().__init__()
        self.topics = topics

    def __missing__(self, name: bytes) -> list[bytes]:
        if name not in self.topics:
            raise hiredis.ProtocolError("a message that was not asked for")
        payloads: list[bytes] = []
        self[name] = payloads
        return payloads


class RedisSubscriber(RedisConnection):
    """What one read brings is delivered as one batch for each topic, bytes exact, in order.

    A message of a topic that was not asked for is a protocol error, and ends the connection. Probes go to
    where they are waited for.
    """

    def __init__(
        self,
        clock: IReactorTime,
        timeout: float,
        *,
        topics: Sequence[Topic],
        deliver: Deliver,
        probe: ProbeListener | None,
    ) -> None:
        super().__init__(clock, timeout)
        self._deliver = deliver
        # Up to then nothing is missing, as an answer proves; None before the first topic is confirmed.
        self.proven_at: float | None = None
        self._probe = probe
        self._topics: dict[Kind, dict[bytes, Topic]] = {kind: {} for kind in Kind}
        for topic in (*topics, *([probe.topic] if probe else [])):
            self._topics[topic.kind][topic.name] = topic
        self._pings: LoopingCall | None = None
        self._deadline: IDelayedCall | None = None  # of the ping that waits for its answer
        self._held_back = False

    async def subscribe_to(self, topic: Topic) -> None:
        """Return once Redis has confirmed one topic; raises SourceError."""
        command, asked_at = SUBSCRIBE[topic.kind], self._clock.seconds()
        if self._pings is None:
            answer = await self.ask(f"{command.decode()} {topic}", command, topic.name)
        else:  # it may be behind many messages; the pings watch that it comes
            answer = await self.wait_for(command, topic.name)
        if not isinstance(answer, list) or answer[:2] != [command.lower(), topic.name]:
            raise SourceError(Reason.PROTOCOL, f"protocol error: {topic} is not what was confirmed")
        self.proven_at = asked_at

    def keep_alive(self, seconds: float) -> None:
        """Ask for a sign of life every so often. While the connection lasts."""
        self._pings = LoopingCall(self._ping)
        self._pings.clock = self._clock
        self._pings.start(seconds, now=False)

    def hold_back(self, holding: bool) -> None:
        """Read nothing, or read on. What is not read is no sign of death."""
        self._held_back = holding
        if holding:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()

    def _ping(self) -> None:
        if self._deadline is None:
            asked_at = self._clock.seconds()
            self.execute_command("PING").addCallbacks(
                self._ponged, self._no_pong, (asked_at,), None, (asked_at,)
            )
            self._expect_life(asked_at)

    def _ponged(self, answer: object, asked_at: float) -> None:
        self._expect_nothing()
        if answer in ([b"pong", b""], b"PONG"):  # PONG while all topics are refused
            self.proven_at = asked_at
        else:
            self.give_up(Reason.PROTOCOL, "protocol error: that is no answer to PING")

    def _no_pong(self, failure: Failure, asked_at: float) -> None:
        if failure.check(hiredis.ReplyError):  # that PING is forbidden is a sign of life as good as any
            self._expect_nothing()
            self.proven_at = asked_at

    def _expect_life(self, since: float) -> None:
        self._deadline = self._clock.callLater(self._timeout, self._overdue, since)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _overdue(self, since: float) -> None:
        # What has come while this process itself did not run is read in the next turn.
        self._deadline = self._clock.callLater(0, self._truly_overdue, since)

    def _truly_overdue(self, since: float) -> None:
        if self._held_back or self.heard_at > since:
            # The answer is behind messages that have still to be read.
            self._expect_life(self._clock.seconds())
            return
        self._deadline = None
        self.give_up(Reason.TIMEOUT, f"no answer to PING within {self._timeout:g} s")

    def _read_replies(self) -> bool:
        channels = _Payloads(self._topics[Kind.CHANNEL])
        patterns = _Payloads(self._topics[Kind.PATTERN])
        shards = _Payloads(self._topics[Kind.SHARD])
        some = False
        try:
            while (reply := self._parser.gets()) is not False:
                some = True
                match reply:
                    # Guards, not class patterns: each bytes() in a pattern costs CPython a failed search.
                    case [b"message", name, payload] if type(name) is bytes and type(payload) is bytes:
                        channels[name].append(payload)
                    case [b"pmessage", name, channel, payload] if (
                        type(name) is bytes and type(channel) is bytes and type(payload) is bytes
                    ):
                        if not channel.startswith(PROBE_PREFIX):
                            patterns[name].append(payload)
                    case [b"smessage", name, payload] if type(name) is bytes and type(payload) is bytes:
                        shards[name].append(payload)
                    case [b"message" | b"pmessage" | b"smessage", *_]:
                        raise hiredis.ProtocolError("a message that is none")
                    case [b"sunsubscribe", _, int()]:
                        self.give_up(Reason.MOVED, "its slot has moved to another node")
                    case _:
                        if not self._answered(reply):
                            break
        finally:
            for payloads in (channels, patterns, shards):
                self._hand_on(payloads)
        return some

    def _hand_on(self, brought: "_Payloads") -> None:
        for name, payloads in brought.items():
            topic = brought.topics[name]
            if self._probe and topic == self._probe.topic:
                for payload in payloads:
                    self._probe.heard(payload)
            else:
                self._deliver(Batch(topic, payloads))

    def connectionLost(self, why: Failure) -> None:
        """End with the connection what belongs to it."""
        if self._pings is not None and self._pings.running:
            self._pings.stop()
        self._expect_nothing()
        super().connectionLost(why)
